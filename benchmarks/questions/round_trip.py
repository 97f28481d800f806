"""A server that is 2.5 ms away: what each pool adds to the one round trip that a query needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.contenders import (
    ASYNCPG,
    BARE_ASYNCPG,
    BARE_PSYCOPG,
    OURS,
    OURS_AWAITED,
    OURS_PSYCOPG,
    OURS_WHEN_DIRTY,
    PSYCOPG_POOL,
    SQLALCHEMY,
)
from benchmarks.delay_proxy import delayed
from benchmarks.lab import P50, Goal, Question, bursts_of

if TYPE_CHECKING:
    from benchmarks.contenders import Client
    from benchmarks.lab import Heat, Lab

ROUND_TRIP_MS = 2.5
QUERIES = 60
CONTENDERS = (
    BARE_ASYNCPG,
    ASYNCPG,
    SQLALCHEMY,
    OURS,
    OURS_AWAITED,
    OURS_WHEN_DIRTY,
    BARE_PSYCOPG,
    PSYCOPG_POOL,
    OURS_PSYCOPG,
)
GOALS = (Goal(OURS.name, P50, 1.08, is_floor=False, peer=BARE_ASYNCPG.name),)


async def ask(lab: Lab) -> list[Heat]:
    """Of one task, by the pool's own `fetchval` where it has one."""
    with delayed(lab.setting.dsn, ROUND_TRIP_MS) as dsn:
        async with lab.open(CONTENDERS, replace(lab.setting, dsn=dsn, min_size=1)) as clients:
            await lab.warm_up(clients, _fetch, tasks=1)
            bursts = await lab.burst(clients, _fetch, operations=QUERIES, tasks=1)
    return [bursts_of(f"SELECT 1 over {ROUND_TRIP_MS} ms of round trip, 1 task", bursts, goals=GOALS)]


async def _fetch(client: Client) -> None:
    if hasattr(client.pool, "fetchval"):
        await client.pool.fetchval("SELECT 1")
    else:
        await client.fetch("SELECT 1")


QUESTION = Question("round-trip", ask)
