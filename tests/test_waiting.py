from __future__ import annotations

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest

import helpers
from asyncpg_pools import AMPLE, refusing, some_pool
from loopaware_pool.asyncpg import PoolTimeout, TooManyWaiting
from loopaware_pool.errors import PoolClosed

HERE = Path(__file__).name


# ---- order ----


def test_waiters_are_served_in_the_order_they_came(dsn, run):
    """Ten callers on one connection get it first come, first served."""

    async def main():
        served = []

        async def user(number):
            async with pool.acquire() as con:
                served.append(number)
                await con.execute("SELECT 1")

        async with some_pool(dsn) as pool:
            con = await pool.acquire()
            tasks = []
            for number in range(10):
                tasks.append(asyncio.create_task(user(number)))
                await asyncio.sleep(0)
            await pool.release(con)
            await asyncio.gather(*tasks)
            assert served == list(range(10))

    run(main())


def test_a_running_task_cannot_barge_past_a_woken_one(dsn, run):
    """A task that releases and acquires in one go stands behind the one that was waiting."""

    async def main():
        order = []

        async def waiting():
            async with pool.acquire():
                order.append("waiting")

        async with some_pool(dsn) as pool:
            con = await pool.acquire()
            task = asyncio.create_task(waiting())
            await helpers.spin(2)
            await pool.release(con)
            con = await pool.acquire()
            order.append("running")
            await pool.release(con)
            await task
            assert order == ["waiting", "running"]

    run(main())


def test_a_newcomer_does_not_take_what_comes_free_while_others_wait(dsn, run):
    """With callers in the queue of a suspended pool, an idle connection is not for a newcomer."""

    async def main():
        order = []

        async def user(name):
            async with pool.acquire():
                order.append(name)

        async with some_pool(dsn) as pool:
            await pool.execute("SELECT 1")
            await pool.settled()
            pool.suspend()
            tasks = [asyncio.create_task(user("early"))]
            await helpers.spin(2)
            assert pool.stats().idle == 1
            pool.resume()
            tasks.append(asyncio.create_task(user("late")))
            await asyncio.gather(*tasks)
            assert order == ["early", "late"]

    run(main())


# ---- timeouts ----


def test_a_timeout_tells_everything(dsn, run):
    """The error is a TimeoutError that names the pool, its counts, and who holds connections since which line."""

    async def hold(pool, done):
        async with pool.acquire():
            await done.wait()

    async def main():
        done = asyncio.Event()
        async with some_pool(dsn, size=2, name="orders") as pool:
            holders = [asyncio.create_task(hold(pool, done), name=f"holder-{n}") for n in range(2)]
            await helpers.eventually(lambda: pool.stats().lent == 2)
            with pytest.raises(TimeoutError) as caught:
                await pool.acquire(timeout=0.01)
            done.set()
            await asyncio.gather(*holders)
        error = caught.value
        line = hold.__code__.co_firstlineno + 1
        assert isinstance(error, PoolTimeout)
        assert str(error).startswith("couldn't get a connection in 0.01 s: pool 'orders' has 2 of 2 connections lent, ")
        assert "0 idle, 0 connecting, 0 resetting, 0 closing and " in str(error)
        assert f"{HERE}:{line} in hold" in str(error)
        assert re.search(r"holder-0 for \d+\.\d s", str(error))
        assert (error.pool, error.timeout, error.stats.lent, error.stats.max_size) == ("orders", 0.01, 2, 2)
        assert sorted(lease.task for lease in error.holders) == ["holder-0", "holder-1"]
        assert all(lease.held_seconds >= 0 for lease in error.holders)
        assert error.__cause__ is None

    run(main())


@pytest.mark.parametrize("method", ["fetch", "fetchrow", "fetchval", "execute", "acquire", "enter"])
def test_the_pools_own_timeout_covers_every_way_to_acquire(dsn, run, method):
    """`acquire_timeout` bounds an acquire that gives none, and those inside `pool.fetch` and its like."""

    async def use(pool):
        if method == "enter":
            async with pool.acquire():
                pass
        elif method == "acquire":
            await pool.acquire()
        else:
            await getattr(pool, method)("SELECT 1")

    async def main():
        async with some_pool(dsn, acquire_timeout=0.01) as pool:
            pool.suspend()
            with pytest.raises(PoolTimeout):
                await use(pool)
            assert pool.stats().waiting == 0
            pool.resume()

    run(main())


