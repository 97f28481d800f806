"""Three times the work that can be done, from callers who give up: how much of it is of use to anybody."""

from __future__ import annotations

import asyncio
import statistics
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.contenders import (
    ASYNCPG,
    OURS,
    OURS_PSYCOPG,
    OURS_PSYCOPG_SHEDDING,
    OURS_SHEDDING,
    PSYCOPG_POOL,
    SQLALCHEMY,
)
from benchmarks.lab import Goal, Heat, Question
from loopaware_pool.cli.measure import percentile
from loopaware_pool.errors import TooManyWaiting

if TYPE_CHECKING:
    from benchmarks.contenders import Client
    from benchmarks.lab import Lab

CONTENDERS = (ASYNCPG, SQLALCHEMY, PSYCOPG_POOL, OURS, OURS_SHEDDING, OURS_PSYCOPG, OURS_PSYCOPG_SHEDDING)
GOODPUT, P99, TOLD_NO = "goodput %", "p99 of answers ms", "told no after ms"

CONNECTIONS = 4
SERVICE_SECONDS = 0.020
OVERLOAD = 3
# What the callers have for all of it: the wait, and the answer.
PATIENCE_SECONDS = 0.250
LOAD_SECONDS = 6.0


async def ask(lab: Lab) -> list[Heat]:
    """As in the overload that CoDel was made for. Each round begins with an empty queue, and counts from there."""
    # Else asyncpg, to cancel a query, first asks for TLS, and complains of a server that has hung up meanwhile.
    setting = replace(lab.setting, min_size=CONNECTIONS, max_size=CONNECTIONS, ssl=False)
    async with lab.open(CONTENDERS, setting) as clients:
        turns = await lab.take_turns(
            clients, lambda client: _overload(client, LOAD_SECONDS * lab.effort), lab.few_rounds
        )
    title = f"overload: {OVERLOAD}x the work that can be done, callers give up after {PATIENCE_SECONDS * 1e3:.0f} ms"
    seconds = LOAD_SECONDS * lab.effort
    note = f"{CONNECTIONS} connections, {SERVICE_SECONDS * 1e3:.0f} ms of pg_sleep each, for {seconds:g} s."
    goals = [Goal(ours.name, GOODPUT, 75, is_floor=True) for ours in (OURS_SHEDDING, OURS_PSYCOPG_SHEDDING)]
    return [Heat(title, {one.name: each for one, each in turns.items()}, goals=goals, note=note)]


async def _overload(client: Client, seconds: float) -> dict[str, float]:
    gap = SERVICE_SECONDS / CONNECTIONS / OVERLOAD
    answered: list[float] = []
    refused: list[float] = []
    began = perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(max(int(seconds / gap), 1)):
            await asyncio.sleep(began + number * gap - perf_counter())
            group.create_task(_call(client, answered, refused))
    could_be_done = seconds / SERVICE_SECONDS * CONNECTIONS
    return {
        GOODPUT: 100 * len(answered) / could_be_done,
        P99: percentile(answered, 99) * 1e3 if answered else float("inf"),
        TOLD_NO: statistics.median(refused) * 1e3 if refused else 0.0,
    }


async def _call(client: Client, answered: list[float], refused: list[float]) -> None:
    asked = perf_counter()
    with suppress(TimeoutError, TooManyWaiting):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await client.fetch(f"SELECT 1 FROM pg_sleep({SERVICE_SECONDS})")
            if perf_counter() - asked <= PATIENCE_SECONDS:  # a pool may swallow the end of his time
                answered.append(perf_counter() - asked)
                return
    refused.append(perf_counter() - asked)


QUESTION = Question("overload", ask, loops=("asyncio",))
