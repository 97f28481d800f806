"""What may be assigned to a pool while it lives, as to psycopg_pool's: it is in effect from then on, on every loop."""

from __future__ import annotations

import asyncio
import logging

import psycopg
import psycopg_pool
import pytest

import psycopg_pools
from loopaware_pool import stats
from loopaware_pool.psycopg import AsyncConnectionPool, AsyncNullConnectionPool, WrongLoop
from loopaware_pool.testing import FaultProxy
from running import LoopThread, eventually, eventually_async

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]

PLAIN = {"theirs": psycopg_pool.AsyncConnectionPool, "ours": AsyncConnectionPool}
NULL = {"theirs, null": psycopg_pool.AsyncNullConnectionPool, "ours, null": AsyncNullConnectionPool}
plain = pytest.mark.parametrize("cls", PLAIN.values(), ids=PLAIN)
every = pytest.mark.parametrize("cls", (PLAIN | NULL).values(), ids=PLAIN | NULL)
ours = pytest.mark.parametrize("cls", [AsyncConnectionPool, AsyncNullConnectionPool])


def make_pool(cls, dsn, **options):
    return psycopg_pools.make_pool(cls, dsn, min_size=0, **{"max_size": 1} | options)


async def pid_of(pool):
    async with pool.connection() as connection:
        return connection.info.backend_pid


async def leave_idle(pool, number):
    connections = [await pool.getconn() for _ in range(number)]
    for connection in connections:
        await pool.putconn(connection)


@every
def test_what_is_assigned_reads_as_it_was_assigned(run, cls):
    """Before a pool is opened, and once it is."""
    numbers = {"timeout": 3, "max_waiting": 4, "max_lifetime": 5, "max_idle": 6, "reconnect_timeout": 7}

    async def main():
        pool = make_pool(cls, "dbname=x")
        for _ in range(2):
            for name, value in ({"name": "orders", "num_workers": 2} | numbers).items():
                setattr(pool, name, value)
                assert getattr(pool, name) == value
            for name in ("max_lifetime", "max_idle", "reconnect_timeout"):
                setattr(pool, name, float("inf"))
                assert getattr(pool, name) == float("inf")
            await pool.open()
        await pool.close()

    run(main())


@every
def test_a_caller_has_the_timeout_of_the_moment(dsn, run, cls):
    """And is refused by the `max_waiting` of the moment."""

    async def main():
        async with make_pool(cls, dsn) as pool, pool.connection():
            pool.timeout, pool.max_waiting = 20, 1
            waiters = [asyncio.create_task(pool.getconn())]
            await asyncio.sleep(0.01)
            with pytest.raises(psycopg_pool.TooManyRequests):
                await pool.getconn()
            pool.max_waiting = 0
            waiters += [asyncio.create_task(pool.getconn()) for _ in range(2)]
            await asyncio.sleep(0.01)
            assert not any(waiter.done() for waiter in waiters)
            pool.timeout = 0.05
            with pytest.raises(psycopg_pool.PoolTimeout, match=r"after 0\.05 sec"):
                await pool.getconn()
            for waiter in waiters:
                waiter.cancel()
            await asyncio.wait(waiters)

    run(main())


@plain
def test_a_connection_has_the_lifetime_of_the_time_it_was_opened(dsn, run, cls):
    """One that is open already keeps its own."""

    async def two_pids(pool):
        async with pool.connection() as first, pool.connection() as second:
            return {first.info.backend_pid, second.info.backend_pid}

    async def main():
        async with make_pool(cls, dsn, max_size=2) as pool:
            old = await pid_of(pool)
            pool.max_lifetime = 0
            once, again = await two_pids(pool), await two_pids(pool)
            assert once & again == {old}

    run(main())


@pytest.mark.parametrize("discard_expired", ["on_return", "always"])
def test_a_lifetime_of_nothing_serves_one_lease(dsn, run, discard_expired):
    """As where it was given from the start, which a pool that discards the expired must survive."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, discard_expired=discard_expired) as pool:
            pool.max_lifetime = 0
            assert len({await pid_of(pool) for _ in range(5)}) == 5
            pool.max_lifetime = 3600
            assert len({await pid_of(pool) for _ in range(5)}) == 1

    run(main())


@plain
def test_what_is_assigned_before_a_pool_is_opened_is_in_effect(dsn, run, cls):
    """Of `max_idle`, too, which with theirs is looked at once in each such time."""

    async def main():
        pool = make_pool(cls, dsn, max_size=3)
        pool.max_idle = 0.05
        async with pool:
            await leave_idle(pool, 3)
            await eventually_async(lambda: pool.get_stats()["pool_size"] == 0, "a pool that has shrunk")

    run(main())


@pytest.mark.parametrize("idle_order", ["fifo", "lifo"])
@pytest.mark.parametrize("limit", [0.05, 0])
def test_what_is_idle_for_too_long_by_now_is_closed(dsn, run, idle_order, limit):
    """At once, where with theirs the old `max_idle` has to pass first."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, max_size=3, idle_order=idle_order) as pool:
            await leave_idle(pool, 3)
            pool.max_idle = float("inf")
            await asyncio.sleep(0.05)
            assert pool.get_stats()["pool_size"] == 3
            pool.max_idle = limit
            await eventually_async(lambda: pool.get_stats()["pool_size"] == 0, "a pool that has shrunk")
            pool.max_idle = 600
            await leave_idle(pool, 3)
            await asyncio.sleep(0.2)
            assert pool.get_stats()["pool_size"] == 3

    run(main())


