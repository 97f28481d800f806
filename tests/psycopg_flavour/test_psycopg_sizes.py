"""Sizes and statistics are psycopg_pool's, and what only ours has."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from helpers import spin
from loopaware_pool.psycopg import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    PoolTimeout,
)
from psycopg_likeness import pid_of, words
from psycopg_pools import busy, make_pool
from running import eventually_async

pytestmark = [pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]


def test_a_pool_can_be_resized(pool_of):
    """It grows at once; what is too much goes when it was not needed."""

    async def main():
        async with pool_of(min_size=1, max_size=1, max_idle=0.05) as pool:
            await pool.wait()
            async with pool.connection():
                waiting = asyncio.create_task(pid_of(pool))
                await asyncio.sleep(0.02)
                await pool.resize(1, 2)
                assert await waiting
            await pool.resize(3)
            assert (pool.min_size, pool.max_size) == (3, 3)
            await eventually_async(lambda: len(pool._pool) == 3, "a floor that is reached")
            await pool.resize(1, 3)
            await eventually_async(lambda: pool._nconns == 1, "connections that go")
            for sizes in ((-1,), (2, 1), (0, 0)):
                with pytest.raises(ValueError, match="size"):
                    await pool.resize(*sizes)
            assert (pool.min_size, pool.max_size) == (1, 3)
        async with pool_of(AsyncNullConnectionPool, max_size=1) as null:
            await null.resize(0, 3)
            assert null.max_size == 3
            with pytest.raises(ValueError, match="min_size = 0"):
                await null.resize(1, 2)

    asyncio.run(main())


def test_statistics_have_their_names(pool_of, dsn):
    """Measures always, counters unless they are 0; `pop_stats` begins anew."""

    async def main():
        async with pool_of(min_size=2, max_size=4) as pool:
            await pool.wait()
            stats = pool.get_stats()
            measures = {"pool_min": 2, "pool_max": 4, "pool_size": 2, "pool_available": 2, "requests_waiting": 0}
            assert {key: stats[key] for key in measures} == measures
            assert stats["connections_num"] == 2
            assert stats["connections_ms"] > 0
            assert not {"requests_num", "usage_ms", "requests_errors", "returns_bad"} & stats.keys()
            async with pool.connection(), pool.connection(), pool.connection(), pool.connection():
                waiting = asyncio.create_task(pid_of(pool))
                await asyncio.sleep(0.02)
                assert pool.get_stats()["requests_waiting"] == 1
                assert len(pool._waiting) == 1
                assert pool.get_stats()["pool_available"] == 0
            await waiting
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), pool.connection():
                    await asyncio.sleep(1)
            stats = pool.pop_stats()
            assert stats["requests_num"] == 6
            assert stats["requests_queued"] == 3
            assert stats["requests_wait_ms"] >= 20
            assert stats["usage_ms"] >= 80
            assert stats["connections_num"] == 4
            stats = pool.pop_stats()
            assert stats.keys() == measures.keys()
            assert await pid_of(pool)
            assert pool.get_stats()["requests_num"] == 1

    asyncio.run(main())


@pytest.mark.parametrize("kind", [AsyncConnectionPool, AsyncNullConnectionPool])
def test_a_caller_between_two_checks_is_counted_once(kind, pool_of):
    """Also if it is cancelled then."""

    async def main():
        async def fail(connection):
            failed.append(connection)
            raise ZeroDivisionError

        failed = []
        async with pool_of(kind, min_size=0, max_size=1, check=fail) as pool:
            waiting = asyncio.create_task(pool.getconn())
            await eventually_async(lambda: len(failed) == 2, "a check before a pause")
            await asyncio.sleep(0.01)
            assert pool.get_stats()["requests_num"] == 1
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            assert pool.get_stats()["requests_num"] == 1

    asyncio.run(main())


def test_connects_that_fail_are_counted(way):
    """As errors, and as attempts."""

    async def main():
        async with make_pool(AsyncConnectionPool, way.dsn, min_size=1) as pool:
            with pytest.raises(PoolTimeout):
                await pool.getconn(timeout=0.1)
            await eventually_async(lambda: pool.get_stats().get("connections_errors"), "a connect that fails")
            stats = pool.get_stats()
            assert stats["connections_errors"] >= 1
            assert stats["connections_num"] >= stats["connections_errors"]
            assert stats["requests_errors"] == stats["requests_num"] == 1

    asyncio.run(main())


def test_a_null_pool_connects_in_parallel(pool_of):
    """Within its callers' time, and no more than `max_size`."""

    async def configure(_):
        await all_connected.wait()

    async def main():
        async with pool_of(AsyncNullConnectionPool, max_size=5, configure=configure) as pool:
            connections = await asyncio.gather(*(pool.getconn() for _ in range(5)))
            with pytest.raises(PoolTimeout):
                await pool.getconn(timeout=0.05)
            for connection in connections:
                await pool.putconn(connection)

    all_connected = asyncio.Barrier(5)
    asyncio.run(main())


def test_what_psycopg_pools_workers_would_do_is_refused(pool_of):
    """There are none; the methods say so."""
    pool = pool_of()
    with pytest.raises(NotImplementedError, match="no workers"):
        pool.run_task(object())
    with pytest.raises(NotImplementedError, match="no workers"):
        asyncio.run(pool.schedule_task(object(), 1.0))


def test_a_pool_can_be_suspended(pool_of):
    """Callers queue until it is resumed."""

    async def main():
        async with pool_of(min_size=1) as pool:
            await pool.wait()
            pool.suspend()
            caller = asyncio.create_task(pid_of(pool))
            await spin(3)
            assert not caller.done()
            pool.resume()
            assert await caller

    asyncio.run(main())


def test_a_query_that_runs_as_its_connection_is_returned_says_so_in_the_log(pool_of, caplog):
    """And ends with an error."""

    async def main():
        async with pool_of(min_size=1) as pool:
            connection = await pool.getconn()
            query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
            await busy(connection)
            await pool.putconn(connection)
            with pytest.raises(psycopg.OperationalError, match="returned to its pool while a query was running"):
                await query

    asyncio.run(main())
    assert "closing returned connection" in words(caplog)[0]
