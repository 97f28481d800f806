"""How long results of 100 KB to 10 MB take: ours ask for 64 KiB at each read, asyncio's connections for 256 KiB."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.contenders import ASYNCPG, BARE_ASYNCPG, BARE_ASYNCPG_64_KIB, OURS
from benchmarks.lab import Question, bursts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.contenders import Client, Contender
    from benchmarks.lab import Heat, Lab

__all__ = ["CONTENDERS", "QUESTION", "ask_for_results"]

CONTENDERS = (BARE_ASYNCPG, BARE_ASYNCPG_64_KIB, ASYNCPG, OURS)
# How large, and how often in a round.
SIZES = {"100 KB": (100_000, 200), "1 MB": (1_000_000, 40), "10 MB": (10_000_000, 6)}


async def ask(lab: Lab) -> list[Heat]:
    """Of one task."""
    async with lab.open(CONTENDERS) as clients:
        return await ask_for_results(lab, clients, "")


async def ask_for_results(lab: Lab, clients: Mapping[Contender, Client], how: str) -> list[Heat]:
    """Ask *clients* for results of each size; *how* ends the titles."""
    heats = []
    for name, (size, times) in SIZES.items():
        fetch = partial(_fetch, query=f"SELECT repeat('x', {size})")
        await lab.warm_up(clients, fetch, tasks=1)
        bursts = await lab.burst(clients, fetch, operations=times, tasks=1)
        heats.append(bursts_of(f"a result of {name}{how}, 1 task", bursts))
    return heats


async def _fetch(client: Client, query: str) -> None:
    await client.fetch(query)


QUESTION = Question("results", ask)