def test_a_timeout_of_the_call_goes_before_the_pools(dsn, run):
    """An acquire that gives a timeout is bound by that one."""

    async def main():
        async with some_pool(dsn, acquire_timeout=0.01) as pool:
            con = await pool.acquire(timeout=AMPLE)
            patient = asyncio.create_task(give(pool))
            with pytest.raises(PoolTimeout):
                await pool.acquire()
            assert not patient.done()
            await pool.release(con)
            await patient

    async def give(pool):
        async with pool.acquire(timeout=AMPLE):
            pass

    run(main())


@pytest.mark.parametrize("timeout", [0, -1, 0.0])
def test_no_time_at_all_is_enough_for_an_idle_connection_only(dsn, run, timeout):
    """A timeout of nothing gets an idle connection, and never waits."""

    async def main():
        async with some_pool(dsn) as pool:
            await pool.execute("SELECT 1")
            await pool.settled()  # a pool's first reset is followed by nothing
            async with pool.acquire(timeout=timeout):
                with pytest.raises(PoolTimeout):
                    await pool.acquire(timeout=timeout)

    run(main())


def test_the_deadline_covers_connecting(dsn, run):
    """A connect that takes longer than the caller's time ends the caller's waiting, and serves the next."""

    async def main():
        let_go = asyncio.Event()

        async def connect(*args, **kwargs):
            await let_go.wait()
            return await asyncpg.connect(*args, **kwargs)

        async with some_pool(dsn, connect=connect) as pool:
            with pytest.raises(PoolTimeout, match="1 connecting"):
                await pool.acquire(timeout=0.01)
            let_go.set()
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


def test_the_deadline_covers_setup(dsn, run):
    """A `setup` that takes longer than the caller's time is ended, and its connection closed."""

    async def main():
        blocked = False

        async def setup(con):
            if blocked:
                await asyncio.Event().wait()

        async with some_pool(dsn, setup=setup) as pool:
            assert await pool.fetchval("SELECT 1") == 1
            await pool.settled()
            blocked = True
            with pytest.raises(PoolTimeout, match=r"in setup"):
                await pool.acquire(timeout=0.1)
            blocked = False
            assert await pool.fetchval("SELECT 1") == 1
            assert pool.stats().size == 1

    run(main())


def test_a_timeout_that_setup_raises_itself_is_its_own(dsn, run):
    """A TimeoutError of the user's `setup` is not taken for the pool's."""

    async def setup(con):
        raise TimeoutError("mine")

    async def main():
        async with some_pool(dsn, setup=setup) as pool:
            with pytest.raises(TimeoutError, match=r"^mine$") as caught:
                await pool.acquire(timeout=AMPLE)
            assert not isinstance(caught.value, PoolTimeout)
            assert pool.stats().lent == 0

    run(main())


def test_who_gives_up_leaves_the_queue_at_once(dsn, run):
    """A caller that timed out is not counted any more, and is counted as such."""

    async def main():
        async with some_pool(dsn) as pool, pool.acquire():
            patient = asyncio.create_task(pool.fetchval("SELECT 1"))
            await helpers.spin(2)
            hasty = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(3)]
            await helpers.spin(2)
            assert pool.stats().waiting == 4
            for task in hasty:
                task.cancel()
            await asyncio.wait(hasty)
            assert pool.stats().waiting == 1
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.01)
            assert pool.stats().waiting == 1
            counters = pool.stats().loops[0].counters
            assert (counters.timed_out, counters.cancelled) == (1, 3)
            patient.cancel()

    run(main())


def test_a_timeout_has_the_last_connect_error_as_its_cause(dsn, run):
    """Who waited while the server refused learns the server's reason."""

    async def main():
        async with some_pool(dsn) as pool:
            refusing(pool)
            patient = asyncio.ensure_future(pool.acquire(timeout=AMPLE))
            await helpers.eventually(lambda: pool.stats().totals.connect_failures)
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire(timeout=0.01)
            patient.cancel()
            assert isinstance(caught.value.__cause__, OSError)

    run(main())


