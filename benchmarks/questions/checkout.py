"""
What it costs to take a connection and to give it back, with nothing in between.

A session that nobody asked anything stays as clean as its last reset made it. So ours sends one reset where asyncpg's
pool sends one a cycle, and what is measured of ours is the pool alone, with the reset or without.
"""

from __future__ import annotations

from time import perf_counter, process_time
from typing import TYPE_CHECKING

from benchmarks.contenders import ASYNCPG, ASYNCPG_NO_RESET, OURS, OURS_NEVER, OURS_PSYCOPG, PSYCOPG_POOL, SQLALCHEMY
from benchmarks.lab import CPU, Goal, Heat, Question, bursts_of

if TYPE_CHECKING:
    from benchmarks.contenders import Client
    from benchmarks.lab import Lab

CYCLES = 2000
CROWD = 50
WALL = "us"
CONTENDERS = (ASYNCPG_NO_RESET, ASYNCPG, SQLALCHEMY, PSYCOPG_POOL, OURS, OURS_NEVER, OURS_PSYCOPG)
GOALS = tuple(Goal(ours.name, WALL, 4.0, is_floor=False) for ours in (OURS_NEVER, OURS_PSYCOPG))


async def ask(lab: Lab) -> list[Heat]:
    """Of one task, and of a crowd."""
    async with lab.open(CONTENDERS) as clients:
        turns = await lab.take_turns(clients, lambda client: _cycle(client, lab.scaled(CYCLES)))
        lonely = Heat("acquire and release, 1 task", {one.name: each for one, each in turns.items()}, goals=GOALS)
        await lab.warm_up(clients, _lease, tasks=CROWD)
        crowd = await lab.burst(clients, _lease, operations=CYCLES, tasks=CROWD)
    return [lonely, bursts_of(f"acquire and release, {CROWD} tasks", crowd)]


async def _cycle(client: Client, cycles: int) -> dict[str, float]:
    cpu, began = process_time(), perf_counter()
    for _ in range(cycles):
        async with client.lease():
            pass
    await client.settle()
    return {WALL: (perf_counter() - began) / cycles * 1e6, CPU: (process_time() - cpu) / cycles * 1e6}


async def _lease(client: Client) -> None:
    async with client.lease():
        pass


QUESTION = Question("checkout", ask)
