"""A cancellation at any point loses no connection, and is never swallowed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextlib import asynccontextmanager

import asyncpg
import pytest

import helpers
from loopaware_pool.asyncpg import create_pool

pytestmark = pytest.mark.both_pythons


class Gate:
    """A hook that blocks until it is told to go on; closed or open."""

    def __init__(self):
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()
        self.calls = 0

    async def __call__(self, con):
        self.calls += 1
        self.entered.set()
        await self.opened.wait()

    @property
    def is_open(self):
        return self.opened.is_set()

    def open(self):
        self.opened.set()


@asynccontextmanager
async def some_pool(dsn, size=2, **options):
    async with asyncio.timeout(60), create_pool(dsn, min_size=0, max_size=size, **options) as pool:
        yield pool


async def assert_whole(pool, size):
    """All connections can be acquired at once and answer, and nobody is counted who is not there."""
    leases = await asyncio.gather(*[pool.acquire(timeout=20) for _ in range(size)])
    assert await asyncio.gather(*[con.fetchval("SELECT $1::int", n) for n, con in enumerate(leases)]) == list(
        range(size)
    )
    for con in leases:
        await pool.release(con)
    await pool.settled()
    counts = pool.stats()
    assert (counts.waiting, counts.lent, counts.connecting, counts.idle) == (0, 0, 0, size)


async def cancel_and_await(task, times=1, between=0):
    """Cancel, once or more; tell whether any of it reached the task before its end."""
    reached = False
    for _ in range(times):
        reached = task.cancel() or reached
        await helpers.spin(between)
    await asyncio.wait([task], timeout=30)
    assert task.done()
    if reached:
        assert task.cancelled(), task
    return reached


async def lease(pool, query="SELECT 1"):
    async with pool.acquire() as con:
        await con.execute(query)


# ---- at each await, one by one ----


@pytest.mark.parametrize("times", [1, 2])
def test_a_cancelled_waiter_leaves_the_queue(dsn, run, times):
    """A waiter that is cancelled is not counted any more, and the others are served."""

    async def main():
        async with some_pool(dsn, size=1) as pool:
            con = await pool.acquire()
            waiters = [asyncio.create_task(lease(pool)) for _ in range(3)]
            await helpers.spin(2)
            assert pool.stats().waiting == 3
            assert await cancel_and_await(waiters[1], times)
            assert pool.stats().waiting == 2
            await pool.release(con)
            await asyncio.gather(waiters[0], waiters[2])
            await assert_whole(pool, 1)

    run(main())


@pytest.mark.parametrize("times", [1, 2])
def test_a_caller_cancelled_while_connecting_leaves_the_connect_to_the_pool(dsn, run, times):
    """The connect that a cancelled caller asked for ends in the pool, once, and is used by the next."""

    async def main():
        init = Gate()
        async with some_pool(dsn, init=init) as pool:
            task = asyncio.create_task(lease(pool))
            await init.entered.wait()
            assert await cancel_and_await(task, times)
            assert pool.stats().connecting == 1
            init.open()
            await helpers.eventually(lambda: pool.stats().idle == 1)
            await lease(pool)
            assert init.calls == 1
            await assert_whole(pool, 2)

    run(main())


@pytest.mark.parametrize("times", [1, 2])
def test_a_caller_cancelled_in_setup_ends_its_connection_alone(dsn, run, times):
    """What a cancelled `setup` leaves is closed, and its place is free."""

    async def main():
        setup = Gate()
        async with some_pool(dsn, setup=setup) as pool:
            for _ in range(3):
                setup.entered.clear()
                task = asyncio.create_task(lease(pool))
                await setup.entered.wait()
                assert await cancel_and_await(task, times)
            setup.open()
            await assert_whole(pool, 2)

    run(main())


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("goes_on", [True, False], ids=["goes-on", "fails"])
def test_a_caller_cancelled_in_release_leaves_the_reset_to_the_pool(dsn, run, times, goes_on):
    """A cancelled release ends the waiting for the reset, not the reset; one that fails frees its place."""

    async def main():
        gate = Gate()

        async def reset(con):
            if not gate.is_open:
                await gate(con)
                if not goes_on:
                    raise ZeroDivisionError

        async with some_pool(dsn, reset=reset) as pool:
            pids = []

            async def one_lease():
                async with pool.acquire() as con:
                    pids.append(con.get_server_pid())

            task = asyncio.create_task(one_lease())
            await gate.entered.wait()
            assert await cancel_and_await(task, times)
            assert pool.stats().loops[0].resetting == 1
            gate.open()
            await pool.settled()
            await one_lease()
            assert (pids[0] == pids[1]) is goes_on
            await assert_whole(pool, 2)

    run(main())


def test_the_same_release_cancelled_and_called_again_is_harmless(dsn, run):
    """A connection whose release was cancelled has been released: releasing it again does nothing."""

    async def main():
        gate = Gate()
        async with some_pool(dsn, size=1, reset=gate) as pool:
            con = await pool.acquire()
            task = asyncio.create_task(pool.release(con))
            await gate.entered.wait()
            assert await cancel_and_await(task)
            await pool.release(con)
            gate.open()
            await assert_whole(pool, 1)
            assert gate.calls == 2

    run(main())


@pytest.mark.parametrize("times", [1, 2])
def test_a_connection_handed_over_as_its_taker_is_cancelled_goes_to_the_next(dsn, run, times):
    """Between the hand-over and the taker's next step, a cancellation passes the connection on in order."""

    async def main():
        served = []

        async def wait_for(name):
            async with pool.acquire():
                served.append(name)

        async with some_pool(dsn, size=1, session_reset="never") as pool:
            con = await pool.acquire()
            pid = con.get_server_pid()
            first, second, third = (asyncio.create_task(wait_for(name)) for name in ("a", "b", "c"))
            await helpers.spin(2)
            await pool.release(con)  # without a suspension: the first is woken, and has not run
            assert pool.stats().waiting == 2
            for _ in range(times):
                first.cancel()
            await asyncio.wait([first, second, third])
            assert first.cancelled()
            assert served == ["b", "c"]
            async with pool.acquire() as con:
                assert con.get_server_pid() == pid
            await assert_whole(pool, 1)

    run(main())


