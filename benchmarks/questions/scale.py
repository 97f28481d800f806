"""
What an acquire costs as more callers wait, and as there are more connections and more loops.

Of the core alone, on a fake driver; and of a hundred loops on a server of their own (`scale_loops`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from contextlib import ExitStack, asynccontextmanager, nullcontext
from statistics import mean
from time import monotonic, process_time
from typing import TYPE_CHECKING

from benchmarks.contenders import CONNECTIONS
from benchmarks.lab import Goal, Heat, Question
from benchmarks.questions import scale_loops
from benchmarks.questions.scale_loops import FAIRNESS
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool.driver import ReturnCheck
from loopaware_pool.testing import FakeDriver, FakeSession, LoopThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.lab import Lab
    from loopaware_pool._core.slot import Slot

COST = "CPU us/acquire"
WAITERS = (32, 1000, 10_000)
SIZES = (10, 100, 1000)
LOOPS = (1, 10, 100)
CALLERS = 1000
LEASE_SECONDS = 0.03
# Connections that are lent while callers time out, and for how long these wait.
LEASED, TIMEOUT_SECONDS = 100, 1.0
SECONDS = 1.5
ACQUIRES = 40_000


class _Face:
    """Stands for the pool object that a user holds: the core ends with it."""


async def ask(lab: Lab) -> list[Heat]:
    """Each size in turn, so that a ratio is of one minute. The loops in threads are asyncio's."""
    heats = await _ask_on_one_loop(lab)
    if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
        heats += [await _ask_beside_others(lab), await _ask_on_many_loops(lab), await _ask_of_timeouts(lab)]
        heats += await scale_loops.ask(lab)
    return heats


async def _ask_on_one_loop(lab: Lab) -> list[Heat]:
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


async def _ask_beside_others(lab: Lab) -> Heat:
    rounds: dict[str, list[dict[str, float]]] = {_beside(number): [] for number in LOOPS}
    for _ in range(lab.few_rounds):
        for number in LOOPS:
            rounds[_beside(number)].append({COST: await _cost_beside(number - 1, lab.scaled(ACQUIRES))})
    goal = Goal(_beside(LOOPS[-1]), COST, 1.1, is_floor=False, peer=_beside(LOOPS[0]))
    return Heat("an idle connection of a fake driver, 1 task, one of so many loops", rounds, goals=[goal])


async def _ask_on_many_loops(lab: Lab) -> Heat:
    rounds: dict[str, list[dict[str, float]]] = {}
    for _ in range(lab.few_rounds):
        for number in LOOPS:
            for is_shared in (True, False):
                name = f"{_beside(number)}, {'one pool' if is_shared else 'a pool each'}"
                figures = await asyncio.to_thread(_on_many_loops, number, SECONDS * lab.effort, is_shared=is_shared)
                rounds.setdefault(name, []).append(figures)
    callers = f"{CALLERS:,} callers, {CALLERS // 10} connections of a fake driver"
    return Heat(f"{callers}, leases of {LEASE_SECONDS * 1e3:g} ms, by the number of loops", rounds)


async def _ask_of_timeouts(lab: Lab) -> Heat:
    rounds: dict[str, list[dict[str, float]]] = {_beside(number): [] for number in LOOPS}
    callers = max(lab.scaled(WAITERS[-1]), LOOPS[-1])
    for _ in range(lab.few_rounds):
        for number in LOOPS:
            rounds[_beside(number)].append(await asyncio.to_thread(_all_time_out, number, callers))
    return Heat(f"{callers:,} callers that time out at once, {LEASED} connections of a fake driver, all lent", rounds)


def _beside(number: int) -> str:
    return f"{number:,} loop{'s' if number > 1 else ''}"


def _callers(number: int) -> str:
    return f"{number:,} waiting"


def _connections(number: int) -> str:
    return f"{number:,} connections"


