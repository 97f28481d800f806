"""`loopaware-pool run`: a program runs as Python would run it, but on our pools, and its children, too."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from loopaware_pool.cli.run import hook, report
from running import NOWHERE, child_process

pytestmark = pytest.mark.both_pythons

MAKE = f"""
import asyncpg
pool = asyncpg.create_pool({NOWHERE!r}, name="mine")
print(type(pool).__module__)
"""
# Everything that a program can see of how it was started, our hook's folder on PYTHONPATH excepted.
FACTS = """
import json, os, sys
import sitecustomize_of_the_user as user
shown = {
    "argv": sys.argv, "path": sys.path, "name": __name__, "file": __file__, "package": __package__,
    "spec": getattr(__spec__, "name", None), "flags": str(sys.flags), "dev": sys.flags.dev_mode, "cwd": os.getcwd(),
    "parent": os.getppid() == int(os.environ["PARENT"]), "read": sys.stdin.buffer.read().hex(),
    "modules": sorted(name for name in sys.modules if "site" in name), "user": user.seen,
    "site": sys.modules["sitecustomize"].__file__,
}
print(json.dumps(shown))
"""


@pytest.fixture
def write(tmp_path):
    """Writes a Python file, and gives its path."""

    def write(source, name="program.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    return write


@pytest.fixture
def run(tmp_path):
    """Runs the command in a folder of its own, with *options*, or Python if they are None; gives what came of it."""

    def run(options, *program, python=(), code=0, **how):
        ours = [] if options is None else ["-m", "loopaware_pool", "run", *options]
        how = {"cwd": tmp_path, "stdin": subprocess.DEVNULL, "text": True} | how
        done = subprocess.run(
            [sys.executable, *python, *ours, *map(str, program)],
            capture_output=True,
            timeout=60,
            check=False,
            **how,
        )
        assert code is None or done.returncode == code, done.stderr
        return done

    return run


def report_of(done):
    """What `--json` has told: the accounts of the processes, the main one first."""
    return json.loads(done.stderr.splitlines()[-1])["processes"]


# ---- how a program is run ----


def test_a_script_runs_on_our_pools(run, write):
    """And says nothing of it, unless it is asked to."""
    done = run([], write(MAKE))
    assert (done.stdout, done.stderr) == ("loopaware_pool.asyncpg\n", "")


@pytest.mark.parametrize("how", ["script", "module", "package", "folder"])
def test_a_program_sees_nothing_of_how_it_was_started(run, write, tmp_path, how):
    """The same arguments, path, standard input, parent, flags and site modules as with Python alone."""
    write(FACTS, "folder/__main__.py")
    write(FACTS, "package/__main__.py")
    write("", "package/__init__.py")
    write(FACTS, "module.py")
    write("seen = []", "site/sitecustomize_of_the_user.py")
    write("import sitecustomize_of_the_user as user; user.seen.append('imported')", "site/sitecustomize.py")
    program = {
        "script": ["folder/__main__.py"],
        "module": ["-m", "module"],
        "package": ["-m", "package"],
        "folder": ["folder"],
    }
    arguments = [*program[how], "--report", "-m", "x", "--", "-h"]
    environment = {**os.environ, "PARENT": str(os.getpid()), "PYTHONPATH": str(tmp_path / "site")}
    how = {"python": ["-X", "dev", "-O"], "env": environment, "stdin": None, "text": False, "input": b"\xff\0\r\n"}
    plain, ours = (run(options, *arguments, **how) for options in (None, []))
    assert json.loads(ours.stdout) == json.loads(plain.stdout)
    assert json.loads(ours.stdout)["user"] == ["imported"]
    assert ours.stderr == plain.stderr


def test_without_a_sitecustomize_of_its_own_a_program_has_ours(run, write):
    """Python would not end well without one in `sys.modules`."""
    path = write("import sys; print(sys.path, len(sys.modules['sitecustomize'].__name__))")
    for paths in ({}, {"PYTHONPATH": ""}):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | paths
        ours = run([], path, env=environment)
        assert not ours.stderr
        path_of_python = run(None, "-c", "import sys; print(sys.path[1:])", env=environment).stdout
        assert ours.stdout.replace(f"'{path.parent}', ", "", 1) == path_of_python.replace("\n", " 13\n")


def test_a_command_that_is_installed_may_be_named(run, write, tmp_path):
    """As `procrastinate`; it is looked for on PATH, and beside Python."""
    command = write(f"#!{sys.executable}\nimport sys\n{MAKE}\nprint(sys.argv[1:])", "bin/serve")
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    done = run([], "serve", "--port", 1, env=environment)
    assert done.stdout == "loopaware_pool.asyncpg\n['--port', '1']\n"
    environment["PATH"] = str(tmp_path)
    done = run([], "loopaware-pool", "--version", env=environment)
    assert done.stdout.startswith("loopaware-pool ")


def test_two_dashes_end_the_commands_options(run, write):
    """So that a script may have a strange name."""
    write("import sys; print(sys.argv)", "--report")
    for options in ([], ["--json"]):
        assert run(options, "--", "./--report", "-x").stdout == "['./--report', '-x']\n"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("import sys; sys.exit(7)", 7),
        ("raise SystemExit", 0),
        ("raise SystemExit('too bad')", 1),
        ("def fail():\n    1 / 0\nfail()", 1),
        ("import os; os._exit(9)", 9),
        ("this is no Python", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_the_exit_code_and_the_traceback_are_the_programs(run, write, source, code):
    """No frame of ours is in it."""
    path = write(source)
    plain, ours = run(None, path, code=code), run([], path, code=code)
    assert (ours.stdout, ours.stderr) == (plain.stdout, plain.stderr)


WAIT = """
import signal, sys, time
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize(("source", "told"), [("", "no pools of ours were"), (MAKE, "1 pool of ours was")])
@pytest.mark.parametrize("options", [[], ["--report"]])
def test_ctrl_c_ends_the_program(write, options, source, told):
    """As it ends one that Python runs: by the signal, for which a shell says 130."""
    path = write(source.replace("print", "") + WAIT)
    command = [sys.executable, "-m", "loopaware_pool", "run", *options, path]
    with child_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in said
    assert (f"loopaware-pool: {told} made" in said) == bool(options)


