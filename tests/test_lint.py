"""`lint` finds what leaks, by reading; it leaves the drop-ins, and whoever gives back, alone."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import loopaware_pool
from loopaware_pool.cli.lint import command as lint
from loopaware_pool.cli.lint.checker import check_source
from loopaware_pool.cli.lint.output import FORMATS
from loopaware_pool.cli.lint.rules import RULES

pytestmark = pytest.mark.both_pythons


def codes(source):
    return [found.code for found in check_source(source.encode(), "app.py")]


def inside(body, head="import asyncpg\nfrom psycopg_pool import AsyncConnectionPool\n"):
    """*body* in a coroutine function."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"{head}async def main(loop, pool, other, task_pool=None):\n{lines}\n"


BAD = {
    "import asyncpg\nasync def f(): await asyncpg.connect()": "LAP001",
    "import asyncpg as db\nasync def f(): await db.connect()": "LAP001",
    "from asyncpg import connect as c\nasync def f(): await c()": "LAP001",
    "from asyncpg.connection import connect\nasync def f(): await connect()": "LAP001",
    "from asyncpg import *\nasync def f(): await connect()": "LAP001",
    "async def f():\n    import asyncpg\n    await asyncpg.connect()": "LAP001",
    "import asyncpg\nopen_it = asyncpg.connect\nasync def f(): await open_it()": "LAP001",
    "import asyncpg\nf = lambda: asyncpg.connect()": "LAP001",
    "import asyncpg\nasync def f(): return [await asyncpg.connect() for _ in '12']": "LAP001",
    "import asyncpg\nclass A:\n    async def f(self): return await asyncpg.create_pool()": "LAP002",
    "import asyncpg.pool\ndef f(): return asyncpg.pool.create_pool()": "LAP002",
    "import asyncpg\nclass Ours(asyncpg.Pool): pass": "LAP002",
    "from psycopg_pool import AsyncConnectionPool\ndef f(): return AsyncConnectionPool('')": "LAP003",
    "import psycopg_pool\nasync def f():\n    async with psycopg_pool.AsyncNullConnectionPool('') as p: pass": "LAP003",
    "import psycopg_pool\npool = psycopg_pool.AsyncConnectionPool('', open=False)": "LAP003",
    "import psycopg_pool\nclass Ours(psycopg_pool.AsyncConnectionPool): pass": "LAP003",
    "import psycopg\nasync def f(): await psycopg.AsyncConnection.connect()": "LAP004",
    "from psycopg import AsyncConnection as C\nasync def f(): await C.connect()": "LAP004",
    "import aiopg\nasync def f(): await aiopg.create_pool('')": "LAP005",
    "from aiopg.sa import create_engine\nasync def f(): await create_engine()": "LAP005",
    inside("loop.add_reader(other.conn.fileno(), print)"): "LAP006",
    inside("fd = conn.fileno()\nloop.add_writer(fd, print)\nloop.remove_reader(fd)"): "LAP006",
    "import asyncpg\npool = asyncpg.create_pool()": "LAP007",
    "import asyncpg\nclass A:\n    pool = asyncpg.create_pool()": "LAP007",
    "import psycopg_pool\npool = psycopg_pool.AsyncConnectionPool('')": "LAP007",
    "import psycopg_pool\npool = psycopg_pool.AsyncConnectionPool('', open=True)": "LAP007",
    "import asyncpg\ntry:\n    pool = asyncpg.create_pool()\nexcept Exception: raise": "LAP007",
    "import asyncpg\ndef f(pool=asyncpg.create_pool()): pass": "LAP007",
    inside("c = await pool.acquire()\nawait c.execute('')\nawait pool.release(c)"): "LAP008",
    inside("c = await other.pool.acquire(timeout=3)"): "LAP008",
    inside("await pool.acquire()"): "LAP008",
    inside("c = await loop.wait_for(pool.acquire(), 3)"): "LAP008",
    inside("c = await other.get_pool().acquire()"): "LAP008",
    inside("p = await loopaware_pool.create_pool()\nc = await p.acquire()", "import loopaware_pool\n"): "LAP008",
    "import asyncpg\nasync def f(x: asyncpg.Pool): c = await x.acquire()": "LAP008",
    "from psycopg_pool import AsyncConnectionPool as P\nasync def f(x: P[int]): await x.getconn()": "LAP008",
    inside("try:\n    c = await pool.acquire()\nexcept OSError:\n    await pool.release(c)"): "LAP008",
    "import asyncpg\nclass A:\n    async def open(self): self.c = await self.pool.acquire()": "LAP008",
}
GOOD = [
    "from loopaware_pool import create_pool\npool = create_pool()",
    "from loopaware_pool.asyncpg import create_pool, Pool\npool = create_pool()\nclass Ours(Pool): pass",
    "import loopaware_pool as asyncpg\npool = asyncpg.create_pool()",
    "import loopaware_pool.asyncpg as asyncpg\npool = asyncpg.create_pool()",
    "from loopaware_pool.psycopg import AsyncConnectionPool\npool = AsyncConnectionPool('')",
    "import loopaware_pool.psycopg as psycopg_pool\npool = psycopg_pool.AsyncConnectionPool('')",
    "try:\n    from loopaware_pool import create_pool\nexcept ImportError:\n    from asyncpg import create_pool\n"
    "async def f(): await create_pool()",
    "import asyncpg\ndef f(asyncpg): asyncpg.connect()",
    "import asyncpg\ndef f():\n    asyncpg = other()\n    asyncpg.connect()",
    "from .asyncpg import connect\nconnect()",
    "import mine.asyncpg\nmine.asyncpg.connect()",
    "class A:\n    from asyncpg import connect\n    def f(self): connect()",
    "from psycopg_pool import ConnectionPool\npool = ConnectionPool('')",
    "import psycopg\npsycopg.connect('')",
    "import asyncpg\nif __name__ == '__main__':\n    print(asyncpg.__version__)",
    inside("async with pool.acquire() as c: pass"),
    inside("async with await pool.acquire() as c: pass"),
    inside("c = await pool.acquire()\ntry:\n    pass\nfinally:\n    await pool.release(c)"),
    inside("c = await pool.getconn()\ntry:\n    pass\nfinally:\n    await pool.putconn(c)"),
    inside("return await pool.acquire()"),
    inside("c = await pool.acquire()\nawait c.execute('')\nreturn c"),
    inside("return pool.acquire()"),
    inside("c = await stack.enter_async_context(await pool.acquire())"),
    inside("await other.lock.acquire()\nawait other.semaphore.acquire()"),
    "async def f(pool): await pool.acquire()  # of no library that is known here",
    "import asyncpg\nclass A:\n    async def __aenter__(self): self.c = await self.pool.acquire()\n"
    "    async def __aexit__(self, *_): await self.pool.release(self.c)",
    inside("loop.add_reader(conn.fileno(), print)\ntry: pass\nfinally: loop.remove_reader(conn.fileno())"),
    inside("loop.add_reader(sock.fileno(), print)"),
    "import asyncpg\nclass A:\n    def on(self): self.loop.add_reader(self.conn.fileno(), self.on)\n"
    "    def off(self): self.loop.remove_reader(self.conn.fileno())",
    "",
    "# nothing but a comment",
    "\ufeffimport asyncpg",
]


