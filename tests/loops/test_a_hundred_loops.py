"""A hundred loops in a hundred threads, ten thousand callers, and one pool of fewer connections than loops."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

import psycopg_pools
from forking import in_child
from loopaware_pool.errors import PoolClosed, PoolTimeout
from loopaware_pool.psycopg import AsyncConnectionPool
from running import DEADLINE_SECONDS, eventually, make_pool, no_session_left, no_socket_left

pytestmark = pytest.mark.thorough

LOOPS, CALLERS, CONNECTIONS = 100, 100, 60
# Of the loops, every so manyth ends before its callers are done.
ENDING = 10
# Longer than the whole test may take: whoever waits so long, waits for ever.
PATIENT_SECONDS, HASTY_SECONDS = 3 * DEADLINE_SECONDS, 0.2


class AsyncpgPool:
    """asyncpg's flavour."""

    def __init__(self, dsn):
        self.pool = make_pool(dsn, max_size=CONNECTIONS)

    async def open(self):
        await self.pool

    @asynccontextmanager
    async def lend(self, timeout):
        async with self.pool.acquire(timeout=timeout) as connection:
            yield connection.fetchval


class PsycopgPool:
    """psycopg_pool's flavour."""

    def __init__(self, dsn):
        self.pool = psycopg_pools.make_pool(AsyncConnectionPool, dsn, min_size=0, max_size=CONNECTIONS)

    async def open(self):
        await self.pool.open()

    @asynccontextmanager
    async def lend(self, timeout):
        async with self.pool.connection(timeout=timeout) as connection:

            async def value(query):
                return (await (await connection.execute(query)).fetchone())[0]

            yield value


class Crowd:
    """The callers of all loops, and what became of each."""

    def __init__(self, pool, runner_factory):
        self.pool = pool
        self.runner_factory = runner_factory
        self.outcomes = {}
        self.errors = []
        self.gate = threading.Barrier(LOOPS + 1)

    def run_loop(self, number):
        try:
            with self.runner_factory() as runner:
                runner.run(self._serve(number))
        except BaseException as error:
            self.errors.append(error)
            self.gate.abort()

    async def _serve(self, number):
        loop, dice = asyncio.get_running_loop(), random.Random(number)
        self.gate.wait(DEADLINE_SECONDS)
        tasks = [loop.create_task(self._call(number, caller)) for caller in range(CALLERS)]
        await asyncio.sleep(0)  # all have begun
        for task in tasks[::3]:
            loop.call_later(dice.random() * 2, task.cancel)
        is_ending = number % ENDING == 0
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED if is_ending else asyncio.ALL_COMPLETED)

    async def _call(self, number, caller):
        key = (number, caller)
        outcome = "cancelled"
        try:
            async with self.pool.lend(HASTY_SECONDS if caller % 3 == 1 else PATIENT_SECONDS) as value:
                answer = await value(f"SELECT {number * CALLERS + caller}")
                assert answer == number * CALLERS + caller, "another caller's answer"
                outcome = "served"
        except PoolTimeout:
            outcome = "timed out"
        except PoolClosed:
            outcome = "loop ended"
        finally:
            assert key not in self.outcomes, "served twice"
            self.outcomes[key] = outcome


async def use_to_the_full(pool):
    """Lend all connections at once."""
    async with AsyncExitStack() as stack:
        values = [await stack.enter_async_context(pool.lend(DEADLINE_SECONDS)) for _ in range(CONNECTIONS)]
        return [await value(f"SELECT {number}") for number, value in enumerate(values)]


@pytest.mark.parametrize("flavour", [AsyncpgPool, PsycopgPool])
def test_a_hundred_loops_and_ten_thousand_callers(dsn, run, runner_factory, flavour):
    """
    Of each loop's callers a third is cancelled at a random moment, a third allows 0.2 s, and the others wait. Ten
    loops end in the middle, and the process forks. Each caller has one end, and the patient ones have the right answer.
    Afterwards all permits are there, and no thread, no socket and no session is left.
    """
    pool = flavour(dsn)
    crowd = Crowd(pool, runner_factory)
    threads = [threading.Thread(target=crowd.run_loop, args=(number,), daemon=True) for number in range(LOOPS)]

    async def answers_in_child():
        async with pool.lend(DEADLINE_SECONDS) as value:
            return await value("SELECT 1"), pool.pool.stats().size

    def child():
        with runner_factory() as runner:
            return runner.run(answers_in_child())

    with no_socket_left():
        run(pool.open())
        for thread in threads:
            thread.start()
        crowd.gate.wait(DEADLINE_SECONDS)
        eventually(lambda: len(crowd.outcomes) > LOOPS * CALLERS / 5, "a fifth of the callers are done")
        assert in_child(child) == (1, 1)
        deadline = time.monotonic() + PATIENT_SECONDS
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        assert not [thread for thread in threads if thread.is_alive()]
        assert crowd.errors == []
        core = pool.pool._core
        assert (core.permits.in_use, core.permits.claims, len(core.runners())) == (0, {}, 0)
        assert run(use_to_the_full(pool)) == list(range(CONNECTIONS))
        run(pool.pool.close())
    no_session_left(dsn, pool.pool)

    served = Counter(crowd.outcomes.values())["served"]
    assert pool.pool.stats().totals.acquired >= served + CONNECTIONS
    for number in range(LOOPS):
        patient = [outcome for (loop, caller), outcome in crowd.outcomes.items() if loop == number and caller % 3 == 2]
        if number % ENDING:
            assert patient == ["served"] * len(range(2, CALLERS, 3))
            assert sum(loop == number for loop, _ in crowd.outcomes) == CALLERS
        else:
            assert set(patient) <= {"served", "cancelled", "loop ended"}
