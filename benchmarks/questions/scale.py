"""What an acquire costs as more callers wait and as there are more connections: the core alone, on a fake driver."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from time import monotonic, process_time
from typing import TYPE_CHECKING

from benchmarks.contenders import CONNECTIONS
from benchmarks.lab import Goal, Heat, Question
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool.driver import ReturnCheck
from loopaware_pool.testing import FakeDriver, FakeSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.lab import Lab
    from loopaware_pool._core.slot import Slot

COST = "CPU us/acquire"
WAITERS = (32, 1000, 10_000)
SIZES = (10, 100, 1000)
ACQUIRES = 40_000


class _Face:
    """Stands for the pool object that a user holds: the core ends with it."""


async def ask(lab: Lab) -> list[Heat]:
    """Each size in turn, so that a ratio is of one minute."""
    waiting: dict[str, list[dict[str, float]]] = {_callers(number): [] for number in WAITERS}
    idle: dict[str, list[dict[str, float]]] = {_connections(number): [] for number in SIZES}
    for _ in range(lab.few_rounds):
        for number in WAITERS:
            waiting[_callers(number)].append({COST: await _cost_in_queue(number, lab.scaled(ACQUIRES))})
        for number in SIZES:
            idle[_connections(number)].append({COST: await _cost_when_idle(number, lab.scaled(ACQUIRES))})
    return [
        Heat(
            f"waiting callers, {CONNECTIONS} connections of a fake driver",
            waiting,
            goals=[Goal(_callers(WAITERS[-1]), COST, 1.5, is_floor=False, peer=_callers(WAITERS[0]))],
        ),
        Heat(
            "idle connections of a fake driver, 1 task",
            idle,
            goals=[Goal(_connections(SIZES[-1]), COST, 1.2, is_floor=False, peer=_connections(SIZES[0]))],
        ),
    ]


def _callers(number: int) -> str:
    return f"{number:,} waiting"


def _connections(number: int) -> str:
    return f"{number:,} connections"


@asynccontextmanager
async def _core(max_size: int) -> AsyncIterator[PoolCore[FakeSession]]:
    face = _Face()
    core = PoolCore(PoolConfig(min_size=max_size, init_size=max_size, max_size=max_size), FakeDriver(), face)
    await core.open()
    try:
        yield core
    finally:
        core.terminate()


async def _acquire(core: PoolCore[FakeSession]) -> Slot[FakeSession]:
    runner = core.runner()
    return runner.shard.take(monotonic()) or await core.queue.wait(runner, None)


def _release(core: PoolCore[FakeSession], slot: Slot[FakeSession]) -> None:
    core.runner().shard.returned(slot, ReturnCheck.READY, monotonic())


async def _cost_in_queue(waiters: int, acquires: int) -> float:
    """So many tasks, that many of which always wait, acquire in turn."""
    served = 0

    async def work(core: PoolCore[FakeSession]) -> None:
        nonlocal served
        while served < acquires:
            slot = await _acquire(core)
            served += 1
            await asyncio.sleep(0)
            _release(core, slot)

    async with _core(CONNECTIONS) as core:
        gc.collect()
        async with asyncio.TaskGroup() as group:
            for _ in range(waiters + CONNECTIONS):
                group.create_task(work(core))
            await asyncio.sleep(0)  # all have asked
            served, began = 0, process_time()
        return (process_time() - began) / served * 1e6  # those who waited at the end were served as well


async def _cost_when_idle(connections: int, acquires: int) -> float:
    async with _core(connections) as core:
        await asyncio.sleep(0.1)  # all are parked
        gc.collect()
        began = process_time()
        for _ in range(acquires):
            _release(core, await _acquire(core))
        return (process_time() - began) / acquires * 1e6


QUESTION = Question("scale", ask)
