"""How many `SELECT 1` come through a pool, each with a connection of its own: acquire, query, release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.contenders import (
    ARTICLE,
    ASYNCPG,
    ASYNCPG_NO_RESET,
    BARE_ASYNCPG,
    BARE_PSYCOPG,
    OURS,
    OURS_AWAITED,
    OURS_CONFIRMED,
    OURS_NEVER,
    OURS_PSYCOPG,
    OURS_WHEN_DIRTY,
    PSYCOPG_POOL,
    SQLALCHEMY,
)
from benchmarks.lab import CPU, P99, SPEED, Goal, Question, application_name, bursts_of, label, with_overall
from benchmarks.server_cpu import server_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.contenders import Client, Contender
    from benchmarks.lab import Heat, Lab

QUERIES = 600
TASKS = (1, 10, 20, 50, 500)
SERVER_CPU = "server CPU us"
ASYNCPG_CONTENDERS = (
    ASYNCPG,
    ASYNCPG_NO_RESET,
    SQLALCHEMY,
    ARTICLE,
    BARE_ASYNCPG,
    OURS,
    OURS_AWAITED,
    OURS_CONFIRMED,
    OURS_WHEN_DIRTY,
    OURS_NEVER,
)
PSYCOPG_CONTENDERS = (PSYCOPG_POOL, BARE_PSYCOPG, OURS_PSYCOPG)


def _floor(ours: Contender, peer: Contender, factor: float) -> Goal:
    return Goal(ours.name, SPEED, factor, is_floor=True, peer=peer.name)


def _ceiling(ours: Contender, peer: Contender, figure: str, factor: float) -> Goal:
    return Goal(ours.name, figure, factor, is_floor=False, peer=peer.name)


GOALS: dict[int, tuple[Goal, ...]] = {
    1: (
        _floor(OURS, ASYNCPG, 2.2),
        _ceiling(OURS, ASYNCPG, CPU, 0.58),
        _floor(OURS_PSYCOPG, PSYCOPG_POOL, 1.4),
        _ceiling(OURS_PSYCOPG, PSYCOPG_POOL, CPU, 0.6),
    ),
    10: (
        _floor(OURS, ASYNCPG, 1.5),
        _ceiling(OURS, ASYNCPG, CPU, 0.58),
        _floor(OURS_NEVER, ASYNCPG_NO_RESET, 1.4),
        _floor(OURS_WHEN_DIRTY, ASYNCPG, 2.3),
        _ceiling(OURS_WHEN_DIRTY, ASYNCPG, CPU, 0.42),
        _ceiling(OURS_WHEN_DIRTY, BARE_ASYNCPG, CPU, 1.1),
        _floor(OURS_PSYCOPG, PSYCOPG_POOL, 1.7),
        _ceiling(OURS_PSYCOPG, PSYCOPG_POOL, CPU, 0.6),
    ),
    50: (
        _floor(OURS, ASYNCPG, 1.5),
        _ceiling(OURS, ASYNCPG, CPU, 0.58),
        _ceiling(OURS, ASYNCPG, P99, 0.25),
        _floor(OURS_NEVER, ASYNCPG_NO_RESET, 1.8),
        _floor(OURS_WHEN_DIRTY, ASYNCPG, 2.5),
        _ceiling(OURS_WHEN_DIRTY, ASYNCPG, CPU, 0.42),
        _floor(OURS_PSYCOPG, PSYCOPG_POOL, 2.0),
        _ceiling(OURS_PSYCOPG, PSYCOPG_POOL, CPU, 0.6),
    ),
}


async def ask(lab: Lab) -> list[Heat]:
    """Of asyncpg, with each way to reset a session, and without a pool."""
    return await _ask(lab, ASYNCPG_CONTENDERS, "asyncpg")


async def ask_psycopg(lab: Lab) -> list[Heat]:
    """Of psycopg, in autocommit mode."""
    return await _ask(lab, PSYCOPG_CONTENDERS, "psycopg")


async def _ask(lab: Lab, contenders: Sequence[Contender], driver: str) -> list[Heat]:
    heats = []
    async with lab.open(contenders) as clients:
        for tasks in TASKS:
            await lab.warm_up(clients, _fetch, tasks=tasks)
            before = await _server_seconds(lab, clients)
            bursts = await lab.burst(clients, _fetch, operations=QUERIES, tasks=tasks)
            after = await _server_seconds(lab, clients)
            goals = [goal for goal in GOALS.get(tasks, ()) if goal.ours in {one.name for one in bursts}]
            heat = bursts_of(f"SELECT 1 through {driver}, {label(tasks)}", bursts, goals=goals)
            if before is not None and after is not None:
                spent = {
                    contender.name: (after[contender] - before[contender])
                    / sum(len(burst.latencies) for burst in several)
                    * 1e6
                    for contender, several in bursts.items()
                }
                heat = with_overall(heat, SERVER_CPU, spent)
            heats.append(heat)
    return heats


async def _server_seconds(lab: Lab, clients: Mapping[Contender, Client]) -> dict[Contender, float] | None:
    names = {application_name(contender): contender for contender in clients}
    seconds = await server_seconds(lab.setting.dsn, names)
    return None if seconds is None else {contender: seconds[name] for name, contender in names.items()}


async def _fetch(client: Client) -> None:
    await client.fetch("SELECT 1")


QUESTION = Question("queries", ask)
PSYCOPG = Question("psycopg", ask_psycopg)
