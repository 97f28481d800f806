"""How many `SELECT 1` come through one SQLAlchemy engine, on SQLAlchemy's own pool and on ours, with either driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.contenders import OURS_SQLALCHEMY, OURS_SQLALCHEMY_PSYCOPG, SQLALCHEMY, SQLALCHEMY_PSYCOPG
from benchmarks.lab import CPU, SPEED, Goal, Question, bursts_of, label

if TYPE_CHECKING:
    from benchmarks.contenders import Client
    from benchmarks.lab import Heat, Lab

QUERIES = 600
TASKS = (1, 10, 50)
# By driver: SQLAlchemy's own pool, and ours.
PAIRS = {
    "asyncpg": (SQLALCHEMY, OURS_SQLALCHEMY),
    "psycopg": (SQLALCHEMY_PSYCOPG, OURS_SQLALCHEMY_PSYCOPG),
}
# What is hoped for, as factors of what SQLAlchemy's own pool does.
SPEED_BAR = CPU_BAR = 1.0


async def ask(lab: Lab) -> list[Heat]:
    """Of each driver, with a transaction that SQLAlchemy begins and rolls back."""
    heats = []
    for driver, (theirs, ours) in PAIRS.items():
        async with lab.open((theirs, ours)) as clients:
            for tasks in TASKS:
                await lab.warm_up(clients, _execute, tasks=tasks)
                bursts = await lab.burst(clients, _execute, operations=QUERIES, tasks=tasks)
                goals = [
                    Goal(ours.name, SPEED, SPEED_BAR, is_floor=True, peer=theirs.name),
                    Goal(ours.name, CPU, CPU_BAR, is_floor=False, peer=theirs.name),
                ]
                title = f"SQLAlchemy on {driver}: SELECT 1, {label(tasks)}"
                heats.append(bursts_of(title, bursts, goals=goals if ours in bursts else ()))
    return heats


async def _execute(client: Client) -> None:
    from sqlalchemy import text

    async with client.lease() as connection:
        await connection.execute(text("SELECT 1"))


QUESTION = Question("sqlalchemy", ask)
