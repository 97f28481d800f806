"""The workload of the article that this project goes back to: 10,000 counts of 1,000 rows, 50 tasks, 10 connections."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import TYPE_CHECKING

from benchmarks.contenders import (
    ARTICLE,
    ASYNCPG,
    BARE_ASYNCPG,
    CONNECTIONS,
    OURS,
    OURS_PSYCOPG,
    OURS_WHEN_DIRTY,
    PSYCOPG_POOL,
)
from benchmarks.lab import CPU, P50, P99, SPEED, Heat, Question, application_name
from benchmarks.scratch import scratch_table
from loopaware_pool.cli.measure import run_burst

if TYPE_CHECKING:
    from benchmarks.contenders import Contender
    from benchmarks.lab import Lab

QUERIES = 10_000
TASKS = 50
LEAK = "fds left per 10k"
CONTENDERS = (ASYNCPG, BARE_ASYNCPG, ARTICLE, OURS, OURS_WHEN_DIRTY, PSYCOPG_POOL, OURS_PSYCOPG)
NOTE = (
    "The article's own pool and bare connections had 10 tasks: with more, its pool deadlocks, and connections have no "
    "queue. Fds are those of this process before the pool was opened, and after it was closed."
)


async def ask(lab: Lab) -> list[Heat]:
    """Each contender opens, runs, and closes, so that what it leaves behind is seen."""
    rounds: dict[str, list[dict[str, float]]] = {}
    select = "(payload) SELECT 'test_payload' FROM generate_series(1, 1000)"
    async with scratch_table(lab.setting.dsn, "id serial PRIMARY KEY, payload text NOT NULL", select) as table:
        query = f"SELECT COUNT(*) FROM {table} WHERE payload = 'test_payload'"
        for _ in range(lab.few_rounds):
            for contender in lab.among(CONTENDERS):
                rounds.setdefault(contender.name, []).append(await _run(lab, contender, query))
    return [Heat(f"the article's workload, {TASKS} tasks; article's pool and bare: {CONNECTIONS}", rounds, note=NOTE)]


async def _run(lab: Lab, contender: Contender, query: str) -> dict[str, float]:
    queries = lab.scaled(QUERIES)
    before = _count_fds()
    async with contender.open(lab.setting, application_name(contender)) as client:
        tasks = min(TASKS, contender.max_tasks or TASKS)
        burst = await run_burst(lambda: client.fetch(query), operations=queries, tasks=tasks)
    await asyncio.sleep(0.1)
    leak = (_count_fds() - before) / queries * 10_000
    return {SPEED: burst.per_second, CPU: burst.cpu_us, P50: burst.p50_ms, P99: burst.p99_ms, LEAK: leak}


def _count_fds() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


QUESTION = Question("article", ask)
