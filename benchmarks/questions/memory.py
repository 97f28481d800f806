"""What Python keeps for a connection that is idle, and for a caller that waits."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.contenders import (
    ASYNCPG,
    BARE_ASYNCPG,
    BARE_PSYCOPG,
    OURS,
    OURS_PSYCOPG,
    PSYCOPG_POOL,
    SQLALCHEMY,
)
from benchmarks.lab import Heat, Question, application_name

if TYPE_CHECKING:
    from benchmarks.contenders import Client, Contender, Setting
    from benchmarks.lab import Lab

CONTENDERS = (BARE_ASYNCPG, ASYNCPG, SQLALCHEMY, OURS, BARE_PSYCOPG, PSYCOPG_POOL, OURS_PSYCOPG)
FEW, MANY = 10, 40
CALLERS = 1000
IDLE, WAITING = "bytes/idle connection", "bytes/waiting task"
NOTE = "What the drivers and OpenSSL keep outside of Python is not counted. A waiting task is counted with its task."


async def ask(lab: Lab) -> list[Heat]:
    """By tracemalloc: 30 connections more, and 1,000 callers more."""
    rounds: dict[str, list[dict[str, float]]] = {}
    for contender in lab.among(CONTENDERS):
        async with contender.open(lab.setting, application_name(contender)):
            pass  # what is made once, such as imports, is not a connection's
        sizes = [await _size_idle(contender, replace(lab.setting, min_size=n, max_size=n)) for n in (FEW, MANY)]
        figures = {IDLE: (sizes[1] - sizes[0]) / (MANY - FEW)}
        if contender.max_tasks is None:
            figures[WAITING] = await _size_waiting(contender, lab.setting)
        rounds[contender.name] = [figures]
    return [Heat("memory", rounds, note=NOTE)]


async def _size_idle(contender: Contender, setting: Setting) -> int:
    tracemalloc.start()
    try:
        before = _traced()
        async with contender.open(setting, application_name(contender)) as client:
            # Each connection has been used, so that it has what it keeps.
            async with AsyncExitStack() as stack:
                for _ in range(setting.max_size):
                    await stack.enter_async_context(client.lease())
            await client.settle()
            await asyncio.sleep(0.1)
            return _traced() - before
    finally:
        tracemalloc.stop()


async def _size_waiting(contender: Contender, setting: Setting) -> float:
    async with contender.open(setting, application_name(contender)) as client, AsyncExitStack() as stack:
        for _ in range(setting.max_size):
            await stack.enter_async_context(client.lease())
        tracemalloc.start()
        try:
            before = _traced()
            callers = [asyncio.create_task(_lease(client)) for _ in range(CALLERS)]
            await asyncio.sleep(0.1)
            size = _traced() - before
        finally:
            tracemalloc.stop()
        await stack.aclose()
        await asyncio.gather(*callers)
    return size / CALLERS


async def _lease(client: Client) -> None:
    async with client.lease():
        pass


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


QUESTION = Question("memory", ask)
