"""
One pool for a hundred loops in a hundred threads, ten thousand callers and two thousand connections.

The peers are the drivers' own pools: one for each loop, with its part of the connections.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from multiprocessing import get_context
from statistics import mean
from time import perf_counter, process_time, sleep
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg_pool

import loopaware_pool
from benchmarks.contenders import ASYNCPG, OURS, OURS_PSYCOPG, PSYCOPG_POOL
from benchmarks.lab import CPU, P99, SPEED, Heat, NotHere
from loopaware_pool.cli.measure import percentile
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.testing.embedded_server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from benchmarks.lab import Lab

LOOPS, CONNECTIONS, CALLERS, SECONDS = 100, 2000, 10_000, 5.0
OPENING, OPENED, WAITING = "s to open all", "KiB/connection", "KiB/waiting caller"
FAIRNESS = "mean wait: slowest/fastest loop"
MOVED = "moved between loops"
# A loop has three fds of its own; the rest is the interpreter's, and the other loops' of the benchmark.
FDS = CONNECTIONS + 3 * LOOPS + 300
GIVE_UP_SECONDS = 300.0
NOTE = (
    "Each contender has a process of its own. Memory is that process' (resident), what drivers keep outside of Python "
    "included; a waiting caller is counted with its task. Each lease has one query."
)


async def ask(lab: Lab) -> list[Heat]:
    """One contender after the other opens all its connections, has all callers wait, and then serves them."""
    _raise_fd_limit()
    new_loop = type(asyncio.get_running_loop())
    connections, callers = (max(lab.scaled(number) // LOOPS, 1) for number in (CONNECTIONS, CALLERS))  # on each loop
    seconds = SECONDS * lab.effort
    rounds: dict[str, list[dict[str, float]]] = {}
    settings = {"max_connections": str(CONNECTIONS + 100), "shared_buffers": "16MB"}
    with EmbeddedServer(settings=settings) as server:
        for _ in range(lab.few_rounds):
            for contender in lab.among((ASYNCPG, OURS, PSYCOPG_POOL, OURS_PSYCOPG)):
                crowd = _Crowd(server.dsn, contender.name, connections, callers, seconds)
                figures = await asyncio.to_thread(_in_a_process_of_its_own, crowd, new_loop)
                rounds.setdefault(contender.name, []).append(figures)
    total = f"{LOOPS * callers:,} callers, {LOOPS * connections:,} connections"
    title = f"{LOOPS} loops in threads, {total}, {seconds:g} s"
    return [Heat(title, rounds, note=NOTE)]


def _in_a_process_of_its_own(crowd: _Crowd, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> dict[str, float]:
    """Memory that one contender has had and given back would look like memory that the next does not need."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(crowd.run, new_loop).result()


