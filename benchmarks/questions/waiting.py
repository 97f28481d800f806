"""Who waits how long: ten times as many tasks as connections, and work that comes just as fast as it can be done."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.contenders import ASYNCPG, CONNECTIONS, OURS, OURS_PSYCOPG, PSYCOPG_POOL, SQLALCHEMY
from benchmarks.lab import Goal, Heat, Question
from loopaware_pool.cli.measure import percentile

if TYPE_CHECKING:
    from benchmarks.contenders import Client
    from benchmarks.lab import Lab

CONTENDERS = (ASYNCPG, SQLALCHEMY, PSYCOPG_POOL, OURS, OURS_PSYCOPG)
LONGEST, P99, P50, DONE = "longest wait / ideal", "p99 wait / ideal", "p50 wait ms", "all done ms"

TASKS = 100
TURNS = 4
HELD_SECONDS = 0.020
# Each task waits for the nine that come before it in its turn.
IDEAL_SECONDS = (TASKS / CONNECTIONS - 1) * HELD_SECONDS

ARRIVALS = 100
SERVICE_SECONDS = 0.100

LONE_ARRIVALS = 50
LONE_ARRIVAL_SECONDS = 0.008
LONE_SERVICE_SECONDS = 0.010


async def ask(lab: Lab) -> list[Heat]:
    """A crowd that comes again and again; HikariCP's case of saturation; Go's case of one connection too slow."""
    fair_goals = [
        Goal(ours.name, figure, limit, is_floor=False)
        for ours in (OURS, OURS_PSYCOPG)
        for figure, limit in ((P99, 1.2), (LONGEST, 1.5))
    ]
    async with lab.open(CONTENDERS) as clients:
        fair = await lab.take_turns(clients, _crowd, lab.few_rounds)
        full = await lab.take_turns(clients, _saturate, lab.few_rounds)
    async with lab.open(CONTENDERS, replace(lab.setting, min_size=1, max_size=1)) as clients:
        lone = await lab.take_turns(clients, _fall_behind, lab.few_rounds)
    title = f"{TASKS} tasks, {CONNECTIONS} connections, each held for {HELD_SECONDS * 1e3:.0f} ms, {TURNS} turns each"
    return [
        Heat(title, {one.name: each for one, each in fair.items()}, goals=fair_goals),
        Heat("saturation: work of 100 ms comes each 10 ms to 10 connections", {o.name: e for o, e in full.items()}),
        Heat("falling behind: work of 10 ms comes each 8 ms to 1 connection", {o.name: e for o, e in lone.items()}),
    ]


async def _crowd(client: Client) -> dict[str, float]:
    waits: list[float] = []

    async def work() -> None:
        for _ in range(TURNS):
            await _hold(client, HELD_SECONDS, waits)

    began = perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(work())
    done = perf_counter() - began
    return _figures(waits, IDEAL_SECONDS, done)


async def _saturate(client: Client) -> dict[str, float]:
    # Were no time lost between two leases, nobody would wait: what one waits is told in units of one arrival.
    gap = SERVICE_SECONDS / CONNECTIONS
    return await _arrive(client, ARRIVALS, gap, SERVICE_SECONDS, ideal_seconds=gap)


async def _fall_behind(client: Client) -> dict[str, float]:
    # Each arrival finds the queue longer by what is missing; with a fair queue the last one waits the longest.
    behind = (LONE_SERVICE_SECONDS - LONE_ARRIVAL_SECONDS) * (LONE_ARRIVALS - 1)
    return await _arrive(client, LONE_ARRIVALS, LONE_ARRIVAL_SECONDS, LONE_SERVICE_SECONDS, ideal_seconds=behind)


async def _arrive(
    client: Client, arrivals: int, gap_seconds: float, held_seconds: float, *, ideal_seconds: float
) -> dict[str, float]:
    waits: list[float] = []
    began = perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(arrivals):
            await asyncio.sleep(began + number * gap_seconds - perf_counter())
            group.create_task(_hold(client, held_seconds, waits))
    return _figures(waits, ideal_seconds, perf_counter() - began)


async def _hold(client: Client, seconds: float, waits: list[float]) -> None:
    asked = perf_counter()
    async with client.lease():
        waits.append(perf_counter() - asked)
        await asyncio.sleep(seconds)


def _figures(waits: list[float], ideal_seconds: float, done_seconds: float) -> dict[str, float]:
    return {
        LONGEST: max(waits) / ideal_seconds,
        P99: percentile(waits, 99) / ideal_seconds,
        P50: percentile(waits, 50) * 1e3,
        DONE: done_seconds * 1e3,
    }


QUESTION = Question("waiting", ask)
