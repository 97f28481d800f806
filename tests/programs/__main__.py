"""
Runs programs of other people as they are and with `loopaware-pool run`, and compares: `make programs`.

Each case runs twice, each time in a new database. On our pools it must print what it is to print and exit with 0, and
the report must name the pools, all of them ours. As it is, it must do the same, or fail if that is what the case shows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psycopg
from psycopg import conninfo

from loopaware_pool.testing.embedded_server import EmbeddedServer

HERE = Path(__file__).parent
SECONDS = 120
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Case:
    """
    One program, run in one way.

    Attributes:
        package: Whose program it is.
        program: The file, and its arguments.
        pools: The kind of each pool that must have served somebody, in all processes.
        fails: What a run on the driver's own pools is to end with; None if it is to succeed.
        left: How many fds that are no pool's the program leaves open.
    """

    package: str
    program: str
    pools: tuple[str, ...]
    fails: str | None = None
    left: int = 0


CASES = (
    Case("procrastinate", "with_procrastinate.py", ("psycopg",)),
    Case("procrastinate", "with_procrastinate.py loops", ("psycopg", "psycopg"), fails="ConnectorException"),
    Case("pgqueuer", "with_pgqueuer.py", ("asyncpg",)),
    Case("pgqueuer", "with_pgqueuer.py loops", ("asyncpg",), fails="attached to a different loop"),
    Case("tortoise-orm", "with_tortoise.py asyncpg", ("asyncpg",)),
    Case("tortoise-orm", "with_tortoise.py psycopg", ("psycopg",)),
    # It makes a new pool for each loop by itself, and forgets the old one.
    Case("tortoise-orm", "with_tortoise.py asyncpg loops", ("asyncpg",) * 4),
    Case("tortoise-orm", "with_tortoise.py psycopg loops", ("psycopg",) * 4),
    Case("langgraph-checkpoint-postgres", "with_langgraph.py", ("psycopg", "psycopg")),
    Case("langgraph-checkpoint-postgres", "with_langgraph.py loops", ("psycopg",), fails="PoolTimeout"),
    Case("taskiq-postgres", "with_taskiq.py", ("asyncpg", "asyncpg")),
    # The program's pools, and those of two workers.
    Case("taskiq-postgres", "with_taskiq.py workers", ("asyncpg",) * 6),
    # The broker's own connection, which it listens on, is never closed.
    Case("taskiq-postgres", "with_taskiq.py loops", ("asyncpg", "asyncpg"), fails="SendTaskError", left=1),
    Case("saq", "with_saq.py", ("psycopg",)),
    Case("saq", "with_saq.py loops", ("psycopg",), fails="PoolTimeout"),
)


def run(server, case, *, ours):
    """Run a case in a new database."""
    database = f"programs_{next(_numbers)}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    parts = conninfo.conninfo_to_dict(server.dsn)
    dsn = "postgresql://{user}:{password}@{host}:{port}/{database}".format(**parts, database=database)
    program, *arguments = case.program.split()
    start = [sys.executable, *(["-m", "loopaware_pool", "run", "--json"] if ours else []), HERE / program, *arguments]
    return subprocess.run(
        start, env={**os.environ, "DSN": dsn}, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def what_is_wrong(case, theirs, ours):
    """Yield what is not as it should be."""
    if case.fails is None and (theirs.returncode, theirs.stdout) != (ours.returncode, ours.stdout):
        yield "it did not end with the same exit code and output"
    if case.fails is not None and not (theirs.returncode and case.fails in theirs.stderr):
        yield f"as it is, it did not fail with {case.fails}"
    if ours.returncode or not ours.stdout:
        yield "it failed on our pools"
        return
    processes = json.loads(ours.stderr.splitlines()[-1])["processes"]
    pools = [pool for process in processes for pool in process["pools"] if pool["acquired"]]
    if sorted(pool["kind"] for pool in pools) != sorted(case.pools):
        yield f"it did not use {len(case.pools)} pools of ours: {pools}"
    left = [fd for process in processes for fd in process["leaked"]]
    if len(left) != case.left or any(process["stale_registrations"] for process in processes):
        yield f"it left something open: {left}"


def main():
    parser = argparse.ArgumentParser(prog="make programs", description="Run programs of other people on our pools.")
    parser.add_argument("--only", metavar="TEXT", default="", help="cases whose program's name has TEXT in it")
    asked = parser.parse_args()
    failed = 0
    with EmbeddedServer() as server:
        for case in CASES:
            if asked.only in case.program:
                theirs, ours = run(server, case, ours=False), run(server, case, ours=True)
                wrong = list(what_is_wrong(case, theirs, ours))
                how = "as it is: " + ("fails" if case.fails else "works") + "; on our pools: works"
                print(f"{case.package} {version(case.package)}: {case.program}: {'; '.join(wrong) or how}", flush=True)
                if wrong:
                    failed += 1
                    print(theirs.stdout, theirs.stderr, ours.stdout, ours.stderr, sep="\n")
    print("All as expected." if not failed else f"{failed} not as expected.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
