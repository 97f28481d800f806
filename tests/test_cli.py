"""The `loopaware-pool` command: what all its commands share, and `audit` and `bench`."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import types
import zipfile
from importlib import import_module
from pathlib import Path

import psutil
import psycopg
import pytest

import servers
from loopaware_pool import __version__
from loopaware_pool.cli import main as command
from running import DEADLINE_SECONDS, child_process, eventually

pytestmark = pytest.mark.both_pythons

ROOT = Path(__file__).parents[1]
SECRET = "hunter2"


def run(*arguments, cwd=None, code=None):
    """Run the command in a process of its own; with *code*, check its exit code and that its complaint is one line."""
    done = subprocess.run(
        [sys.executable, "-m", "loopaware_pool", *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert SECRET not in done.stdout + done.stderr
    if code is not None:
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stderr.count("\n") == (code == 2), done.stderr
    return done


@pytest.fixture
def write(tmp_path):
    """Writes a Python file, and gives its path."""

    def write(source, name="program.py"):
        path = tmp_path / name
        path.write_text(source)
        return path

    return write


# ---- what all share ----


@pytest.mark.parametrize("name", ["demo", "audit", "lint", "probe", "bench"])
def test_each_command_tells_its_exit_codes_and_can_write_json(name):
    """In its help."""
    said = run(name, "--help", code=0).stdout
    assert said.lower().startswith(f"usage: loopaware-pool {name} ")  # rich-argparse has titles in capitals
    assert "exit codes: 0: fine; 1: it found something; 2: it could not do it; 130: interrupted" in said
    assert "--json" in said


def test_the_help_lists_the_commands():
    """All of them, without importing one."""
    said = run("--help", code=0).stdout
    assert [line.split()[0] for line in said.split("\n\n")[2].splitlines()] == list(command.COMMANDS)


def test_the_version_is_told():
    """The package's."""
    assert run("--version", code=0).stdout == f"loopaware-pool {__version__}\n"


def test_the_console_script_is_the_same_as_the_module():
    """One function."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["loopaware-pool"].partition(":")
    assert getattr(import_module(module), name) is import_module("loopaware_pool.__main__").main


def test_each_driver_has_an_extra_that_brings_all_it_needs():
    """psycopg's a libpq, which a slim image has not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, needed = project["optional-dependencies"], project["dependencies"]
    assert extras["asyncpg"] == [each for each in needed if each.startswith("asyncpg")]
    assert extras["psycopg"] == [
        "psycopg[binary,pool]" + each[len("psycopg[pool]") :] for each in needed if "psycopg" in each
    ]


