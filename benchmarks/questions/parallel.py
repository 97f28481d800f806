"""
`max_parallel_workers_per_gather = 0` for a role: what it costs a large count, and the processes it saves the server.

It is the real setting behind one that was said to help asynchronous clients, and that no release of PostgreSQL has.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

import loopaware_pool
from benchmarks.lab import Heat, NotHere, Question
from benchmarks.scratch import scratch_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.lab import Lab

ROWS = 1_000_000
QUERIES = 8
SECONDS, WORKERS = "ms/query", "workers/query"


async def ask(lab: Lab) -> list[Heat]:
    """One query after the other, on one connection for each of two roles, alike but for the setting."""
    rounds: dict[str, list[dict[str, float]]] = {}
    select = f"SELECT n, md5(n::text) FROM generate_series(1, {lab.scaled(ROWS)}) n"
    async with scratch_table(lab.setting.dsn, "n integer, payload text", select) as table:
        for _ in range(lab.few_rounds):
            for workers in (2, 0):
                async with _role(lab.setting.dsn, workers) as dsn:
                    figures = await _measure(dsn, f"SELECT count(*) FROM {table} WHERE payload LIKE '%aa%'")
                rounds.setdefault(f"max_parallel_workers_per_gather = {workers}", []).append(figures)
    return [Heat("a count over a large table, by setting of the role", rounds)]


@asynccontextmanager
async def _role(dsn: str, workers: int) -> AsyncIterator[str]:
    """Make a role with the setting, and give a DSN to connect as it."""
    name, password = f"loopaware_bench_{uuid4().hex[:12]}", uuid4().hex
    connection = await asyncpg.connect(dsn)
    try:
        try:
            await connection.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{password}'")
        except asyncpg.InsufficientPrivilegeError as error:
            raise NotHere(str(error)) from None
        await connection.execute(f"ALTER ROLE {name} SET max_parallel_workers_per_gather = {workers}")
        parts = urlsplit(dsn)
        yield parts._replace(netloc=f"{name}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()
    finally:
        await connection.execute(f"DROP ROLE IF EXISTS {name}")
        await connection.close()


async def _measure(dsn: str, query: str) -> dict[str, float]:
    async with loopaware_pool.create_pool(dsn, min_size=1, max_size=1) as pool:
        plan = await pool.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}")
        launched = sum(map(int, re.findall(r'"Workers Launched": (\d+)', plan)))
        began = perf_counter()
        for _ in range(QUERIES):
            await pool.fetchval(query)
        return {SECONDS: (perf_counter() - began) / QUERIES * 1e3, WORKERS: launched}


QUESTION = Question("parallel", ask, loops=("asyncio",))