@pytest.mark.parametrize("idle_order", ["fifo", "lifo"])
def test_an_assignment_is_in_effect_on_every_loop(dsn, loop_factory, idle_order):
    """Made in a thread that has none; on a loop that stands still, once it goes on; and on one that comes later."""

    def count(index):
        return pool.stats().loops[index].idle

    pool = make_pool(AsyncConnectionPool, dsn, max_size=6, idle_order=idle_order)
    still = loop_factory()
    with LoopThread(loop_factory) as one, LoopThread(loop_factory) as other:
        one.run(pool.open())
        one.run(leave_idle(pool, 2))
        other.run(leave_idle(pool, 2))
        still.run_until_complete(leave_idle(pool, 2))
        assert [count(index) for index in range(3)] == [2, 2, 2]
        pool.max_idle = 0.02
        eventually(lambda: count(0) == count(1) == 0, "loops without idle connections")
        assert count(2) == 2
        still.run_until_complete(eventually_async(lambda: count(2) == 0, "no idle connection on the third"))
        still.run_until_complete(pool.close())
        still.close()


@every
def test_an_outage_is_told_of_after_the_time_of_the_moment(dsn, run, cls):
    """Which is that of its first failure. (Theirs tells no null pool.)"""
    told = []

    async def main(proxy):
        proxy.refuse()
        pool = make_pool(cls, proxy.dsn, reconnect_failed=told.append, timeout=0.3)
        pool.reconnect_timeout = 0.05
        async with pool:
            with pytest.raises(psycopg.OperationalError):
                await pool.getconn()
            if cls is not psycopg_pool.AsyncNullConnectionPool:
                await eventually_async(lambda: told, "the end of its patience")

    with FaultProxy(dsn) as proxy:
        run(main(proxy))


@every
def test_a_name_is_that_of_the_moment(dsn, run, cls, caplog):
    """In errors and in the log."""
    caplog.set_level(logging.INFO, "psycopg.pool")

    async def main():
        async with make_pool(cls, dsn) as pool:
            pool.name = "orders"
            async with pool.connection():
                pool.max_waiting = 1
                waiter = asyncio.create_task(pool.getconn())
                await asyncio.sleep(0.01)
                with pytest.raises(psycopg_pool.TooManyRequests, match="the pool 'orders' has already 1"):
                    await pool.getconn()
                waiter.cancel()
                await asyncio.wait([waiter])
        with pytest.raises(psycopg_pool.PoolClosed, match="'orders' is already closed"):
            await pool.getconn()
        assert "'orders'" in repr(pool)

    run(main())
    assert "connection given by 'orders'" in caplog.text


@ours
def test_everything_of_ours_goes_by_the_name_of_the_moment(dsn, run, loop_factory, cls):
    """Statistics, events, and what the connections say that are open by then."""
    told = []

    async def use(connection):
        with pytest.raises(WrongLoop, match="pool 'orders' here"):
            await connection.execute("SELECT 1")

    async def main():
        async with make_pool(cls, dsn, on_event=told.append) as pool:
            connection = await pool.getconn()
            assert told[-1].pool == pool.name != "orders"
            pool.name = "orders"
            with LoopThread(loop_factory) as other:
                await asyncio.to_thread(other.run, use(connection))
            await pool.putconn(connection)
            await pool.drain()
            assert pool.stats().name == "orders"
            pool.name = None
            assert pool.name.startswith("pool-")
            pool.name = "orders"
        assert isinstance(told[-1], stats.ConnectionClosed)
        assert told[-1].pool == "orders"

    run(main())


@plain
def test_connections_are_made_with_what_there_is_at_the_moment(dsn, run, cls):
    """The address and the arguments."""

    async def main():
        async with make_pool(cls, "postgresql://nowhere.invalid/x") as pool:
            pool.conninfo, pool.kwargs = dsn, {"application_name": "assigned"}
            async with pool.connection() as connection:
                assert connection.info.parameter_status("application_name") == "assigned"

    run(main())


@ours
@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        *[(name, "3", TypeError) for name in ("timeout", "max_waiting", "max_lifetime", "max_idle")],
        *[(name, float("nan"), ValueError) for name in ("timeout", "max_lifetime", "max_idle", "reconnect_timeout")],
        *[(name, -1, ValueError) for name in ("max_waiting", "max_lifetime", "max_idle")],
        *[(name, 7, TypeError) for name in ("conninfo", "kwargs", "name", "connection_class")],
        ("reconnect_timeout", True, TypeError),
    ],
)
def test_what_makes_no_sense_is_refused(cls, name, value, kind):
    """By name, as it would have been from the start; nothing has changed."""
    pool = make_pool(cls, "dbname=x")
    before = getattr(pool, name)
    with pytest.raises(kind, match=name):
        setattr(pool, name, value)
    assert getattr(pool, name) == before


@every
@pytest.mark.parametrize("name", ["min_size", "max_size"])
def test_sizes_are_not_assigned(cls, name):
    """To neither; ours names what to call."""
    pool = make_pool(cls, "dbname=x")
    with pytest.raises(AttributeError) as caught:
        setattr(pool, name, 0)
    if cls.__module__.startswith("loopaware"):
        assert str(caught.value) == f"{name}=0: cannot be assigned; use `await pool.resize(min_size, max_size)`"