def test_lint_needs_no_package_at_all():
    """Neither a driver nor what makes the output pretty: the pre-commit hook is to be quick."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from loopaware_pool.cli.main import main; "
    code += "sys.exit(main(sys.argv[2:]))"
    source = Path(command.__file__)
    arguments = [sys.executable, "-I", "-S", "-c", code, str(source.parents[2]), "lint", str(source)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Nothing found in 1 file.\n", "")


@pytest.mark.parametrize("is_installed", [True, False])
def test_the_help_is_coloured_by_rich_argparse_where_there_is_one(is_installed, monkeypatch, capsys):
    """And plain where there is none."""

    class Coloured(argparse.RawDescriptionHelpFormatter):
        def format_help(self):
            return "in colour\n"

    module = types.SimpleNamespace(RawDescriptionRichHelpFormatter=Coloured) if is_installed else None
    monkeypatch.setitem(sys.modules, "rich_argparse", module)
    with pytest.raises(SystemExit) as end:
        command.main(["lint", "--help"])
    assert end.value.code == 0
    assert (capsys.readouterr().out == "in colour\n") is is_installed


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["wash"], "loopaware-pool: argument COMMAND: invalid choice: 'wash' (choose from "),
        ([], "loopaware-pool: the following arguments are required: COMMAND"),
        (["lint", "nowhere"], "lint: nowhere is not there: give a file or a folder"),
        (["probe", f"postgresql://u:{SECRET}@h:port/d"], "probe: the DSN is not understood"),
        (["demo", f"postgresql://u:{SECRET}@127.0.0.1:1/d"], "demo: no connection to 127.0.0.1:1"),
        (["bench", "--contender", "pgpool"], "bench: argument --contender: invalid choice: 'pgpool'"),
    ],
)
def test_a_slip_takes_one_line(arguments, complaint):
    """It begins with the command's name, and says what to do."""
    assert run(*arguments, code=2).stderr.startswith(complaint)


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    """And the extra that brings it."""
    monkeypatch.setitem(sys.modules, "loopaware_pool.cli.demo.command", None)
    assert command.main(["demo"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("demo: something is not installed (")
    assert said.endswith("): pip install 'loopaware-pool[cli]'\n")


def test_a_reader_that_has_gone_is_no_reason_to_complain(write):
    """As with `| head`; but not all has been said, so the exit code is not 0."""
    arguments = [sys.executable, "-m", "loopaware_pool", "lint", "--rules"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (2, "")


STUCK = """
import pathlib, subprocess, time

def make(dsn):
    subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pathlib.Path("began").touch()
    time.sleep(60)

if __name__ == "__main__":
    make(None)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", ["script", "burst"])
def test_an_interrupted_command_leaves_nothing_running(number, what, write, tmp_path):
    """Neither a server, nor what it audits, nor what that has started."""
    began = tmp_path / "began"
    write(STUCK, "stuck.py")
    chosen = ["--script", "stuck.py"] if what == "script" else ["--pool", "stuck:make"]
    arguments = [sys.executable, "-m", "loopaware_pool", "audit", *chosen]
    with child_process(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        eventually(began.exists, "it has begun")
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said == "\naudit: interrupted; nothing it has started is left running\n"
    assert len(started) >= 2
    eventually(lambda: not any(map(runs, started)), "all have ended")


def runs(process):
    """Whether a process goes on: it may end while it is looked at."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("what", ["script", "burst"])
def test_a_command_that_ignores_ctrl_c_ends_when_it_is_told_to(what, write, tmp_path):
    """As it does in the background of a shell that has no jobs, and under nohup."""
    write(STUCK, "stuck.py")
    chosen = ["--script", "stuck.py"] if what == "script" else ["--pool", "stuck:make"]
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    arguments = [*ignoring, sys.executable, "-m", "loopaware_pool", "audit", *chosen]
    with child_process(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        eventually((tmp_path / "began").exists, "it has begun")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130
    assert said == "\naudit: interrupted; nothing it has started is left running\n"


@pytest.fixture
def trap(tmp_path):
    """A folder whose files are called as modules that the commands import, and take note if one is; and the note."""
    note = tmp_path / "note"
    folder = tmp_path / "trap"
    folder.mkdir()
    standard = sys.stdlib_module_names - {"sys", "builtins", "antigravity", "this"}
    for name in [*standard, "asyncpg", "psycopg", "psycopg_pool", "uvloop", "rich", "rich_argparse", "loopaware_pool"]:
        (folder / f"{name}.py").write_text(f"open({str(note)!r}, 'a').write({name!r} + ' ')\n")
    return folder, note


INSTALLED = str(Path(sys.executable).with_name("loopaware-pool"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["lint", "."],
        ["audit", "--queries", "10", "DSN"],
        [
            "audit",
            "--queries",
            "10",
            "--tasks",
            "2",
            "--size",
            "1",
            "--pool",
            "psycopg_pool",
            "--loop",
            "uvloop",
            "DSN",
        ],
        ["audit", "--script", "../script.py"],
        ["doctor", "DSN"],
        ["probe", "DSN"],
        ["top", "nowhere.sock"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_no_code_of_the_current_folder_is_run(arguments, trap, dsn, tmp_path):
    """It may be anybody's: of a repository to be looked at, or a folder of downloads."""
    folder, note = trap
    (tmp_path / "script.py").write_text("import asyncio, json\n")
    arguments = [dsn if each == "DSN" else each for each in arguments]
    done = subprocess.run([INSTALLED, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert not note.exists(), note.read_text()
    assert done.returncode in (0, 2) if arguments[0] == "top" else done.returncode in (0, 1), done.stderr


def test_the_pre_commit_hook_runs_no_code_of_the_repository(trap):
    """`python -m` would: it looks for modules in the current folder first."""
    folder, note = trap
    (line,) = re.findall("^  entry: (.*)$", (ROOT / ".pre-commit-hooks.yaml").read_text(), re.MULTILINE)
    program, *arguments = line.split()
    found = shutil.which(program, path=Path(sys.executable).parent)
    done = subprocess.run([found, *arguments, "ast.py"], cwd=folder, capture_output=True, timeout=60, check=False)
    assert not note.exists(), note.read_text()
    assert done.stdout == b"Nothing found in 1 file.\n"


def test_a_script_finds_what_is_beside_it(write, tmp_path):
    """As when Python runs it; and nothing in the current folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "not_here.py").touch()
    write("", "beside.py")
    script = write("import beside, sys\ntry: import not_here\nexcept ImportError: pass\nelse: sys.exit('found')\n")
    run("audit", "--script", script, cwd=tmp_path / "elsewhere", code=0)


def test_a_script_that_fails_in_a_library_is_told_of_by_its_own_line(write):
    """What is to be mended is there."""
    script = write("import asyncio, asyncpg\nasyncio.run(asyncpg.connect('postgresql://x@127.0.0.1:1/x'))\n")
    said = run("audit", "--script", script, code=2).stderr
    assert f"{script} raised ConnectionRefusedError: " in said
    assert f" ({script}:2); mend that first" in said


# ---- demo ----


def test_the_demo_tells_what_a_user_needs_who_may_not_create(dsn):
    """It makes a schema; and there is the embedded server."""
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("CREATE ROLE poor LOGIN PASSWORD 'x'")
        try:
            said = run("demo", "--json", servers.dsn_of_role(dsn, "poor", "x"), code=2).stderr
        finally:
            admin.execute("DROP ROLE poor")
    assert said.startswith("demo: the demo makes a schema of its own, and drops it in the end, which this user may")
    assert "permission denied" in said
    assert "; give a user with CREATE on the database, or no DSN for an embedded server\n" in said


# In a process of its own: what psycopg_pool leaves registered may be another's fd by then.
GATHERING = """
import json, sys
from collections import Counter
from loopaware_pool.cli.demo import entrants, figures as demo_figures
from loopaware_pool.cli.demo.scenes import Deadlock, Step
from loopaware_pool.cli.target import Target

async def stuck(playground):
    return Deadlock(10, 0.1, is_stuck=True)

scenes = demo_figures.scenes
entrants.STUCK_SECONDS = 60.0  # nobody is stuck in what is left
step = Step("first", 2, 1, Counter({"TimeoutError": 1}), 0, 0)
scenes.use_from_five_loops = lambda playground, entrant, report: report(step)
scenes.QUERIES = scenes.PSYCOPG_QUERIES = 100
scenes.ROUNDS = 1
scenes.MESSAGE_SECONDS = 0.02
scenes.run_article_design = stuck
if "no sqlalchemy" in sys.argv:
    demo_figures.has_sqlalchemy = lambda: False
print(json.dumps(demo_figures.gather(Target(sys.argv[1], "a server"))))
"""

SHOWING = """
import sys
from rich.console import Console
from loopaware_pool.cli.demo import show
from loopaware_pool.cli.demo.entrants import open_playground

if "no sqlalchemy" in sys.argv:
    show.has_sqlalchemy = lambda: False
with open_playground(sys.argv[1]) as playground:
    show._show_sqlalchemy(Console(width=200), playground)
"""


def test_the_demos_figures_can_be_written_as_json(dsn):
    """Errors are counted by their text; the scenes that take their time are left out here."""
    told = json.loads(in_python(GATHERING, dsn, "no sqlalchemy"))
    assert told["sqlalchemy"] is None
    assert told["server"] == "a server"
    assert told["article_design"]["is_stuck"]
    assert told["asyncpg"]["ours"]["five_loops"][0]["errors"] == {"TimeoutError": 1}
    assert told["psycopg"]["theirs"]["rounds"][0]["queries_per_second"] > 0
    assert told["psycopg"]["given_back_under_query"]["ours"]["heard"] == 3


def in_python(program, *arguments):
    """Run a program; what it printed."""
    ended = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    assert ended.stderr == ""
    return ended.stdout


# In a process of its own, as the threads that SQLAlchemy's own pool leaves stuck end with it.
ENGINES = """
import json, sys
from loopaware_pool.cli.demo import engines, entrants, figures
from loopaware_pool.cli.demo.entrants import open_playground

two_threads = engines._two_threads

def where_theirs_is_stuck(playground, entrant, engine):
    engines.LOOP_SECONDS = AMPLE if entrant.name == "loopaware-pool" else 1.0
    outcomes = two_threads(playground, entrant, engine)
    engines.LOOP_SECONDS = AMPLE
    return outcomes

# A busy machine needs more for what ends than anybody who watches would wait for what does not.
engines.LOOP_SECONDS = entrants.STUCK_SECONDS = AMPLE = 60.0
engines._two_threads = where_theirs_is_stuck
with open_playground(sys.argv[1]) as playground:
    print(json.dumps(figures._engines(playground)))
"""


def test_the_demo_shows_an_engine_on_many_loops(dsn):
    """On our pool every query is answered, and nothing is left; on SQLAlchemy's own, a second loop fails."""
    told = json.loads(in_python(ENGINES, dsn))
    theirs, ours = ({one["name"]: one for one in told[side]["programs"]} for side in ("theirs", "ours"))
    for program in ours.values():
        assert program["answered"] == program["asked"] > 0
        assert (program["errors"], program["sockets"], program["sessions"]) == ({}, 0, 0)
    for name in ("three asyncio.run()", "a loop for each test", "15 killed while idle"):
        assert 0 < theirs[name]["answered"] < theirs[name]["asked"]
    assert not any("0x" in error or "\n" in error for one in theirs.values() for error in one["errors"])
    assert theirs.keys() == ours.keys()


def test_the_demo_tells_how_to_install_what_it_does_not_show(dsn):
    """One line, where SQLAlchemy is not installed."""
    said = in_python(SHOWING, dsn, "no sqlalchemy")
    assert said.endswith(
        "Not shown: SQLAlchemy is not installed. To install it: pip install 'loopaware-pool[sqlalchemy]'\n"
    )


# ---- audit: a burst ----

FACTORIES = """
import asyncpg, psycopg_pool
from contextlib import asynccontextmanager

class Bare:
    def __init__(self, dsn, size):
        self.dsn, self.size, self.free, self.kept = dsn, size, [], []

    async def acquire(self):
        return self.free.pop() if self.free else await asyncpg.connect(self.dsn)

    async def release(self, connection):
        self.free.append(connection)

    async def close(self):
        for connection in self.free:
            await connection.close()

kept = []
numbers = iter(range(100_000))

class Leaky(Bare):
    async def acquire(self):
        if next(numbers) % 10 == 0:
            kept.append(await asyncpg.connect(self.dsn))
        return await super().acquire()

class LateLeaky(Leaky):
    async def close(self):
        await super().close()
        while kept:
            await kept.pop().close()

class Late(Bare):
    async def acquire(self):
        if next(numbers) in (50, 100):
            self.free.insert(0, await asyncpg.connect(self.dsn))
        return await super().acquire()

async def by_coroutine(dsn):
    return await asyncpg.create_pool(dsn, min_size=1, max_size=2)

@asynccontextmanager
async def by_context(dsn, size):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=size, max_size=size, open=False) as pool:
        yield pool

class Unclosable:
    def __init__(self, dsn): pass

class Empty(Unclosable):
    def close(self): pass

def raises(dsn):
    raise ValueError("not with postgresql://u:hunter2@h/d")

def stuck(dsn):
    import time
    time.sleep(60)

not_callable = 7
"""
SMALL = ("--queries", "200", "--tasks", "5", "--size", "3")


@pytest.fixture
def factories(write, tmp_path):
    """A folder with a module of factories."""
    write(FACTORIES, "factories.py")
    return tmp_path


@pytest.mark.both_drivers
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("pool", ["ours", "ours-psycopg", "asyncpg", "psycopg_pool"])
def test_the_pools_that_have_a_name_leave_nothing(pool, loop, dsn):
    """On both event loops. Ours may leave nothing, others what the article measured."""
    found = json.loads(run("audit", dsn, "--pool", pool, "--loop", loop, "--json", *SMALL, code=0).stdout)
    assert found["passed"]
    assert (found["pool"], found["loop"], found["queries"], found["tasks"], found["size"]) == (pool, loop, 200, 5, 3)
    assert found["max_leak"] == (0 if pool.startswith("ours") else 5)
    assert (found["leaked_per_10k"], found["leaked"], found["stale_registrations"]) == (0, [], [])


@pytest.mark.parametrize("factory", ["Bare", "by_coroutine", "by_context"])
def test_a_pool_may_be_made_by_any_factory(factory, factories, dsn):
    """A class, a coroutine function or an async context manager, in the current folder."""
    said = run("audit", dsn, "--pool", f"factories:{factory}", *SMALL, cwd=factories, code=0).stdout
    assert said.startswith(f"factories:{factory}: 200 queries by 5 tasks on 3 connections; asyncio, PostgreSQL ")
    assert said.endswith("\npassed\n")


def test_a_pool_may_open_its_connections_one_by_one(factories, dsn):
    """Those that it opens late are no leak, up to its size."""
    options = ("--pool", "factories:Late", "--max-leak", "0", "--queries", "200", "--tasks", "1")
    run("audit", dsn, *options, "--size", "3", cwd=factories, code=0)
    run("audit", dsn, *options, "--size", "2", cwd=factories, code=1)


def test_the_drivers_own_factories_are_such(dsn):
    """They are given the sizes that they have a name for."""
    run("audit", dsn, "--pool", "asyncpg:create_pool", *SMALL, code=0)
    run("audit", dsn, "--pool", "psycopg_pool:AsyncConnectionPool", *SMALL, code=0)


@pytest.mark.parametrize("factory", ["Leaky", "LateLeaky"])
def test_a_pool_that_leaks_is_found_with_the_line(factory, factories, dsn):
    """Whether or not it closes in the end what it has lost meanwhile: one connection in ten leases, here."""
    found = json.loads(
        run("audit", dsn, "--pool", f"factories:{factory}", "--json", *SMALL, cwd=factories, code=1).stdout
    )
    assert not found["passed"]
    line = next(n for n, line in enumerate(FACTORIES.splitlines(), 1) if "kept.append" in line)
    at_fault = [each for each in found["leaked"] if each["opened_at"].endswith(f"factories.py:{line} in Leaky.acquire")]
    assert len(at_fault) >= 20
    assert {each["kind"] for each in at_fault} == {"socket"}
    assert {each["peer"] for each in at_fault} == {dsn.partition("@")[2].partition("/")[0]}
    assert found["leaked_per_10k"] >= 900


def test_what_is_let_pass_can_be_told(factories, dsn):
    """Per 10,000 queries."""
    options = ("--pool", "factories:Leaky", "--max-leak", "10000", *SMALL)
    said = run("audit", dsn, *options, cwd=factories, code=0).stdout
    assert "(10000 let pass)" in said
    assert "more, which --json lists" in said


def test_without_a_dsn_there_is_a_server():
    """An embedded one."""
    assert "(embedded)" in run("audit", *SMALL, code=0).stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([f"postgresql://u:{SECRET}@127.0.0.1:1/d"], "audit: no connection to 127.0.0.1:1: "),
        ([f"postgresql://u:{SECRET}@h:port/d"], "audit: the DSN is not understood: "),
        ([f"postgresql://u:{SECRET}@h/d"] * 2, "audit: more than one DSN was given; give one, "),
        (["--pool", "pgpool"], "audit: --pool 'pgpool': no such pool; give ours, "),
        (["--pool", f"postgresql://u:{SECRET}@h/d"], "audit: --pool 'postgresql://***@h/d': no such pool; "),
        (["--script", f"postgresql://u:{SECRET}@h/d"], "audit: --script postgresql://***@h/d: there is no such file; "),
        (["--pool", "no_such_module:make"], "audit: --pool no_such_module:make: no_such_module cannot be imported ("),
        (["--pool", "factories:nothing"], "audit: --pool factories:nothing: factories has no callable nothing; name "),
        (["--pool", "factories:not_callable"], "audit: --pool factories:not_callable: factories has no callable "),
        (["--queries", "0"], "audit: argument --queries: '0': expected a whole number, 1 or more"),
        (["--tasks", "many"], "audit: argument --tasks: 'many': expected a whole number, 1 or more"),
        (["--max-leak", "nan"], "audit: argument --max-leak: 'nan': expected a number, 0 or more"),
        (["--timeout", "0"], "audit: argument --timeout: '0': expected seconds, 0.1 or more"),
        (["--loop", "trio"], "audit: argument --loop: invalid choice: 'trio'"),
        (["--script", "nowhere.py"], "audit: --script nowhere.py: there is no such file; give the path of "),
        (["--script", "."], "audit: --script .: there is no such file; give the path of "),
        (["--script", "factories.py", "--size", "3"], "audit: --size is for a burst of queries, not for --script; "),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, complaint, factories):
    """Before anything is started."""
    assert run("audit", *arguments, cwd=factories, code=2).stderr.startswith(complaint)


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        ("Unclosable", "audit: factories.Unclosable, which the factory made, cannot be closed; it needs close(), "),
        ("Empty", "audit: factories.Empty, which the factory made, is no pool; it needs acquire() or connection()"),
        ("raises", "audit: the pool factories:raises failed with ValueError: not with postgresql://***@h/d ("),
        ("stuck", "audit: the burst through factories:stuck did not end within 3 s, and was killed; "),
    ],
)
def test_a_pool_that_is_none_is_told_in_one_line(factory, complaint, factories, dsn):
    """Whatever it does."""
    options = ("--pool", f"factories:{factory}", "--timeout", seconds_for(complaint))
    assert run("audit", dsn, *options, cwd=factories, code=2).stderr.startswith(complaint)


def seconds_for(complaint):
    """Those that are to run out are few; else there is time for a process to start, which counts."""
    return 3 if "did not end within 3 s" in complaint else 60


# ---- audit: a script ----


def test_a_script_is_run_as_python_runs_it(write, tmp_path):
    """As `__main__`, with its arguments, and its own folder to import from."""
    write("answer = 42", "beside.py")
    script = write("import sys, beside\nif __name__ == '__main__':\n    print(sys.argv[1:], beside.answer)")
    said = run("audit", "--script", script, "a", "--timeout", "60", code=0).stdout
    assert said == f"['a'] 42\n{script}\n  left open at its end: 0\n  registrations left with a loop: 0\npassed\n"
    assert run("audit", "--script", script, "--", "--size", "3", code=0).stdout.startswith("['--size', '3'] 42\n")


def test_what_a_script_prints_is_not_among_the_json(write):
    """It goes to the error output; and what it is given, which may have a password in it, is not told."""
    done = run("audit", "--json", "--script", write("print('hello')"), f"postgresql://u:{SECRET}@h/d")
    assert json.loads(done.stdout)["passed"]
    assert done.stderr == "hello\n"


def test_what_a_script_closes_when_it_ends_is_not_left(write, tmp_path):
    """By an exit function, in a thread that it waits for, or as a logger does."""
    script = write(
        "import atexit, logging, socket, sys, threading, time\n"
        "logging.basicConfig(filename=sys.argv[1], force=True)\n"
        "atexit.register(socket.socket().close)\n"
        "def work():\n    with socket.socket():\n        time.sleep(0.2)\n"
        "threading.Thread(target=work).start()\n"
    )
    run("audit", "--script", script, tmp_path / "log", code=0)


def test_what_its_globals_hold_is_left(write):
    """At the end of a program they are still there."""
    said = run("audit", "--script", write("import socket\nsock = socket.socket()"), code=1).stdout
    assert "left open at its end: 1\n" in said
    assert "program.py:2 in <module>" in said
    assert said.endswith("FAILED\n")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f():\n    raise ValueError('a\\nb')\nf()", "{} raised ValueError: a b ({}:2); mend that first"),
        ("raise SystemExit(3)", "{} exited with 3; audit a run that succeeds"),
        ("import sys; sys.exit('no postgresql://u:hunter2@h/d')", "{} exited with 'no postgresql://***@h/d'; audit"),
        ("1 +", "{} raised SyntaxError: invalid syntax (program.py, line 1); mend that first"),
        ("import os; os._exit(0)", "{} ended at once, with exit code 0, so nothing is known of it; "),
        ("import os; os.kill(os.getpid(), 9)", "{} was ended by SIGKILL, so nothing is known of it; "),
        ("while True: pass", "{} did not end within 3 s, and was killed; give it less to do, or more --timeout"),
    ],
)
def test_a_script_that_fails_is_told_in_one_line(source, complaint, write):
    """Nothing is known of what it would have left."""
    script = write(source)
    said = run("audit", "--script", script, "--timeout", seconds_for(complaint), code=2).stderr
    assert said.startswith("audit: " + complaint.replace("{}", str(script)))


def test_nothing_a_script_has_started_is_left_running(write, tmp_path):
    """Processes that outlive it end with the audit."""
    number = tmp_path / "pid"
    script = write(
        "import pathlib, subprocess, sys\n"
        "sleeper = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "pathlib.Path(sys.argv[1]).write_text(str(sleeper.pid))"
    )
    run("audit", "--script", script, number, code=0)
    eventually(lambda: not psutil.pid_exists(int(number.read_text())), "it has ended")


# ---- bench ----


def test_the_benchmarks_come_with_the_wheel(tmp_path):
    """And are found there, though the current folder has something else of that name."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, timeout=60, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    code = "import sys; sys.path.insert(0, 'installed'); from loopaware_pool.cli.main import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "--contender" in done.stdout, done.stderr
