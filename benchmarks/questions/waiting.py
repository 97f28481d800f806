"""How long the unluckiest task waits for a connection, when there are ten times as many tasks as connections."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.lab import CONNECTIONS, Question, Target

if TYPE_CHECKING:
    from benchmarks.lab import Finding, Lab

TASKS = 100
HELD_SECONDS = 0.020
# The last ten tasks wait for nine turns before theirs.
IDEAL_SECONDS = (TASKS / CONNECTIONS - 1) * HELD_SECONDS
TARGET = Target(1.6, is_floor=False)


async def ask(lab: Lab) -> list[Finding]:
    """With 100 tasks that start at once, each of which holds a connection for 20 ms."""
    async with lab.asyncpg_contenders() as contenders:
        duel = await contenders.duel(_longest_wait)
    name = f"longest wait of {TASKS} tasks"
    return [duel.compare(name, "ms", lambda seconds: seconds * 1e3, target=TARGET, ideal=IDEAL_SECONDS * 1e3)]


async def _longest_wait(pool: Any) -> float:
    waits: list[float] = []
    began = perf_counter()

    async def hold() -> None:
        async with pool.acquire():
            waits.append(perf_counter() - began)
            await asyncio.sleep(HELD_SECONDS)

    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(hold())
    return max(waits)


QUESTION = Question("waiting", 1, ask)
