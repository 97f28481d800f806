"""Test suites: those of docs/examples run as a user runs them, on our pools and on the drivers' own."""

from __future__ import annotations

import re

import pytest

from examples.program import EXAMPLES, copy_with, run, sessions_in, until

pytestmark = pytest.mark.examples

TO_ASYNCPG = {"from loopaware_pool import create_pool": "from asyncpg import create_pool"}
TO_SQLALCHEMY = {"from loopaware_pool.sqlalchemy import": "from sqlalchemy.ext.asyncio import"}
# How many tests each suite has.
SUITES = {"pytest_asyncio_suite": 7, "anyio_suite": 8, "unittest_suite": 2, "sqlalchemy_suite": 6}
# Those without which pytest-asyncio warns.
SETTINGS = "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
# Two plugins that are installed here, and that the suites do not use, take seconds to import.
WITHOUT = ("cacheprovider", "langsmith_plugin", "hypothesispytest")
PYTEST = ["-m", "pytest", "--tb=line", *(word for name in WITHOUT for word in ("-p", f"no:{name}"))]
STRICTLY = ["-W", "error"]
WITH_XDIST = ["--numprocesses", "2"]
KEEPS_A_SOCKET = {
    "import os\n": "import os\nimport socket\n\nkept = []\n",
    "    squares = (": "    kept.append(socket.socket())\n    squares = (",
}


@pytest.fixture
def outcome(database_url, tmp_path):
    """Run a copy of a suite; its exit code, and how many tests had each outcome."""

    def outcome(name, *command, changes=None):
        folder = copy_with(EXAMPLES / name, tmp_path, changes or {})
        (folder / "pytest.ini").write_text(SETTINGS)
        code, output = run(*command, folder=folder, DATABASE_URL=database_url)
        counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|errors?)", output)}
        return code, counts, output

    return outcome


@pytest.mark.parametrize("more", [[], WITH_XDIST], ids=["pytest", "xdist"])
@pytest.mark.parametrize("name", SUITES)
def test_a_suite_passes_on_one_pool(outcome, database_url, name, more):
    """In one process and in two; no test leaves an fd open, and the suite no session."""
    code, counts, output = outcome(name, *PYTEST, *STRICTLY, *more)
    assert (code, counts) == (0, {"passed": SUITES[name]}), output
    until(lambda: not sessions_in(database_url), lambda: "sessions are left")


def test_unittest_runs_its_suite_by_itself(outcome):
    """Without pytest."""
    code, _, output = outcome("unittest_suite", "-m", "unittest")
    assert code == 0, output
    assert "Ran 2 tests" in output


def test_a_test_that_leaves_a_socket_open_is_an_error(outcome):
    """In a suite of pytest."""
    code, counts, output = outcome("pytest_asyncio_suite", *PYTEST, changes=KEEPS_A_SOCKET)
    assert (code, counts) == (1, {"passed": 7, "error": 1}), output


def test_a_class_of_tests_that_leaves_a_socket_open_is_an_error(outcome):
    """In a suite of unittest: when all its tests have run."""
    indented = {old: new.replace("\n    s", "\n        s") for old, new in KEEPS_A_SOCKET.items()}
    code, _, output = outcome("unittest_suite", "-m", "unittest", changes=indented)
    assert code == 1
    assert "ERROR: tearDownClass" in output
    assert "AssertionError: 1 fd left open" in output


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("pytest_asyncio_suite", TO_ASYNCPG),
        ("anyio_suite", TO_ASYNCPG),
        ("unittest_suite", TO_ASYNCPG),
        ("sqlalchemy_suite", TO_SQLALCHEMY),
    ],
)
def test_a_suite_fails_on_the_drivers_pool(outcome, name, changes):
    """Each test has a loop of its own, and the pool, or a connection in it, belongs to another one."""
    code, counts, output = outcome(name, *PYTEST, changes=changes)
    assert code == 1
    assert "different loop" in output or "different event loop" in output
    assert counts["failed"] >= 2
