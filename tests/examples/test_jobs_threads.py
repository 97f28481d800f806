"""Threads with loops of their own: the programs of docs/examples run to their end, on our pools."""

from __future__ import annotations

import signal
import subprocess

import pytest

from examples.program import EXAMPLES, copy_with, run, sessions_in, started, until

pytestmark = pytest.mark.examples

SUMS = "[385, 2870, 9455, 22140, 42925, 73810]\n116795\n"
# What is swapped for the drivers' pools.
SWAPS = {
    "threads": {"from loopaware_pool import create_pool": "from asyncpg import create_pool"},
    "threads_psycopg": {"from loopaware_pool.psycopg import": "from psycopg_pool import"},
    "threads_sqlalchemy": {"from loopaware_pool.sqlalchemy import": "from sqlalchemy.ext.asyncio import"},
}
ONE_THREAD = {"max_workers=3": "max_workers=1"}
SECONDS_FOR_A_HANG = 8
# The program looks at itself when it has done its work.
LOOK = """
    links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    print([link for link in links if "socket" in link])
"""


@pytest.mark.parametrize("name", SWAPS)
def test_all_threads_are_served_by_one_pool(name, database_url, tmp_path):
    """At the end no session is left on the server, and no socket in the process, though nothing has been closed."""
    copy = copy_with(EXAMPLES / f"{name}.py", tmp_path, {})
    copy.write_text(copy.read_text() + LOOK)
    assert run(copy, DATABASE_URL=database_url) == (0, SUMS + "[]\n")
    until(lambda: not sessions_in(database_url), lambda: "sessions are left")


@pytest.mark.parametrize("name", SWAPS)
def test_on_the_drivers_pools_threads_fail_or_hang(name, database_url, tmp_path):
    """Which of both it is differs from run to run."""
    copy = copy_with(EXAMPLES / f"{name}.py", tmp_path, SWAPS[name])
    with started(copy, DATABASE_URL=database_url) as program:
        try:
            assert program.process.wait(SECONDS_FOR_A_HANG) != 0
        except subprocess.TimeoutExpired:
            program.process.send_signal(signal.SIGKILL)
        assert SUMS not in program.output()


@pytest.mark.parametrize("name", ["threads", "threads_sqlalchemy"])
def test_on_asyncpgs_and_sqlalchemys_pool_loops_in_turn_fail(name, database_url, tmp_path):
    """With one thread, which runs one loop after the other."""
    copy = copy_with(EXAMPLES / f"{name}.py", tmp_path, SWAPS[name] | ONE_THREAD)
    code, output = run(copy, DATABASE_URL=database_url)
    assert code == 1
    assert "attached to a different loop" in output or "is bound to a different event loop" in output