@pytest.mark.parametrize("source", BAD, ids=range(len(BAD)))
def test_what_leaks_is_found(source):
    """Once, by its code, under whatever name it was imported."""
    assert codes(source) == [BAD[source]]


@pytest.mark.parametrize("source", GOOD, ids=range(len(GOOD)))
def test_what_does_not_leak_is_left_alone(source):
    """The drop-ins, names that mean something else, and leases that are given back."""
    assert codes(source) == []


def test_a_pool_of_a_script_is_not_made_at_import_time():
    """Under `if __name__ == "__main__"` it is an ordinary one."""
    assert codes("import asyncpg\nif __name__ == '__main__':\n    pool = asyncpg.create_pool()") == ["LAP002"]


def test_every_rule_is_tried():
    """Each has its bad examples."""
    assert {*BAD.values(), "LAP000"} == set(RULES)


@pytest.mark.parametrize(
    "source",
    [b"def f(:", b"print 1", b"\x00", b"# coding: nonsense\n", b"\xff", b"(" * 500, b"x = '\n", b"-" * 100_000 + b"1"],
    ids=["syntax", "python 2", "nul", "coding", "bytes", "parentheses", "string", "depth"],
)
def test_what_is_no_python_is_one_finding(source):
    """It says where, and does not end the run."""
    (found,) = check_source(source, "app.py")
    assert found.code == "LAP000"
    assert "\n" not in found.message


SUPPRESSED = [
    "import asyncpg\npool = asyncpg.create_pool()  # noqa",
    "import asyncpg\npool = asyncpg.create_pool()  # noqa: LAP007",
    "import asyncpg\npool = asyncpg.create_pool()  # NOQA:E501,lap007",
    "import asyncpg\npool = asyncpg.create_pool()  # because  # noqa: E501 LAP007",
    "import asyncpg\npool = asyncpg.create_pool(\n    1,\n)  # noqa: LAP007",
]


@pytest.mark.parametrize("source", SUPPRESSED, ids=range(len(SUPPRESSED)))
def test_a_comment_suppresses(source):
    """On the first line of what was found, or the last; all codes, or those it names."""
    assert codes(source) == []


def test_a_comment_suppresses_nothing_else():
    """Neither other codes nor other lines."""
    assert codes("import asyncpg\npool = asyncpg.create_pool()  # noqa: LAP001") == ["LAP007"]
    assert codes("import asyncpg  # noqa\npool = asyncpg.create_pool()") == ["LAP007"]


