"""The end of a pool that several loops use."""

from __future__ import annotations

import asyncio
import gc
import select
import threading

import asyncpg
import pytest

import helpers
from loopaware_pool import errors
from running import (
    DEADLINE_SECONDS,
    LoopThread,
    ask,
    eventually_async,
    make_pool,
    no_session_left,
    no_socket_left,
    until_server_waits,
)

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


async def hold(pool, acquired, let_go):
    """Hold a connection of *pool* until told to let go."""
    async with pool.acquire() as connection:
        acquired.release()
        while not let_go.is_set():
            await asyncio.sleep(0.005)
        return await connection.fetchval("SELECT 1")


def test_close_tells_all_waiters_and_waits_for_all_leases(dsn, loop_factory, runner_factory):
    """`close()` gives the waiters of every loop an error at once, and waits for the leases of every loop."""
    pool = make_pool(dsn, max_size=2)
    acquired, let_go = threading.Semaphore(0), threading.Event()

    async def open_pool():
        await pool

    async def main():
        own = asyncio.create_task(ask(pool))
        await eventually_async(lambda: pool.stats().waiting == 4, "four callers in the queues")
        closing = asyncio.create_task(pool.close())
        with pytest.raises(asyncpg.InterfaceError, match="pool is closing"):
            await own
        for waiter in waiters:
            with pytest.raises(errors.PoolClosed, match="pool is closing"):
                await asyncio.wait_for(asyncio.wrap_future(waiter), DEADLINE_SECONDS)
        assert not closing.done()
        with pytest.raises(asyncpg.InterfaceError, match="pool is closing"):
            await pool.acquire()
        let_go.set()
        await asyncio.wait_for(closing, DEADLINE_SECONDS)

    with no_socket_left(), LoopThread(loop_factory) as other, runner_factory() as runner:
        other.run(open_pool())
        leases = [other.start(hold(pool, acquired, let_go)) for _ in range(2)]
        assert all(acquired.acquire(timeout=DEADLINE_SECONDS) for _ in leases)
        waiters = [other.start(ask(pool)) for _ in range(3)]
        try:
            runner.run(main())
        finally:
            let_go.set()
        assert [lease.result(DEADLINE_SECONDS) for lease in leases] == [1, 1]
    no_session_left(dsn, pool)


async def begin_for_callers(pool):
    """Have the pool connect because callers want it."""
    return [asyncio.create_task(ask(pool)) for _ in range(2)]


async def begin_for_the_floor(pool):
    """Have the pool connect because a connection of the least it keeps is worn out."""
    await ask(pool)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not pool.stats().connecting:
            await asyncio.sleep(0)
    return []


@pytest.mark.parametrize("answer_is_there", [False, True])
@pytest.mark.parametrize("begin", [begin_for_callers, begin_for_the_floor])
@pytest.mark.parametrize("end", ["close", "terminate"])
def test_the_end_of_a_pool_that_connects_is_quiet(end, begin, answer_is_there, dsn, runner_factory):
    """Wherever a connect is when its pool ends, the loop has nothing to complain of."""
    complaints = []
    options = {"min_size": 1, "max_queries": 1} if begin is begin_for_the_floor else {}

    async def main(iterations):
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        pool = await make_pool(dsn, **options)
        before = helpers.open_sockets()
        callers = await begin(pool)
        for _ in range(iterations):
            await asyncio.sleep(0)
        if answer_is_there:
            ours = [fd for name, fd in helpers.open_sockets().items() if name not in before]
            select.select(ours, [], [], 0.05)  # in vain where the server has nothing to say yet
        await pool.close() if end == "close" else pool.terminate()
        await asyncio.gather(*callers, return_exceptions=True)
        await eventually_async(lambda: not pool.fd_report(), "an empty pool")
        await asyncio.sleep(0)

    for iterations in range(12):
        with no_socket_left(), runner_factory() as runner:
            runner.run(main(iterations))
            gc.collect()
    assert complaints == []


def test_terminate_from_a_thread_without_a_loop(dsn, run):
    """`terminate()` may come from anywhere: queries in flight fail, waiters hear of it, nothing stays open."""
    pool = make_pool(dsn, max_size=1)

    async def main():
        await pool
        query = asyncio.create_task(ask(pool, "SELECT pg_sleep(60)"))
        waiter = asyncio.create_task(ask(pool))
        await until_server_waits(dsn, pool)
        assert pool.stats().waiting == 1
        await asyncio.get_running_loop().run_in_executor(None, pool.terminate)
        # AttributeError: asyncpg's own, for a query that was between its two messages.
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, AttributeError)):
            await query
        with pytest.raises(errors.PoolClosed, match="pool is clos"):
            await waiter
        await eventually_async(lambda: not pool.fd_report(), "an empty pool")
        with pytest.raises(errors.PoolClosed, match="pool is closed"):
            await pool.acquire()

    with no_socket_left():
        run(main())
    helpers.kill_sessions(dsn, pool.name)


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_the_end_of_a_pool_with_connections_on_loops_of_every_kind(end, dsn, loop_factory, runner_factory):
    """Closing reaches connections on a running loop, on one that stands still, and on the caller's own."""
    pool = make_pool(dsn, max_size=3)

    async def open_and_ask():
        await pool
        return await ask(pool)

    async def finish():
        await ask(pool)
        assert pool.get_size() == 3
        if end == "close":
            await asyncio.wait_for(pool.close(), DEADLINE_SECONDS)
        else:
            pool.terminate()
        await eventually_async(lambda: not pool.fd_report(), "an empty pool")

    with no_socket_left(), LoopThread(loop_factory) as running, runner_factory() as still, runner_factory() as own:
        running.run(open_and_ask())
        still.run(open_and_ask())
        own.run(finish())
    no_session_left(dsn, pool)
