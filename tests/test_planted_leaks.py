"""
`audit --script` finds what a program leaves behind, and names the line; a clean program is called clean.

The library and the plugin are asked about the same six ways, and for the same 200 clean runs, in test_audit.py and
test_pytest_plugin.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import leaks

pytestmark = pytest.mark.both_pythons

HEAD = f"""
import asyncio, sys
from contextlib import AsyncExitStack
sys.path.insert(0, {str(Path(__file__).parent)!r})
import leaks
kept = AsyncExitStack()
"""
CLEAN = """
import gc
gc.collect()
gc.freeze()
for number in range(200):
    asyncio.run(leaks.CLEAN[number % len(leaks.CLEAN)](sys.argv[1]))
"""
# A program keeps nothing of what it has lost, and the garbage collector closes it when the loop is gone.
FORGETFUL = {
    "pool_not_closed": "    pool = await asyncpg.create_pool(dsn, min_size=2, max_size=2)",
    "lease_dropped": "    pool = await asyncpg.create_pool(dsn, min_size=0, max_size=1); await pool.acquire()",
    "server_not_closed": "    server = await asyncio.start_server(print, '127.0.0.1', 0)",
}


@pytest.fixture
def audit(tmp_path, dsn):
    """Has the command audit a script; gives the exit code and what was found."""

    def audit(source):
        path = tmp_path / "program.py"
        path.write_text(source)
        command = [sys.executable, "-m", "loopaware_pool", "audit", "--json", "--script", str(path), dsn]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    return audit


@pytest.mark.parametrize("way", [way.__name__ for way in leaks.WAYS])
def test_a_planted_leak_is_named_with_its_line(way, audit):
    """Whatever way it came about."""
    code, found = audit(f"{HEAD}asyncio.run(leaks.{way}(sys.argv[1], kept))")
    assert code == 1
    lines = [each["opened_at"] for each in found["leaked"]] + [
        each["added_at"] for each in found["stale_registrations"]
    ]
    assert lines
    assert {line.startswith(leaks.line_of(way)) for line in lines} == {True}


def test_a_loop_that_is_closed_early_is_named_with_the_line(audit):
    """It leaves the sockets of its transports open."""
    code, found = audit(f"{HEAD}leaks.loop_closed_early(kept, asyncio.new_event_loop)")
    assert code == 1
    assert [leaks.line_of("loop_closed_early") in each["opened_at"] for each in found["leaked"]] == [True]


@pytest.mark.parametrize("way", FORGETFUL)
def test_what_only_the_garbage_collector_closes_is_found_too(way, audit):
    """At the end of the program it is gone; when its loop was closed it was open."""
    lines = ["import asyncio, asyncpg, sys", "async def main(dsn):", FORGETFUL[way], "asyncio.run(main(sys.argv[1]))"]
    code, found = audit("\n".join(lines))
    assert code == 1
    assert found["leaked"]
    assert {each["opened_at"].endswith("program.py:3 in main") for each in found["leaked"]} == {True}


def test_a_clean_program_is_called_clean_200_times_in_a_row(audit):
    """asyncpg, psycopg and one that knows no PostgreSQL, each on a loop of its own."""
    code, found = audit(f"{HEAD}{CLEAN}")
    assert (code, found["leaked"], found["stale_registrations"], found["passed"]) == (0, [], [], True)
