"""
`python -m benchmarks.instructions`: what a query costs this process, in instructions, as valgrind counts them.

Unlike time, instructions are nearly the same each time, whatever else the machine does. What the kernel does is not
counted, nor what the server does. Each contender is run for a few queries and for more, and the difference is divided.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg_pool

import loopaware_pool
import loopaware_pool.psycopg
from benchmarks.contenders import CONNECTIONS
from loopaware_pool import parking
from loopaware_pool.cli.target import Unusable, open_target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FEWER, MORE = 300, 1100
ASYNCPG: dict[str, Any] = {"min_size": CONNECTIONS, "max_size": CONNECTIONS}
PSYCOPG: dict[str, Any] = ASYNCPG | {"open": False, "kwargs": {"autocommit": True}}
CONTENDERS: dict[str, Callable[[str], Any]] = {
    "asyncpg": lambda dsn: asyncpg.create_pool(dsn, **ASYNCPG),
    "ours": lambda dsn: loopaware_pool.create_pool(dsn, **ASYNCPG),
    "ours, when_dirty": lambda dsn: loopaware_pool.create_pool(dsn, session_reset="when_dirty", **ASYNCPG),
    "ours, never": lambda dsn: loopaware_pool.create_pool(dsn, session_reset="never", **ASYNCPG),
    "psycopg_pool": lambda dsn: psycopg_pool.AsyncConnectionPool(dsn, **PSYCOPG),
    "ours for psycopg": lambda dsn: loopaware_pool.psycopg.AsyncConnectionPool(dsn, **PSYCOPG),
}


def main() -> int:
    """Count, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--tasks", type=int, default=10, help=f"on {CONNECTIONS} connections; default 10")
    parser.add_argument("--dsn", help="postgresql://user:password@host:port/database; default an embedded server")
    parser.add_argument("--run", nargs=2, metavar=("CONTENDER", "QUERIES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        contender, queries = options.run
        asyncio.run(_run(contender, options.dsn, int(queries), options.tasks))
        return 0
    if shutil.which("valgrind") is None:
        print("benchmarks.instructions: valgrind is not installed", file=sys.stderr)
        return 2
    try:
        with open_target(options.dsn) as target:
            for contender in CONTENDERS:
                fewer, more = (_count(target.dsn, contender, queries, options.tasks) for queries in (FEWER, MORE))
                print(f"{contender:20} {(more - fewer) / (MORE - FEWER):10,.0f} instructions a query", flush=True)
    except Unusable as error:
        print(f"benchmarks.instructions: {error}", file=sys.stderr)
        return 2
    return 0


def _count(dsn: str, contender: str, queries: int, tasks: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-m"]
    arguments = ["benchmarks.instructions", "--dsn", dsn, "--tasks", str(tasks), "--run", contender, str(queries)]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    counted = re.search(r"Collected : (\d+)", ended.stderr)
    assert counted is not None, ended.stderr
    return int(counted[1])


async def _run(contender: str, dsn: str, queries: int, tasks: int) -> None:
    pool = CONTENDERS[contender](dsn)
    parking.PARK_SECONDS = 1e6  # type: ignore[misc]  # what passes in time is not to count: all is slower here
    query = _fetch if isinstance(pool, asyncpg.Pool) else _execute
    async with pool:
        await asyncio.gather(*(_work(query, pool, queries // tasks) for _ in range(tasks)))


async def _work(query: Callable[[Any], Awaitable[object]], pool: Any, queries: int) -> None:
    for _ in range(queries):
        await query(pool)


async def _fetch(pool: Any) -> object:
    async with pool.acquire() as connection:
        return await connection.fetchval("SELECT 1")


async def _execute(pool: Any) -> object:
    async with pool.connection() as connection:
        return await (await connection.execute("SELECT 1")).fetchone()


if __name__ == "__main__":
    sys.exit(main())
