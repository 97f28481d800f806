"""
What a lease costs, counted, not timed: calls, callbacks, timers, tasks, futures and system calls of one cycle.

The budgets are what was counted when they were written, and a little. A change that needs more must say why, here.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import sys
from collections import Counter
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from loopaware_pool._core import parking
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.psycopg import AsyncConnectionPool
from psycopg_pools import IS_PSYCOPG_3_2

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or IS_PSYCOPG_3_2, reason="calls are counted with one Python and one driver"
)

CYCLES = 200
# A machine that stands still now and then adds timers that fire, and what they call; nothing takes calls away.
ATTEMPTS = 3
CONNECTIONS = 10
CROWD = 50
# Functions in C that are a system call each, by the names that the profiler gives them; not `epoll.poll`, see TURNS.
SYSTEM_CALLS = {
    "send",
    "recv",
    "recv_into",
    "epoll.register",
    "epoll.modify",
    "epoll.unregister",
    "poll.poll",
}
# How often a loop turns depends on how fast the server answers, so what asyncio calls in a turn is not counted.
TURNS = (asyncio.base_events.__file__, asyncio.events.__file__, asyncio.selector_events.__file__, selectors.__file__)


class Cost(NamedTuple):
    """Of one cycle, on average; system calls of libpq are not seen."""

    calls: float
    callbacks: float
    timers: float
    tasks: float
    futures: float
    system_calls: float


class Counting:
    """Counts what is called in this thread, and what is asked of the running loop."""

    def __init__(self):
        self.counts = Counter()
        self.loop = asyncio.get_running_loop()

    def __enter__(self):
        for what in ("call_soon", "call_at", "create_task", "create_future"):
            setattr(self.loop, what, self._counted(what, getattr(self.loop, what)))
        gc.collect()
        gc.disable()
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *exc):
        sys.setprofile(None)
        gc.enable()
        for what in ("call_soon", "call_at", "create_task", "create_future"):
            delattr(self.loop, what)

    def _counted(self, what, method):
        def counted(*args, **kwargs):
            self.counts[what] += 1
            return method(*args, **kwargs)

        return counted

    def _profile(self, frame, event, function):
        if event == "call":
            code = frame.f_code
            self.counts["calls"] += code.co_name != "counted" and code.co_filename not in TURNS
        elif event == "c_call" and function.__qualname__.removeprefix("socket.") in SYSTEM_CALLS:
            self.counts["system_calls"] += 1

    def per_cycle(self):
        names = ("calls", "call_soon", "call_at", "create_task", "create_future", "system_calls")
        return Cost(*(self.counts[name] / CYCLES for name in names))


async def count(cycle, tasks):
    """Count what CYCLES cycles cost, after a warm-up, shared by so many tasks."""

    async def work(cycles):
        for _ in range(cycles):
            await cycle()

    async def all_of(cycles):
        if tasks == 1:
            await work(cycles)
        else:
            await asyncio.gather(*(work(cycles // tasks) for _ in range(tasks)))

    await all_of(10 * tasks)
    with Counting() as counting:
        await all_of(CYCLES)
    return counting.per_cycle()


@asynccontextmanager
async def asyncpg_pool(dsn, **options):
    async with create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, **options) as pool:
        yield pool, pool.acquire, "fetchval"


@asynccontextmanager
async def psycopg_pool(dsn, **options):
    options = {"min_size": CONNECTIONS, "max_size": CONNECTIONS, "kwargs": {"autocommit": True}} | options
    async with AsyncConnectionPool(dsn, open=False, **options) as pool:
        await pool.wait()
        yield pool, pool.connection, "execute"


def lease(of, dsn, tasks, *, asks, **options):
    async def main():
        async with of(dsn, **options) as (_, acquire, query):

            async def ask():
                async with acquire() as connection:
                    await getattr(connection, query)("SELECT 1")

            async def take():
                async with acquire():
                    pass

            return await count(ask if asks else take, tasks)

    return asyncio.run(main())


# Of the calls, 3 to 5 are the test's own. On a busy machine an answer comes in two parts, which is a read and 2 or 3
# calls more for each, and psycopg's timer fires, which is some 3 calls each time.
BUDGETS = {
    (asyncpg_pool, "never", 1, False): Cost(25, 0, 0, 0, 0, 1),
    (asyncpg_pool, "auto", 1, True): Cost(62, 2.2, 0.5, 0, 0, 4.5),
    (asyncpg_pool, "when_dirty", 1, True): Cost(52, 2.2, 0.5, 0, 0, 3.5),
    (asyncpg_pool, "confirmed", 1, True): Cost(66, 2.2, 0.5, 0, 0, 5.5),
    # A callback more, for a reset that is held back, and a system call less, as it goes out with the query.
    (asyncpg_pool, "auto", CROWD, True): Cost(80, 5, 0.5, 0.3, 1, 3.5),
    (asyncpg_pool, "when_dirty", CROWD, True): Cost(69, 4, 0.5, 0.3, 1, 3.5),
    (psycopg_pool, "never", 1, False): Cost(37, 0, 0, 0, 0, 0),
    (psycopg_pool, "never", 1, True): Cost(116, 0.5, 0.5, 0, 0, 0.5),
    (psycopg_pool, "never", CROWD, True): Cost(131, 3, 0.5, 0.3, 1, 0.5),
}


@pytest.mark.parametrize(("of", "session_reset", "tasks", "asks"), BUDGETS)
def test_a_cycle_stays_within_its_budget(dsn, monkeypatch, of, session_reset, tasks, asks):
    """A lease, with a query or without, of one task or of a crowd."""
    monkeypatch.setattr(parking, "PARK_SECONDS", 60.0)  # how many are parked meanwhile is a matter of time
    budget = BUDGETS[of, session_reset, tasks, asks]
    over = {}
    for _ in range(ATTEMPTS):
        cost = lease(of, dsn, tasks, asks=asks, session_reset=session_reset)
        over = {name: (got, most) for name, got, most in zip(Cost._fields, cost, budget, strict=True) if got > most}
        if not over:
            break
    assert over == {}