@asynccontextmanager
async def _core(size: int, *, max_size: int | None = None) -> AsyncIterator[PoolCore[FakeSession]]:
    face = _Face()
    core = PoolCore(PoolConfig(min_size=size, init_size=size, max_size=max_size or size), FakeDriver(), face)
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


async def _cost_beside(others: int, acquires: int) -> float:
    """One loop acquires and releases what is idle on it, while others have an idle connection each and do nothing."""

    async def lend_one(core: PoolCore[FakeSession]) -> None:
        _release(core, await _acquire(core))

    async with _core(1, max_size=others + 1) as core:
        with ExitStack() as stack:
            for _ in range(others):
                stack.enter_context(LoopThread()).run(lend_one(core))
            began = process_time()
            for _ in range(acquires):
                _release(core, await _acquire(core))
            return (process_time() - began) / acquires * 1e6


def _on_many_loops(loops: int, seconds: float, *, is_shared: bool) -> dict[str, float]:
    """Callers on so many loops in threads acquire in turn, from a pool for all or from one for each loop."""
    connections = CALLERS // 10
    waits: list[list[float]] = []
    gate = threading.Barrier(loops + 1)

    async def work(core: PoolCore[FakeSession], own: list[float], end_at: float) -> None:
        began = monotonic()
        while not own or began < end_at:
            slot = await _acquire(core)
            own.append(monotonic() - began)
            await asyncio.sleep(LEASE_SECONDS)
            _release(core, slot)
            began = monotonic()

    async def serve(shared: PoolCore[FakeSession] | None) -> None:
        own: list[float] = []
        async with nullcontext(shared) if shared is not None else _core(connections // loops) as core:
            slots = [await _acquire(core) for _ in range(connections // loops)]
            gate.wait()  # each loop has its part
            for slot in slots:
                _release(core, slot)
            await asyncio.gather(*(work(core, own, monotonic() + seconds) for _ in range(CALLERS // loops)))
        waits.append(own)

    async def run() -> float:
        async with _core(0, max_size=connections) as shared:
            threads = [
                threading.Thread(target=asyncio.run, args=(serve(shared if is_shared else None),)) for _ in range(loops)
            ]
            for thread in threads:
                thread.start()
            gate.wait()
            began = process_time()
            for thread in threads:
                await asyncio.to_thread(thread.join)
            return process_time() - began

    cpu = asyncio.run(run())
    means = [mean(own) for own in waits]
    return {COST: cpu / sum(map(len, waits)) * 1e6, FAIRNESS: max(means) / min(means)}


def _all_time_out(loops: int, callers: int) -> dict[str, float]:
    """How late the last caller gets its timeout, where all connections are lent and no caller is served."""
    late: list[float] = []
    have_begun, have_ended = threading.Barrier(loops + 1), threading.Barrier(loops)

    async def wait(core: PoolCore[FakeSession]) -> None:
        due = monotonic() + TIMEOUT_SECONDS
        with contextlib.suppress(TimeoutError):
            await core.queue.wait(core.runner(), TIMEOUT_SECONDS)
        late.append(monotonic() - due)

    async def serve(core: PoolCore[FakeSession]) -> None:
        slots = [await _acquire(core) for _ in range(LEASED // loops)]
        for slot in slots:
            slot.lent_to(asyncio.current_task(), None, 0)
        have_begun.wait()
        await asyncio.gather(*(wait(core) for _ in range(callers // loops)))
        have_ended.wait()
        for slot in slots:
            _release(core, slot)

    async def run() -> float:
        async with _core(0, max_size=LEASED) as core:
            threads = [threading.Thread(target=asyncio.run, args=(serve(core),)) for _ in range(loops)]
            for thread in threads:
                thread.start()
            have_begun.wait()
            began = process_time()
            for thread in threads:
                await asyncio.to_thread(thread.join)
            return process_time() - began

    cpu = asyncio.run(run())
    return {"ms late, the last": max(late) * 1e3, "CPU us/timeout": cpu / len(late) * 1e6}


QUESTION = Question("scale", ask)