def test_a_shell_says_130_after_ctrl_c(run, write):
    """The code of the other commands."""
    path = write("import signal\nsignal.raise_signal(signal.SIGINT)")
    command = f"{sys.executable} -m loopaware_pool run {path}; echo $?"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.stdout == "130\n"


def test_signals_are_the_programs_own(run, write):
    """Those that the command handles, and those that Python ignores, are as Python sets them."""
    path = write("""
        import signal
        names = "SIGTERM", "SIGINT", "SIGHUP", "SIGPIPE", "SIGXFSZ"
        print([str(signal.getsignal(getattr(signal, name))) for name in names])
        import subprocess
        grep = ["grep", "Sig[BI]", "/proc/self/status"]
        print(subprocess.run(grep, capture_output=True, restore_signals=False).stdout)
    """)
    plain, ours = (run(options, path, preexec_fn=_listen) for options in (None, []))
    assert re.sub("0x[0-9a-f]+", "", ours.stdout) == re.sub("0x[0-9a-f]+", "", plain.stdout)


def _listen():
    for name in ("SIGINT", "SIGTERM", "SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def test_a_command_of_another_language_does_not_inherit_what_python_ignores(run, write):
    """A broken pipe ends it, as it should."""
    command = write("#!/bin/sh\ngrep SigIgn /proc/self/status\n", "bin/serve")
    command.chmod(0o755)
    done = run([], "serve", env={**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"})
    assert not int(done.stdout.split()[1], 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "run: nothing to run: give a script, a command, or -m and a module"),
        (["--report"], "run: nothing to run: give a script, a command, or -m and a module"),
        (["-m"], "run: nothing to run: give a script, a command, or -m and a module"),
        (["nowhere.py"], "run: nowhere.py: there is no such file, and no such command"),
        (["--loud", "x.py"], "run: unrecognized arguments: --loud"),
    ],
)
def test_a_slip_takes_one_line(run, arguments, complaint):
    """And exit code 2; nothing has been started, and no folder is left."""
    done = run(arguments, code=2)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(complaint)


def test_what_cannot_be_executed_is_told(run, write, tmp_path):
    """And the folder for reports is removed."""
    write("", "bin/serve").chmod(0o755)
    (tmp_path / "bin" / "serve").write_text("#!/nowhere/python\n")
    environment = {**os.environ, "PATH": str(tmp_path / "bin"), "TMPDIR": str(tmp_path)}
    done = run(["--report"], "serve", env=environment, code=2)
    assert done.stderr.endswith("/bin/serve cannot be run: No such file or directory\n")
    assert not list(tmp_path.glob("loopaware-run-*"))


@pytest.mark.parametrize("flag", ["-I", "-E"])
def test_a_python_that_ignores_the_environment_is_refused(run, write, flag):
    """The program would run on the drivers' own pools."""
    done = run([], write(MAKE), python=[flag], code=2)
    assert done.stderr.startswith("run: Python was started with -I, -E or -S")


def test_the_help_says_whose_the_exit_code_is(run):
    """Not that of the other commands."""
    said = run(["--help"]).stdout
    assert "(SCRIPT | COMMAND | -m MODULE) ..." in said
    assert "exit code: the program's; 2: there is nothing to run" in said


# ---- children ----

CHILDREN = f"""
import multiprocessing, os, subprocess, sys
import asyncpg

def make():
    print(type(asyncpg.create_pool({NOWHERE!r}, name=f"of {{os.getpid()}}")).__module__, flush=True)

if __name__ == "__main__":
    for kind in ("fork", "spawn", "forkserver"):
        child = multiprocessing.get_context(kind).Process(target=make)
        child.start()
        child.join()
    subprocess.run([sys.executable, "-c", "import program; program.make()"], check=True)
    pid = os.fork()
    if not pid:
        make()
        sys.exit()
    os.waitpid(pid, 0)
"""


def test_children_run_on_our_pools_too(run, write):
    """Those of multiprocessing, of subprocess, and of a plain fork; each tells of its own pools."""
    done = run(["--json"], write(CHILDREN))
    assert done.stdout.splitlines() == ["loopaware_pool.asyncpg"] * 5
    main, *children = report_of(done)
    assert main["pools"] == []
    told = [[pool["name"] for pool in child["pools"]] for child in children]
    assert told == [[f"of {child['process']}"] for child in children]
    assert len(told) == 5


def test_a_pool_of_the_parents_is_told_of_a_child_only_if_it_was_used_there(run, write, dsn):
    """A fork has a copy of every pool. Its connections, and what it leaves open, are its parent's."""
    path = write(f"""
        import asyncio, asyncpg, os, sys
        pools = [asyncpg.create_pool({dsn!r}, name=name, min_size=0) for name in ("used", "unused")]
        async def use(): await (await pools[0]).fetchval("SELECT 1")
        asyncio.run(use())
        pid = os.fork()
        if not pid:
            asyncio.run(use())
            sys.exit()
        os.waitpid(pid, 0)
    """)
    main, child = report_of(run(["--json"], path))
    assert [(pool["name"], pool["acquired"]) for pool in main["pools"]] == [("used", 1), ("unused", 0)]
    assert [(pool["name"], pool["acquired"]) for pool in child["pools"]] == [("used", 1)]
    assert (main["is_audited"], child["is_audited"]) == (True, False)


def test_ctrl_c_ends_a_child_as_it_would_have(run, write):
    """A child without a pool has nothing to tell, and its end is not disturbed."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); signal.raise_signal(signal.SIGINT)"
    path = write(f"import subprocess, sys; print(subprocess.run([sys.executable, '-c', {code!r}]).returncode)")
    assert run(["--report"], path).stdout == f"{-signal.SIGINT}\n"


def test_another_python_that_lacks_our_package_is_left_alone(monkeypatch):
    """A program may start one; it would inherit PYTHONPATH."""
    monkeypatch.setitem(sys.modules, "loopaware_pool.cli.run.process", None)
    monkeypatch.setitem(sys.modules, "sitecustomize", sys)
    monkeypatch.setattr(sys, "path", sys.path[:])
    path = Path(hook.__file__).with_name("sitecustomize.py")
    assert "start" not in runpy.run_path(str(path), run_name="sitecustomize")


def test_a_process_that_was_asked_for_nothing_does_nothing(run, write):
    """If only PYTHONPATH was passed on."""
    environment = {**os.environ, "PYTHONPATH": str(Path(hook.__file__).parent)}
    done = run(None, write("import asyncpg; print(asyncpg.Pool.__module__)"), env=environment)
    assert (done.stdout, done.stderr) == ("asyncpg.pool\n", "")


# ---- what is reported ----


def test_the_report_tells_what_the_pools_did_and_what_is_left_open(run, write, dsn):
    """Where each was made, and by which line what is open was opened."""
    path = write(f"""
        import asyncio
        from asyncpg import create_pool
        from psycopg_pool import AsyncConnectionPool, AsyncNullConnectionPool

        async def main():
            async with create_pool({dsn!r}, name="first", min_size=1, max_size=1) as pool:
                async with pool.acquire():
                    try:
                        await pool.acquire(timeout=0.01)
                    except TimeoutError:
                        pass
                while not pool.stats().idle:  # the first reset is not followed
                    await asyncio.sleep(0)
                async with asyncio.TaskGroup() as group:
                    for _ in range(3):
                        group.create_task(pool.fetchval("SELECT 1"))
            second = AsyncConnectionPool({dsn!r}, name="sec\\x1b\\nond", open=False)
            await second.open()
            async with second.connection() as connection:
                await connection.execute("SELECT 1")

        asyncio.run(main())
        import socket
        left = socket.socket()
        print("done")
    """)
    done = run(["--report"], path)
    assert done.stdout == "done\n"
    lines = done.stderr.splitlines()
    assert lines[0] == "loopaware-pool: 2 pools of ours were made"
    assert lines[1] == f"  first (asyncpg), made at {path}:7"
    assert re.fullmatch(
        r"    4 acquired; 2 of them after waiting, for [\d.e-]+ s in all; 1 timed out; "
        "connections: 1 opened, at most 1 at once; closed at the end",
        lines[2],
    )
    assert lines[3] == rf"  sec\u001b\u000aond (psycopg), made at {path}:18"
    assert re.fullmatch(
        r"    1 acquired(; 1 of them .* s in all)?; connections: \d opened, at most 4 at once; open at the end",
        lines[4],
    )
    assert lines[5] == "  left open since the first pool was made: 1"
    assert re.fullmatch(rf"    fd \d+: socket .*, opened at {path}:25 in <module>", lines[6])
    assert lines[7:] == ["  registrations left with a loop: 0"]


def test_what_was_left_when_its_loop_ended_is_told_once(run, write, dsn):
    """Though it is open at the end of the program, too."""
    path = write(f"""
        import asyncio, asyncpg
        pool = asyncpg.create_pool({dsn!r})
        left = asyncio.run(asyncpg.connect({dsn!r}))
    """)
    (main,) = report_of(run(["--json"], path))
    assert len(main["leaked"]) == 1


def test_a_program_without_a_pool_is_told_of(run, write):
    """It may be that it uses another driver."""
    assert run(["--report"], write("print('done')")).stderr == "loopaware-pool: no pools of ours were made\n"


def test_json_is_one_line_and_the_last(run, write):
    """On the error output, so that the program's output is its own."""
    path = write(f"{MAKE}\nimport sys; sys.stderr.write('words\\n')")
    done = run(["--json"], path)
    assert done.stdout == "loopaware_pool.asyncpg\n"
    assert done.stderr.splitlines()[0] == "words"
    (main,) = report_of(done)
    (pool,) = main["pools"]
    assert pool | {"name": "mine", "kind": "asyncpg", "made_at": f"{path}:3", "state": "new", "max_size": 10} == pool
    assert (main["leaked"], main["stale_registrations"]) == ([], [])


@pytest.mark.parametrize("ending", ["", "raise ZeroDivisionError", "import sys; sys.exit(3)"])
def test_a_program_that_fails_is_reported_too(run, write, tmp_path, ending):
    """At its very end: after its own exit functions, and after the traceback. Nothing is left in the file system."""
    path = write(f"import atexit, sys\natexit.register(lambda: print('last words', file=sys.stderr))\n{MAKE}\n{ending}")
    done = run(["--report"], path, env={**os.environ, "TMPDIR": str(tmp_path)}, code=None)
    assert done.returncode == {"": 0, "raise ZeroDivisionError": 1}.get(ending, 3)
    assert ("ZeroDivisionError" in done.stderr.partition("last words")[0]) == ("Zero" in ending)
    assert done.stderr.partition("last words\n")[2].startswith("loopaware-pool: 1 pool of ours was made\n")
    assert not list(tmp_path.glob("loopaware-run-*"))


def test_a_closed_error_output_does_no_harm(run, write):
    """Then the report is told to nobody."""
    run(["--report"], write(f"{MAKE}\nimport sys; sys.stderr.close()"))


def test_a_child_that_outlives_the_program_does_no_harm(tmp_path):
    """The folder for its report has gone."""
    account = {"process": os.getpid(), "pools": []}
    report.write(account, str(tmp_path / "gone"))
    report.write(account, str(tmp_path))
    assert json.loads((tmp_path / f"{os.getpid()}.json").read_text()) == account


def test_many_open_fds_are_not_all_listed(run, write):
    """The rest is in `--json`."""
    path = write(f"{MAKE}\nimport socket\nleft = [socket.socket() for _ in range(25)]")
    said = run(["--report"], path).stderr
    assert said.count("opened at") == 20
    assert "    and 5 more, which --json lists\n" in said


def test_sqlalchemy_is_swapped_only_if_that_is_asked_for(run, write):
    """The option reaches the program, and its children."""
    path = write("""
        import subprocess, sys
        print(sys.modules["loopaware_pool.swapping.install"]._INSTALLATION._has_sqlalchemy)
        code = "import sys; print(sys.modules['loopaware_pool.swapping.install']._INSTALLATION._has_sqlalchemy)"
        sys.stdout.flush()
        subprocess.run([sys.executable, "-c", code])
    """)
    assert run(["--sqlalchemy"], path).stdout == "True\nTrue\n"
    assert run([], path).stdout == "False\nFalse\n"


def test_the_commands_are_there_for_the_package_as_installed():
    """The hook is a file of the package, which a wheel brings along."""
    assert shutil.which("loopaware-pool", path=os.path.dirname(sys.executable))
    assert Path(hook.__file__).with_name("sitecustomize.py").is_file()
