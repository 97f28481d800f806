"""How pools grow when a connect takes 150 ms: a spike of short work, and a cold start with long work."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

import asyncpg

from benchmarks.contenders import ASYNCPG, OURS, OURS_PSYCOPG, PSYCOPG_POOL, SQLALCHEMY
from benchmarks.lab import Goal, Heat, Question, application_name

if TYPE_CHECKING:
    from benchmarks.contenders import Client, Contender, Setting
    from benchmarks.lab import Lab

CONNECT_SECONDS = 0.150
CONTENDERS = (ASYNCPG, SQLALCHEMY, PSYCOPG_POOL, OURS, OURS_PSYCOPG)
ALL_DONE, SESSIONS = "all done ms", "connections"


async def ask(lab: Lab) -> list[Heat]:
    """HikariCP's spike, and its opposite."""
    # HikariCP's "Welcome to the jungle": 50 requests at once, 5 idle connections, 2 ms of work each.
    spike_goals = [
        Goal(ours.name, figure, limit, is_floor=False)
        for ours in (OURS, OURS_PSYCOPG)
        for figure, limit in ((ALL_DONE, 90), (SESSIONS, 12))
    ]
    spike = await _measure(lab, tasks=50, work_seconds=0.002, min_size=5, max_size=50)
    cold_goals = [Goal(ours.name, ALL_DONE, 1400, is_floor=False) for ours in (OURS, OURS_PSYCOPG)]
    cold = await _measure(lab, tasks=20, work_seconds=1.0, min_size=1, max_size=20)
    return [
        Heat("spike: 50 x 2 ms, 5 idle connections, connects of 150 ms", spike, goals=spike_goals),
        Heat("cold burst: 20 x 1 s, 1 idle connection, connects of 150 ms", cold, goals=cold_goals),
    ]


async def _measure(
    lab: Lab, *, tasks: int, work_seconds: float, min_size: int, max_size: int
) -> dict[str, list[dict[str, float]]]:
    setting = replace(lab.setting, min_size=min_size, max_size=max_size, connect_seconds=CONNECT_SECONDS)
    rounds: dict[str, list[dict[str, float]]] = {}
    for _ in range(lab.few_rounds):
        for contender in lab.among(CONTENDERS):
            figures = await _burst(contender, setting, tasks, work_seconds)
            rounds.setdefault(contender.name, []).append(figures)
    return rounds


async def _burst(contender: Contender, setting: Setting, tasks: int, work_seconds: float) -> dict[str, float]:
    async def work(client: Client) -> None:
        async with client.lease():
            await asyncio.sleep(work_seconds)

    async with contender.open(setting, application_name(contender)) as client:
        began = perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(work(client))
        seconds = perf_counter() - began
        # What was still being opened when the work was done counts as well.
        await asyncio.sleep(2 * CONNECT_SECONDS)
        sessions = await _count_sessions(setting.dsn, application_name(contender))
    return {ALL_DONE: seconds * 1e3, SESSIONS: sessions}


async def _count_sessions(dsn: str, name: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
        sessions: int = await connection.fetchval(query, name)
        return sessions
    finally:
        await connection.close()


QUESTION = Question("growth", ask)