def test_all_who_are_handed_a_connection_may_be_cancelled(dsn, run):
    """If every taker in a row is cancelled at that instant, the connection is idle in the end."""

    async def main():
        async with some_pool(dsn, size=1, session_reset="never") as pool:
            con = await pool.acquire()
            tasks = [asyncio.create_task(lease(pool)) for _ in range(5)]
            await helpers.spin(2)
            await pool.release(con)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
            assert pool.stats().idle == 1
            await assert_whole(pool, 1)

    run(main())


# ---- opening and closing ----


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("init_size", [1, 3])
def test_a_cancelled_open_leaves_nothing(dsn, run, zero_fd_delta, times, init_size):
    """Cancelled while it connects, `await pool` leaves no socket, and a pool that is closed."""

    async def main():
        init = Gate()
        pool = create_pool(dsn, min_size=0, init_size=init_size, max_size=3, init=init)

        async def open_pool():
            await pool

        task = asyncio.create_task(open_pool())
        await init.entered.wait()
        assert await cancel_and_await(task, times)
        assert pool.is_closing()
        assert pool.stats().size == 0
        with pytest.raises(asyncpg.InterfaceError, match="pool is closed"):
            await pool.acquire()
        await pool.close()

    run(main())


def test_an_open_cancelled_with_some_connections_open_closes_those_too(dsn, run, zero_fd_delta):
    """Cancelled when the first connections are there and the others are not, `await pool` closes all."""

    async def main():
        gate = Gate()
        opened = []

        async def init(con):
            opened.append(con)
            if len(opened) > 1:
                await gate(con)

        pool = create_pool(dsn, min_size=0, init_size=3, max_size=3, init=init)

        async def open_pool():
            async with pool:
                pass

        task = asyncio.create_task(open_pool())
        await gate.entered.wait()
        assert await cancel_and_await(task)
        assert pool.is_closing()
        await helpers.eventually(lambda: all(con.is_closed() for con in opened))

    run(main())


