"""A read pool and a write pool: the program of docs/examples beside a primary and its standby."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest

from examples.program import EXAMPLES
from failovers import dsn_of_both, until_replicated
from loopaware_pool.testing.embedded_server import EmbeddedServer
from running import child_process, eventually

pytestmark = pytest.mark.examples


@pytest.fixture
def pair():
    with EmbeddedServer() as primary, EmbeddedServer(standby_of=primary.dsn) as standby:
        yield primary, standby


def run(server, statement):
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        return connection.execute(statement)


def test_reads_and_writes_go_where_they_belong_before_and_after_a_failover(pair, monkeypatch):
    """And a reader sees what it has written, although its standby is behind."""
    primary, standby = pair
    run(primary, "CREATE TABLE notes (name text PRIMARY KEY, note text)")
    until_replicated(primary, standby)
    monkeypatch.setenv("DATABASE_URL", dsn_of_both(primary, standby))
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with child_process([sys.executable, EXAMPLES / "read_and_write_pools.py"], text=True, **pipes) as program:

        def ask(line):
            program.stdin.write(f"{line}\n")
            program.stdin.flush()
            return program.stdout.readline().strip()

        assert program.stdout.readline() == "ready\n"
        assert ask("put a one") == f"stored by {primary.port}"
        eventually(lambda: ask("get a") == f"one from {standby.port}", "the standby has it")
        run(standby, "SELECT pg_wal_replay_pause()")
        assert ask("put a two") == f"stored by {primary.port}"
        assert ask("peek a") == f"one from {standby.port}"
        assert ask("get a") == f"two from {primary.port}"
        run(standby, "SELECT pg_wal_replay_resume()")
        eventually(lambda: ask("get a") == f"two from {standby.port}", "the standby has it")
        primary.control("stop", "-m", "immediate")
        standby.control("promote")
        assert ask("put a three") == f"stored by {standby.port}"
        assert ask("get a") == f"three from {standby.port}"
        _, complaints = program.communicate(timeout=30)
        assert (program.returncode, complaints) == (0, "")
