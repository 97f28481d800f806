"""What all commands have in common: names, parsing, being interrupted, and saying what is wrong."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import contextmanager, nullcontext
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

from loopaware_pool._platform.conninfo import hide_passwords
from loopaware_pool.cli.output import OutputLost, in_one_line, silence, unfiltered, visible_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from _typeshed import SupportsWrite
    from rich.console import Console

__all__ = [
    "COMMANDS",
    "COULD_NOT",
    "FINE",
    "FOUND",
    "INTERRUPTED",
    "PIECE_SECONDS",
    "Parser",
    "Unusable",
    "attempt",
    "pause",
    "run_command",
    "say",
    "waiting_for",
]

COMMANDS: Final = {
    "demo": "show the pools at work beside the drivers' own, in less than a minute",
    "run": "run a program, unmodified, on our pools",
    "audit": "find what a pool, or a script, leaves open",
    "doctor": "look at the environment and the server, and say what to mend",
    "lint": "find, in source, how programs come to leak connections",
    "probe": "ask a server whether it is alive",
    "top": "watch a running pool",
    "bench": "measure the pools against others",
}
FINE: Final = 0
FOUND: Final = 1
COULD_NOT: Final = 2
INTERRUPTED: Final = 130
# The longest that a command may be deaf to Ctrl-C.
PIECE_SECONDS: Final = 0.5
_EXIT_CODES: Final = "exit codes: 0: fine; 1: it found something; 2: it could not do it; 130: interrupted"


class Unusable(Exception):
    """A command cannot do its work; the message says in one line why, and what to do. It shows no password."""


class Parser(argparse.ArgumentParser):
    """
    Says what is wrong in one line, without the usage before it and without a password.

    Args:
        prog: What the command is called; its last word stands before what is wrong.
        description: What it does.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, epilog=_EXIT_CODES, formatter_class=_make_formatter)

    def error(self, message: str) -> NoReturn:
        """Print the line, and exit with 2."""
        with visible_output():
            self.exit(COULD_NOT, f"{self.prog.split()[-1]}: {in_one_line(hide_passwords(message))} (see --help)\n")

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help, which is this program's own, and may be in colour."""
        super().print_help(unfiltered(sys.stdout) if file is None else file)


def _make_formatter(prog: str) -> argparse.HelpFormatter:
    """Have help in colour where rich-argparse is installed. It is asked for only when help is."""
    try:
        from rich_argparse import RawDescriptionRichHelpFormatter
    except ModuleNotFoundError:
        return argparse.RawDescriptionHelpFormatter(prog)
    return RawDescriptionRichHelpFormatter(prog)


def run_command(
    name: str,
    load: Callable[[], tuple[Callable[[argparse.ArgumentParser], object], Callable[[argparse.Namespace], int]]],
    arguments: Sequence[str] | None,
) -> int:
    """
    Run one of `COMMANDS`.

    Args:
        name: Which.
        load: Gives what adds the command's arguments to a parser, and what runs it with the options they make.
        arguments: What follows the command's name; None for those of this process.

    Returns:
        The exit code.
    """

    def work() -> int:
        add_arguments, run = load()
        parser = Parser(f"loopaware-pool {name}", f"{COMMANDS[name].capitalize()}.")
        add_arguments(parser)
        return run(parser.parse_args(arguments))

    return attempt(name, work)


def attempt(name: str, work: Callable[[], int]) -> int:
    """
    Do a command's *work*, and turn what may end it into an exit code, and a line on the error output.

    SIGTERM, which a CI job that is cancelled gets, ends it as Ctrl-C does: what it has started is stopped.
    """
    with visible_output():
        try:
            with _sigterm_as_ctrl_c():
                code = work()
                sys.stdout.flush()
        except Unusable as error:
            _complain(f"{name}: {in_one_line(str(error))}")
            return COULD_NOT
        except KeyboardInterrupt:
            _complain(f"\n{name}: interrupted; nothing it has started is left running")
            return INTERRUPTED
        except BrokenPipeError:  # the reader of the output has gone, as `| head` does
            silence(sys.stdout)
            return COULD_NOT
        except OutputLost as error:
            silence(sys.stdout)
            _complain(f"{name}: {error}")
            return COULD_NOT
    return code


def _complain(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (OutputLost, BrokenPipeError):  # then the exit code says it alone
        silence(sys.stderr)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under nohup: then only SIGTERM ends it
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)  # for asyncio.run, which has its own way


def pause(seconds: float) -> None:
    """Sleep for so long, in pieces: a Ctrl-C that comes just before one begins is heard of when it has ended."""
    end = monotonic() + seconds
    while (left := end - monotonic()) > 0:
        sleep(min(left, PIECE_SECONDS))


# ---- for people ----


def say(text: str, *, style: str) -> None:
    """Print a line, in *style* at a terminal if rich is installed."""
    console = _console(sys.stdout)
    if console is None:
        print(text)
    else:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def waiting_for(what: str) -> AbstractContextManager[object]:
    """Show, at a terminal and if rich is installed, that *what* is under way."""
    console = _console(sys.stderr)
    return nullcontext() if console is None else console.status(f"waiting for {what} ...")


def _console(file: TextIO) -> Console | None:
    if not file.isatty():
        return None
    try:
        from loopaware_pool.cli.console import VisibleConsole
    except ModuleNotFoundError:
        return None
    return VisibleConsole(file)