def test_an_open_cancelled_at_any_iteration_leaves_nothing(dsn, run, zero_fd_delta):
    """Whenever `await pool` is cancelled, the pool is open and whole, or closed and without a socket."""

    async def main():
        for iterations in [*range(12), *range(12, 150, 9)]:
            pool = create_pool(dsn, min_size=2, max_size=2)

            async def open_pool(pool=pool):
                await pool

            task = asyncio.create_task(open_pool())
            await helpers.spin(iterations)
            if await cancel_and_await(task):
                assert pool.is_closing() or iterations == 0
                assert pool.stats().size == 0
            else:
                await assert_whole(pool, 2)
                await pool.close()

    run(main())


@pytest.mark.parametrize("times", [1, 2])
def test_a_cancelled_close_terminates(dsn, run, zero_fd_delta, times):
    """Cancelled while it waits for a lease, `close()` closes every connection at once, and waiters are told."""

    async def main():
        pool = await create_pool(dsn, min_size=0, init_size=2, max_size=2)
        con, idle = await pool.acquire(), await pool.acquire()
        await pool.release(idle)
        task = asyncio.create_task(pool.close())
        await helpers.spin(3)
        assert not task.done()
        assert await cancel_and_await(task, times)
        assert pool.stats().size == 0
        with pytest.raises(asyncpg.InterfaceError):
            await con.fetchval("SELECT 1")
        await pool.release(con)
        await pool.close()
        assert pool.is_closing()

    run(main())


def test_a_close_cancelled_at_any_iteration_leaves_nothing(dsn, run, zero_fd_delta):
    """Whenever `close()` is cancelled, all connections are gone, in every state they can be in."""

    async def main():
        for iterations in range(14):
            reset = Gate()
            pool = await create_pool(dsn, min_size=0, init_size=3, max_size=4, reset=reset)
            lent, resetting = await pool.acquire(), await pool.acquire()
            release = asyncio.create_task(pool.release(resetting))
            await reset.entered.wait()
            task = asyncio.create_task(pool.close())
            await helpers.spin(iterations)
            await cancel_and_await(task)
            if iterations == 0:  # it never began
                pool.terminate()
            assert pool.stats().size == 0
            assert lent._con is None
            await asyncio.gather(release, return_exceptions=True)

    run(main())


# ---- exhaustively: after every number of loop iterations ----


async def settings_and_query(pool):
    async with pool.acquire() as con:
        await con.execute("SELECT set_config('app.tenant', '1', false)")
        assert await con.fetchval("SELECT 1") == 1


async def transaction(pool):
    async with pool.acquire() as con, con.transaction():
        assert await con.fetchval("SELECT 2") == 2


async def pool_method(pool):
    assert await pool.fetchval("SELECT 3") == 3


async def by_hand(pool):
    con = await pool.acquire(timeout=30)
    try:
        assert await con.fetchval("SELECT 4") == 4
    finally:
        await pool.release(con, timeout=30)


async def round_trip(con):
    await con.execute("SELECT 5")


