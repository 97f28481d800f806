"""
Four threads, each with a loop of its own: one pool of ours for all, or a pool of asyncpg's for each.

There may be twelve connections. asyncpg's pools have three each, whatever their loops need of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import asyncpg

import loopaware_pool
from benchmarks.contenders import ASYNCPG, OURS
from benchmarks.lab import CPU, P99, SPEED, Heat, Question
from loopaware_pool.cli.measure import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from benchmarks.contenders import Contender
    from benchmarks.lab import Lab
    from loopaware_pool.asyncpg import Pool

CONNECTIONS = 12
QUERIES = 3000
# Tasks on each loop.
EVEN, UNEVEN = (10, 10, 10, 10), (37, 1, 1, 1)


async def ask(lab: Lab) -> list[Heat]:
    """With as many tasks on each loop, and with nearly all of them on one."""
    new_loop = type(asyncio.get_running_loop())
    heats = []
    for tasks in (EVEN, UNEVEN):
        rounds: dict[str, list[dict[str, float]]] = {}
        for _ in range(lab.few_rounds):
            for contender in lab.among((ASYNCPG, OURS)):
                figures = await asyncio.to_thread(_run, contender, lab, tasks, new_loop)
                rounds.setdefault(contender.name, []).append(figures)
        heats.append(Heat(f"{len(tasks)} loops in threads, {_words(tasks)}, {CONNECTIONS} connections", rounds))
    return heats


def _words(tasks: Sequence[int]) -> str:
    return f"{', '.join(map(str, tasks[:-1]))} and {tasks[-1]} tasks"


def _part(dsn: str, loops: int) -> AbstractAsyncContextManager[Any]:
    size = CONNECTIONS // loops
    pool: AbstractAsyncContextManager[Any] = asyncpg.create_pool(dsn, min_size=size, max_size=size)
    return pool


async def _open(dsn: str) -> Pool:
    return await loopaware_pool.create_pool(dsn, min_size=0, max_size=CONNECTIONS)


def _run(
    contender: Contender, lab: Lab, tasks: Sequence[int], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> dict[str, float]:
    """Start the clock once each loop has its connections, and stop it when the last is done."""
    dsn, each = lab.setting.dsn, lab.scaled(QUERIES) // sum(tasks) + 1
    shared = asyncio.run(_open(dsn)) if contender is OURS else None
    gate = threading.Barrier(len(tasks) + 1)
    latencies: list[float] = []

    async def work(pool: Any) -> None:
        for _ in range(each):
            began = perf_counter()
            async with pool.acquire() as connection:
                await connection.fetchval("SELECT 1")
            latencies.append(perf_counter() - began)

    async def serve(number: int) -> None:
        async with nullcontext(shared) if shared is not None else _part(dsn, len(tasks)) as pool:
            async with pool.acquire() as connection:
                await connection.fetchval("SELECT 1")
            gate.wait()
            async with asyncio.TaskGroup() as group:
                for _ in range(number):
                    group.create_task(work(pool))

    def run(number: int) -> None:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(serve(number))
        except BaseException:
            gate.abort()  # else the others would wait for ever
            raise

    with ThreadPoolExecutor(len(tasks)) as threads:
        running = [threads.submit(run, number) for number in tasks]
        with contextlib.suppress(threading.BrokenBarrierError):  # then one of them tells why, below
            gate.wait()
        cpu, began = process_time(), perf_counter()
        for one in running:
            one.result()
        wall, cpu = perf_counter() - began, process_time() - cpu
    if shared is not None:
        shared.terminate()
    return {
        SPEED: len(latencies) / wall,
        CPU: cpu / len(latencies) * 1e6,
        P99: percentile(latencies, 99) * 1e3,
    }


QUESTION = Question("many-loops", ask)