def test_without_a_timeout_a_refused_caller_gets_the_connect_error(dsn, run):
    """With nothing to wait for, callers without a deadline are told at once, all of them."""

    async def main():
        async with some_pool(dsn, size=3) as pool:
            refusing(pool)
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(5)]
            await asyncio.wait(tasks, timeout=AMPLE)
            assert all(isinstance(task.exception(), OSError) for task in tasks)
            assert pool.stats().waiting == 0
            pool.set_connect_args(dsn)
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


def test_a_refusal_spares_those_whom_a_lease_can_still_serve(dsn, run):
    """While a connection is lent, not all who wait are told off by one failed connect."""

    async def main():
        async with some_pool(dsn, size=2) as pool:
            con = await pool.acquire()
            refusing(pool)
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(3)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert pool.stats().waiting >= 1
            await pool.release(con)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert 1 in outcomes

    run(main())


def test_callers_with_time_left_are_served_when_the_server_is_back(dsn, run):
    """A deadline is waited out through refusals: the first connect that works serves those who wait."""

    async def main():
        refused = asyncio.Event()
        works = False

        async def connect(*args, **kwargs):
            if works:
                return await asyncpg.connect(*args, **kwargs)
            refused.set()
            raise ConnectionRefusedError

        async with some_pool(dsn, size=3, connect=connect) as pool:
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1", timeout=None)) for _ in range(1)]
            await asyncio.wait(tasks)
            assert isinstance(tasks[0].exception(), ConnectionRefusedError)
            refused.clear()
            waiting = [asyncio.create_task(self_timed(pool)) for _ in range(4)]
            await refused.wait()
            works = True
            assert await asyncio.gather(*waiting) == [1] * 4

    async def self_timed(pool):
        async with pool.acquire(timeout=AMPLE) as con:
            return await con.fetchval("SELECT 1")

    run(main())


def test_a_refusing_server_is_asked_by_one_prober_at_a_time(dsn, run):
    """However many wait, only one connect is tried at a time after a refusal."""

    async def main():
        in_flight, most = 0, 0
        attempts = asyncio.Semaphore(0)

        async def connect(*args, **kwargs):
            nonlocal in_flight, most
            in_flight += 1
            most = max(most, in_flight)
            await asyncio.sleep(0)
            in_flight -= 1
            attempts.release()
            raise ConnectionRefusedError

        async def wait_long():
            async with pool.acquire(timeout=AMPLE):
                pass

        async with some_pool(dsn, size=10, connect=connect) as pool:
            first = asyncio.create_task(wait_long())
            await attempts.acquire()
            most = 0
            tasks = [first, *[asyncio.create_task(wait_long()) for _ in range(9)]]
            for _ in range(3):
                await attempts.acquire()
            assert most == 1
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    run(main())


# ---- limits and switches ----


def test_more_waiters_than_max_waiting_are_refused(dsn, run):
    """The caller above `max_waiting` is refused at once, by an error that is asyncpg's InterfaceError too."""

    async def main():
        async with some_pool(dsn, max_waiting=2, name="small") as pool:
            con = await pool.acquire()
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(2)]
            await helpers.spin(2)
            with pytest.raises(TooManyWaiting, match="pool 'small' has 2 callers waiting") as caught:
                await pool.acquire()
            assert isinstance(caught.value, asyncpg.InterfaceError)
            assert caught.value.max_waiting == 2
            await pool.release(con)
            assert await asyncio.gather(*tasks) == [1, 1]
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


def test_a_suspended_pool_serves_nobody_until_it_resumes(dsn, run):
    """While suspended, callers queue and time out, leases go on; afterwards all are served."""

    async def main():
        async with some_pool(dsn, size=2) as pool:
            lent = await pool.acquire()
            pool.suspend()
            pool.suspend()
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(4)]
            await helpers.spin(3)
            assert await lent.fetchval("SELECT 2") == 2
            await pool.release(lent)
            await pool.settled()
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.01)
            assert pool.stats().waiting == 4
            assert pool.stats().idle == 1
            pool.resume()
            assert await asyncio.gather(*tasks) == [1] * 4
            pool.resume()

    run(main())


def test_a_suspended_pool_can_be_closed(dsn, run):
    """Closing a suspended pool tells those who wait."""

    async def main():
        async with some_pool(dsn) as pool:
            pool.suspend()
            task = asyncio.create_task(pool.fetchval("SELECT 1"))
            await helpers.spin(3)
            await pool.close()
            assert isinstance(task.exception(), PoolClosed)

    run(main())