# ---- the command ----


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder to run in, with a file that leaks and one that does not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaks.py").write_text("import asyncpg\npool = asyncpg.create_pool()\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("import asyncpg\nasync def f(): await asyncpg.connect()\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "other.py").write_text("import asyncpg\npool = asyncpg.create_pool()\n")
    return tmp_path


def test_what_is_found_is_told_and_the_exit_code_is_1(project, capsys):
    """A line each, with path, line and column; folders of others are passed over."""
    assert lint.main([]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("leaks.py:2:8: LAP007 asyncpg.create_pool is called at import time")
    assert told[1].startswith("tests/test_it.py:2:22: LAP001 ")
    assert told[2] == "Found 2 in 2 files (LAP001: 1, LAP007: 1)."


def test_where_nothing_is_found_the_exit_code_is_0(project, capsys):
    """And a line says how much was looked at."""
    (project / "leaks.py").write_text("import loopaware_pool\n")
    assert lint.main(["leaks.py"]) == 0
    assert capsys.readouterr().out == "Nothing found in 1 file.\n"


def test_a_file_that_is_named_is_looked_at(project):
    """Wherever it is, whatever it is called, and once."""
    assert lint.main([".venv/other.py"]) == 1
    (project / "script").write_text("import asyncpg\npool = asyncpg.create_pool()\n")
    assert lint.main(["script"]) == 1
    assert lint.lint_paths([Path("leaks.py"), Path("leaks.py")])[1] == 1


def test_a_folder_that_cannot_be_read_is_one_line_and_exit_code_2(project, monkeypatch, capsys):
    """Not passed over: what is in it has not been looked at."""
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("tests"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert lint.main([]) == 2
    assert capsys.readouterr().err == "lint: ./tests cannot be read: Permission denied\n"


def test_what_is_no_file_in_a_folder_is_passed_over(project, capsys):
    """Links that lead nowhere or to folders, and what would never end to be read."""
    os.mkfifo("pipe.py")
    os.symlink("nowhere", "link.py")
    os.symlink(".", "again")
    assert lint.main([]) == 1
    assert capsys.readouterr().out.endswith("Found 2 in 2 files (LAP001: 1, LAP007: 1).\n")


def test_codes_can_be_left_out(project, capsys):
    """By name."""
    assert lint.main(["--ignore", "lap007, LAP002"]) == 1
    assert capsys.readouterr().out.endswith("Found 1 in 2 files (LAP001: 1).\n")
    assert lint.main(["--ignore", "LAP007,LAP001"]) == 0


def test_a_code_that_there_is_not_is_refused(capsys):
    """In one line, with exit code 2."""
    with pytest.raises(SystemExit) as end:
        lint.main(["--ignore", "E501"])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert "argument --ignore: 'E501' is no code: there are LAP000, LAP001" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not there: give a file or a folder"),
        (["x" * 300], "is not there: give a file or a folder"),
        (["/proc/self/mem"], "/proc/self/mem cannot be read: Input/output error"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(project, arguments, message, capsys):
    """It says what, and what to do."""
    assert lint.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("lint: ")
    assert message in told
    assert told.count("\n") == 1


def test_the_rules_are_listed(capsys):
    """A line each."""
    assert lint.main(["--rules"]) == 0
    assert [line[:6] for line in capsys.readouterr().out.splitlines()] == list(RULES)


# ---- how findings are written ----


@pytest.fixture
def findings(project):
    (project / "a,b:c.py").write_text("import asyncpg\npool = asyncpg.create_pool()\n")
    return lint.lint_paths([Path("a,b:c.py"), Path("leaks.py")])[0]


def test_github_gets_workflow_commands(findings):
    """What has a meaning to GitHub is escaped in names."""
    first, second = FORMATS["github"](findings, 2).splitlines()
    assert first.startswith("::error file=a%2Cb%3Ac.py,line=2,endLine=2,col=8,title=LAP007::asyncpg.create_pool is")
    assert second.startswith("::error file=leaks.py,")
    assert FORMATS["github"]([], 2) == ""


def test_json_is_for_machines(project, capsys):
    """`--json` is short for its format."""
    assert lint.main(["--json", "leaks.py"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == 1
    assert [(row["path"], row["line"], row["column"], row["code"]) for row in told["findings"]] == [
        ("leaks.py", 2, 8, "LAP007")
    ]


def test_it_imports_no_driver_and_nothing_it_reads(project):
    """A file that would do harm when imported is only read."""
    (project / "harm.py").write_text("open('harm', 'w')\nraise SystemExit(9)\n")
    code = (
        "import sys; from loopaware_pool.cli.lint.command import main; main(['.']); "
        "print({'asyncpg', 'psycopg', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert not (project / "harm").exists()


def test_the_library_itself_forgets_no_lease():
    """Nor a registration. (The demo does, to show what that does to others' pools.)"""
    findings, files = lint.lint_paths([Path(loopaware_pool.__file__).parent], ["LAP001", "LAP002", "LAP003", "LAP004"])
    assert files > 30
    assert [found for found in findings if "/cli/" not in found.path] == []
