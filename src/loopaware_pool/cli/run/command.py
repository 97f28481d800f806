"""
`loopaware-pool run`: run a program, unmodified, on our pools.

This process becomes the program, by `exec`, and a `sitecustomize` on `PYTHONPATH` installs our pools before the program
begins. So nothing stands between the program and its terminal, its signals, its parent and its exit code. `__main__`
and `sys.path` are what Python makes them, and no frame of ours is in a traceback. Children that are Python, too,
inherit the environment, and so our pools.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import NoReturn

from loopaware_pool._platform.conninfo import hide_passwords
from loopaware_pool.cli.command import Unusable
from loopaware_pool.cli.run.job import Job

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to *parser*."""
    parser.usage = "%(prog)s [--report] [--json] [--sqlalchemy] (SCRIPT | COMMAND | -m MODULE) ..."
    parser.epilog = "exit code: the program's; 2: there is nothing to run"
    parser.add_argument("--report", action="store_true", help="at the end, tell on the error output what the pools did")
    parser.add_argument("--json", action="store_true", help="the same, as an object in one line")
    parser.add_argument("--sqlalchemy", action="store_true", help="swap the default pool of SQLAlchemy's engines, too")
    parser.add_argument("-m", action="store_true", dest="is_module", help="run a module, as python -m does")
    parser.add_argument(
        "program",
        nargs=argparse.REMAINDER,
        metavar="SCRIPT",
        help="run a script, as python does, or a command that is installed beside it; and what follows is for it",
    )


def run(options: argparse.Namespace) -> NoReturn:
    """Become the program that *options*, made by arguments of `add_arguments`, name."""
    program, arguments = _program(options)
    is_to_report = options.report or options.json
    folder = tempfile.mkdtemp(prefix="loopaware-run-") if is_to_report else None
    job = Job(main=os.getpid(), reports=folder, is_json=options.json, sqlalchemy=options.sqlalchemy)
    environment = dict(os.environ)
    job.tell(environment)
    sys.stdout.flush()
    sys.stderr.flush()
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and a program would inherit that
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execve(program, arguments, environment)
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise Unusable(f"{hide_passwords(program)} cannot be run: {error.strerror}") from None


def _program(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Find the file to execute, and its arguments, the name it is called by included."""
    if sys.flags.ignore_environment or sys.flags.no_site:
        raise Unusable("Python was started with -I, -E or -S, so the program would not be reached; leave that out")
    python = [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]  # noqa: SLF001
    given = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not given:
        raise Unusable("nothing to run: give a script, a command, or -m and a module")
    if options.is_module:
        return sys.executable, [*python, "-m", *given]
    if os.path.exists(given[0]):
        return sys.executable, [*python, *given]
    command = shutil.which(given[0]) or shutil.which(given[0], path=os.path.dirname(sys.executable))
    if command is None:
        raise Unusable(f"{hide_passwords(given[0])}: there is no such file, and no such command")
    return command, [command, *given[1:]]