OPTIONS = {
    "auto": {},
    "awaited": {"session_reset": "awaited"},
    "hooks": {"setup": round_trip, "reset": round_trip, "init": round_trip},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("scenario", [settings_and_query, transaction, pool_method, by_hand])
@pytest.mark.parametrize("start", ["warm", "cold", "contended"])
def test_cancelled_after_any_number_of_iterations_nothing_is_lost(dsn, run, options, scenario, start):
    """A whole use of the pool is cancelled at each of its steps, once and twice; afterwards the capacity is whole."""

    async def main():
        rng = random.Random(f"{scenario.__name__} {start}")
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: None)  # asyncpg tells of transactions left open
        async with some_pool(dsn, size=1, **options) as pool:
            survived = 0
            iterations = 0
            while survived < 3 and iterations < 400:
                if start == "cold":
                    await pool.expire_connections()
                rival = asyncio.create_task(scenario(pool)) if start == "contended" else None
                await asyncio.sleep(0)
                task = asyncio.create_task(scenario(pool))
                await helpers.spin(iterations)
                reached = await cancel_and_await(task, rng.choice([1, 1, 2, 3]), rng.choice([0, 1, 2, 5, 20]))
                survived += not reached
                if rival is not None:
                    await rival
                assert await pool.fetchval("SELECT 6", timeout=30) == 6
                iterations += 1 if iterations < 12 else rng.randrange(1, 9)
            await assert_whole(pool, 1)

    run(main())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_storm_of_cancellations_loses_nothing(dsn, run, options):
    """Twenty tasks on five connections, cancelled at random within 30 ms, some twice, leave five that answer."""

    async def main():
        rng = random.Random(20)
        asyncio.get_running_loop().set_exception_handler(lambda _, context: None)

        async def worker():
            async with pool.acquire() as con:
                await con.execute("SELECT set_config('app.tenant', '1', false)")
                async with con.transaction():
                    await con.fetchval("SELECT pg_sleep($1)", rng.random() / 200)

        async def cancel_soon(task):
            await asyncio.sleep(rng.random() * 0.03)
            reached = task.cancel()
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.003)
                task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or not reached

        async with some_pool(dsn, size=5, **options) as pool:
            for _ in range(12):
                tasks = [asyncio.create_task(worker()) for _ in range(20)]
                await asyncio.gather(*[cancel_soon(task) for task in tasks])
            await assert_whole(pool, 5)

    run(main())


# ---- other people's timeouts ----


@pytest.mark.parametrize("how", ["timeout", "wait_for"])
def test_a_callers_own_timeout_around_acquire_loses_nothing(dsn, run, how):
    """`asyncio.timeout` and `wait_for` around an acquire end it, also when it is due at the moment of the hand-over."""

    async def acquire(pool, seconds):
        if how == "wait_for":
            return await asyncio.wait_for(pool.acquire(), seconds)
        async with asyncio.timeout(seconds):
            return await pool.acquire()

    async def main():
        async with some_pool(dsn, size=1) as pool:
            for turn in range(30):
                con = await pool.acquire()
                seconds = 0.001 * (turn % 5)
                task = asyncio.create_task(acquire(pool, seconds))
                await asyncio.sleep(seconds)
                await pool.release(con)
                with contextlib.suppress(TimeoutError):
                    await pool.release(await task)
                assert pool.stats().waiting == 0
            await assert_whole(pool, 1)

    run(main())


# ---- somebody cancels the pool's own tasks ----


def test_somebody_who_cancels_all_tasks_loses_no_connection(dsn, run):
    """The pool's tasks, ended from outside at any moment, give up their connections and free their places."""

    async def main():
        rng = random.Random(5)
        async with some_pool(dsn, size=3, session_reset="awaited", init=round_trip) as pool:
            for iterations in [*range(15), *range(15, 100, 7)]:
                await pool.expire_connections()
                users = [asyncio.create_task(settings_and_query(pool)) for _ in range(6)]
                await helpers.spin(iterations)
                others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
                victims = [task for task in others if task not in users or rng.random() < 0.5]
                for task in victims:
                    task.cancel()
                # A user may hear that its connection is gone; that it waits for ever is what must not be.
                outcomes = await asyncio.gather(*users, return_exceptions=True)
                assert not any(isinstance(outcome, AssertionError) for outcome in outcomes)
            await assert_whole(pool, 3)

    run(main())


@pytest.mark.parametrize("moment", ["connecting", "resetting"])
def test_a_pool_task_cancelled_from_outside_frees_its_place(dsn, run, moment):
    """A connect or a reset that somebody else cancels is made up for: those who wait are served."""

    async def main():
        gate = Gate()
        hooks = {"connecting": {"init": gate}, "resetting": {"reset": gate}}[moment]
        async with some_pool(dsn, size=1, **hooks) as pool:
            before = asyncio.all_tasks()
            users = [asyncio.create_task(lease(pool)) for _ in range(3)]
            await gate.entered.wait()
            gate.open()
            for task in asyncio.all_tasks() - before - set(users):
                task.cancel()
            await asyncio.gather(*users, return_exceptions=True)
            assert [task for task in users if task.exception() is None]
            await assert_whole(pool, 1)

    run(main())