def _raise_fd_limit() -> None:
    """
    Allow this process as many fds as the question needs.

    Raises:
        NotHere: The system allows fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FDS:
        raise NotHere(f"{FDS} fds are needed, and the hard limit (ulimit -Hn) is {hard}")
    if soft != resource.RLIM_INFINITY and soft < FDS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FDS, hard))


class _Crowd:
    """
    The loops and callers of one contender. Goes to a process of its own, and runs there.

    Args:
        dsn: Of the server.
        contender: The name of the one whose pool is used.
        connections: How many each loop holds when all are open.
        callers: How many each loop has.
        seconds: How long they ask for connections.
    """

    def __init__(self, dsn: str, contender: str, connections: int, callers: int, seconds: float) -> None:
        self.dsn = dsn
        self.contender = contender
        self.connections = connections
        self.callers = callers
        self.seconds = seconds

    def run(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> dict[str, float]:
        """Return the figures. At each gate, this thread takes some, and then lets all others go on."""
        self.waits: list[list[float]] = []
        self.all_open, self.all_wait, self.go, self.leave = (threading.Barrier(LOOPS + 1) for _ in range(4))
        self.shared: Any = None
        self.end_at = inf
        if self.contender in (OURS.name, OURS_PSYCOPG.name):
            with asyncio.Runner(loop_factory=new_loop) as runner:
                self.shared = runner.run(self._open_shared())
        threads = [threading.Thread(target=self._run_loop, args=(new_loop,), daemon=True) for _ in range(LOOPS)]
        began, before = perf_counter(), _resident_kib()
        for thread in threads:
            thread.start()
        self.all_open.wait(GIVE_UP_SECONDS)
        opening, opened = perf_counter() - began, _resident_kib()
        self.go.wait(GIVE_UP_SECONDS)
        self.all_wait.wait(GIVE_UP_SECONDS)
        waiting = _resident_kib()
        cpu, began = process_time(), perf_counter()
        self.end_at = began + self.seconds
        self.leave.wait(GIVE_UP_SECONDS)
        sleep(self.seconds)
        # From now on, loops whose callers are done give their connections to others: that is no steady state.
        figures = self._speed(perf_counter() - began, process_time() - cpu)
        for thread in threads:
            thread.join(GIVE_UP_SECONDS)
        return {
            **figures,
            OPENING: opening,
            OPENED: (opened - before) / (LOOPS * self.connections),
            WAITING: (waiting - opened) / (LOOPS * self.callers),
        }

    def _speed(self, wall: float, cpu: float) -> dict[str, float]:
        loops = [loop[:] for loop in self.waits if loop]
        waits = [wait for loop in loops for wait in loop]
        means = [mean(loop) for loop in loops]
        return {
            SPEED: len(waits) / wall,
            CPU: cpu / len(waits) * 1e6,
            P99: percentile(waits, 99) * 1e3,
            FAIRNESS: max(means) / min(means),
            MOVED: 0 if self.shared is None else self.shared.stats().totals.permits_moved,
        }

    def _run_loop(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        gates = (self.all_open, self.go, self.all_wait, self.leave)
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(self._serve())
        except BaseException:
            for gate in gates:
                gate.abort()  # else the others would wait for ever
            raise

    async def _serve(self) -> None:
        waits: list[float] = []
        self.waits.append(waits)

        async def call(pool: Any) -> None:
            began = perf_counter()
            while not waits or began < self.end_at:
                async with self._lend(pool) as query:
                    waits.append(perf_counter() - began)
                    await query("SELECT 1")
                began = perf_counter()

        async with self._pool() as pool:
            async with AsyncExitStack() as stack:
                opening = [
                    asyncio.create_task(stack.enter_async_context(self._lend(pool))) for _ in range(self.connections)
                ]
                await asyncio.gather(*opening)
                await asyncio.to_thread(self.all_open.wait, GIVE_UP_SECONDS)
                await asyncio.to_thread(self.go.wait, GIVE_UP_SECONDS)
                callers = [asyncio.create_task(call(pool)) for _ in range(self.callers)]
                await asyncio.sleep(0)
                await asyncio.to_thread(self.all_wait.wait, GIVE_UP_SECONDS)
                await asyncio.to_thread(self.leave.wait, GIVE_UP_SECONDS)
            await asyncio.gather(*callers)

    async def _open_shared(self) -> Any:
        size = LOOPS * self.connections
        if self.contender == OURS.name:
            return await loopaware_pool.create_pool(self.dsn, min_size=0, max_size=size)
        pool = AsyncConnectionPool(self.dsn, min_size=0, max_size=size, timeout=GIVE_UP_SECONDS, open=False)
        await pool.open()
        return pool

    @asynccontextmanager
    async def _pool(self) -> AsyncIterator[Any]:
        """Give the shared pool, or one of this loop's own that is closed in the end."""
        if self.shared is not None:
            yield self.shared
        elif self.contender == ASYNCPG.name:
            async with asyncpg.create_pool(self.dsn, min_size=self.connections, max_size=self.connections) as pool:
                yield pool
        else:
            size = self.connections
            own = psycopg_pool.AsyncConnectionPool(
                self.dsn, min_size=size, max_size=size, timeout=GIVE_UP_SECONDS, open=False
            )
            async with own:
                yield own

    @asynccontextmanager
    async def _lend(self, pool: Any) -> AsyncIterator[Callable[[str], Any]]:
        if self.contender in (ASYNCPG.name, OURS.name):
            async with pool.acquire() as connection:
                yield connection.fetchval
        else:
            async with pool.connection() as connection:
                yield connection.execute


def _resident_kib() -> float:
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1024
