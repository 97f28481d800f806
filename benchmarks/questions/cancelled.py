"""What callers that give up cost the others: 64 of them are cancelled while they wait, for each one that is served."""

from __future__ import annotations

import asyncio
from time import perf_counter, process_time
from typing import TYPE_CHECKING

from benchmarks.contenders import ASYNCPG, CONNECTIONS, OURS, OURS_PSYCOPG, PSYCOPG_POOL, SQLALCHEMY
from benchmarks.lab import CPU, Heat, Question

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from benchmarks.contenders import Client
    from benchmarks.lab import Lab

CONTENDERS = (ASYNCPG, SQLALCHEMY, PSYCOPG_POOL, OURS, OURS_PSYCOPG)
GIVE_UP = 64
CYCLES = 30
HANDED_OVER = "handed over us"


async def ask(lab: Lab) -> list[Heat]:
    """puddle's case."""
    async with lab.open(CONTENDERS) as clients:
        turns = await lab.take_turns(clients, lambda client: _cycles(client, lab.scaled(CYCLES)))
    title = f"{GIVE_UP} callers give up for each one served"
    return [Heat(title, {one.name: each for one, each in turns.items()})]


async def _cycles(client: Client, cycles: int) -> dict[str, float]:
    leases = [client.lease() for _ in range(CONNECTIONS)]
    for lease in leases:
        await lease.__aenter__()
    handing_over = 0.0
    cpu = process_time()
    for _ in range(cycles):
        doomed = [asyncio.create_task(_lease(client)) for _ in range(GIVE_UP)]
        lease = client.lease()
        served = asyncio.create_task(_enter(lease))
        for _ in range(3):  # all wait by now
            await asyncio.sleep(0)
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        began = perf_counter()
        await leases.pop(0).__aexit__(None, None, None)
        await served
        handing_over += perf_counter() - began
        leases.append(lease)
    spent = process_time() - cpu
    for lease in leases:
        await lease.__aexit__(None, None, None)
    return {CPU: spent / cycles * 1e6, HANDED_OVER: handing_over / cycles * 1e6}


async def _lease(client: Client) -> None:
    async with client.lease():
        pass


async def _enter(lease: AbstractAsyncContextManager[object]) -> None:
    await lease.__aenter__()


QUESTION = Question("cancelled", ask)
