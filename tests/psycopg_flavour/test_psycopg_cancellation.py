"""Cancellation at every await of the psycopg flavour, twice if need be, loses nothing and is never swallowed."""

from __future__ import annotations

import asyncio
import random
import socket

import psycopg
import pytest
from psycopg import pq
from psycopg.waiting import Wait

import helpers
from loopaware_pool.psycopg import AsyncConnectionPool
from psycopg_pools import IS_PSYCOPG_3_2, busy, make_pool
from running import DEADLINE_SECONDS, eventually_async, until_server_waits

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]

SIZE = 5


class OfTheUsers(psycopg.AsyncConnection):
    """A connection class that is not ours."""


async def all_are_usable(pool, size):
    """Every connection there may be is to be had at once, and answers; nobody is counted as waiting."""
    stats = pool.get_stats()
    assert stats["requests_waiting"] == 0
    async with asyncio.timeout(2 * DEADLINE_SECONDS):
        connections = [await pool.getconn(timeout=DEADLINE_SECONDS) for _ in range(size)]
        for number, connection in enumerate(connections):
            row = await (await connection.execute("SELECT %s::int", [number])).fetchone()
            assert row == (number,)
        for connection in connections:
            await pool.putconn(connection)
    await pool.settled()
    assert len(pool._pool) == size
    assert {row.state for row in pool.fd_report()} == {"idle"}


@pytest.mark.parametrize("autocommit", [True, False])
# psycopg 3.2's own wait loses cancellations on Python 3.11.
@pytest.mark.parametrize("connection_class", [None] if IS_PSYCOPG_3_2 else [None, OfTheUsers])
@pytest.mark.parametrize("seed", range(2))
def test_a_storm_of_cancellations(dsn, run, connection_class, autocommit, seed):
    """Twenty tasks, cancelled at random moments, some twice: all connections are usable at once afterwards."""
    chance = random.Random(seed)
    options = {} if connection_class is None else {"connection_class": connection_class}

    async def lease(pool, number):
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT %s::int, pg_sleep(%s)", [number, chance.random() * 0.01])
            assert (await cursor.fetchone())[0] == number

    async def tormented(pool, number):
        task = asyncio.create_task(lease(pool, number))
        await asyncio.sleep(chance.random() * 0.03)
        was_done = task.done()
        task.cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(chance.random() * 0.002)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() is not was_done

    async def main():
        async with make_pool(
            AsyncConnectionPool, dsn, min_size=SIZE, kwargs={"autocommit": autocommit}, **options
        ) as pool:
            await pool.wait()
            for _ in range(8):
                await asyncio.gather(*(tormented(pool, number) for number in range(20)))
            await eventually_async(lambda: len(pool._pool) == SIZE, "connections that are all idle")
            await all_are_usable(pool, SIZE)

    run(main())


def test_a_cancelled_query_is_cancelled_on_the_server_and_its_connection_used_again(dsn, run, monkeypatch):
    """The next query comes on the same session, at once."""
    monkeypatch.setattr("loopaware_pool.psycopg.connection.CANCEL_SECONDS", DEADLINE_SECONDS)

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1) as pool:
            async with pool.connection() as connection:
                pid = connection.info.backend_pid
                query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
                await until_server_waits(dsn, pool)  # a request to cancel that comes too early comes to nothing
                query.cancel("enough")
                with pytest.raises(asyncio.CancelledError):
                    await query
                assert query.cancelled()
                await connection.execute("SELECT 1")
            async with pool.connection() as connection:
                assert connection.info.backend_pid == pid

    run(main())


def test_a_query_that_is_cancelled_twice_ends_at_once(dsn, run):
    """Nobody waits for the server then: the connection is closed, and another takes its place."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1) as pool:
            async with pool.connection() as connection:
                query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
                await busy(connection)
                query.cancel()
                await asyncio.sleep(0)
                query.cancel()
                await asyncio.wait([query])
                assert query.cancelled()
                assert connection.closed or IS_PSYCOPG_3_2  # whose cancellation may take no notice of ours
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")

    run(main())


def test_a_query_whose_connection_is_returned_while_it_is_being_cancelled_is_not_resumed(dsn, run):
    """psycopg's generators in C would go on with what libpq has freed."""
    resumed = []

    def query(connection):
        connection.pgconn.send_query(b"SELECT pg_sleep(60)")
        while True:
            resumed.append((yield Wait.R))

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1) as pool:
            connection = await pool.getconn()
            requested, returned = asyncio.Event(), asyncio.Event()

            async def cancel_safe(*, timeout):
                requested.set()
                await returned.wait()

            connection.cancel_safe = cancel_safe
            task = asyncio.create_task(connection.wait(query(connection), interval=None))
            await busy(connection)
            task.cancel()
            await requested.wait()
            await pool.putconn(connection)
            assert connection.pgconn.status == pq.ConnStatus.BAD
            returned.set()
            await asyncio.wait([task])
            assert task.cancelled()

    run(main())
    assert resumed == []


@pytest.mark.parametrize("iterations", range(8))
def test_a_caller_cancelled_around_the_hand_over_loses_nothing(dsn, run, iterations):
    """Before, at, and after the moment it is given a connection."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1) as pool:
            held = await pool.getconn()
            first, second = (asyncio.create_task(pool.getconn()) for _ in range(2))
            await helpers.spin(2)
            await pool.putconn(held)
            await helpers.spin(iterations)
            if first.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await first
            else:
                await pool.putconn(first.result())
            await pool.putconn(await second)
            await all_are_usable(pool, 1)

    run(main())


def test_a_caller_cancelled_in_the_queue_leaves_it(dsn, run):
    """It is not counted any more, and those behind it move up."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, max_waiting=1) as pool:
            async with pool.connection():
                waiting = asyncio.create_task(pool.getconn())
                await helpers.spin(2)
                assert pool.get_stats()["requests_waiting"] == 1
                waiting.cancel()
                await asyncio.wait([waiting])
                assert pool.get_stats()["requests_waiting"] == 0
                again = asyncio.create_task(pool.getconn())
                await helpers.spin(2)
            await pool.putconn(await again)
            await all_are_usable(pool, 1)

    run(main())


def test_a_caller_cancelled_in_its_check_gives_the_connection_back(dsn, run):
    """And the cancellation is the caller's own."""

    async def hang(_):
        if is_hanging:
            await asyncio.sleep(60)

    async def main():
        nonlocal is_hanging
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, check=hang) as pool:
            await pool.wait()
            caller = asyncio.create_task(pool.getconn())
            await asyncio.sleep(0.02)
            caller.cancel()
            await asyncio.wait([caller])
            assert caller.cancelled()
            is_hanging = False
            await all_are_usable(pool, 1)

    is_hanging = True
    run(main())


@pytest.mark.parametrize("iterations", range(1, 12))
def test_a_return_that_is_cancelled_is_finished_by_the_pool(dsn, run, iterations):
    """The rollback goes on without the one who was to wait for it."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, kwargs={"autocommit": False}) as pool:
            connection = await pool.getconn()
            await connection.execute("SELECT 1")
            back = asyncio.create_task(pool.putconn(connection))
            await helpers.spin(iterations)
            back.cancel()
            await asyncio.wait([back])
            await eventually_async(lambda: len(pool._pool) == 1, "a connection that is back")
            await all_are_usable(pool, 1)

    run(main())


@pytest.mark.parametrize("iterations", range(0, 12, 2))
def test_a_block_that_is_cancelled_as_it_commits_gives_the_connection_back(dsn, run, iterations):
    """Idle, or closed and replaced."""

    async def lease(pool):
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
            reached.set()

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, kwargs={"autocommit": False}) as pool:
            task = asyncio.create_task(lease(pool))
            await reached.wait()
            await helpers.spin(iterations)
            task.cancel()
            await asyncio.wait([task])
            await all_are_usable(pool, 1)

    reached = asyncio.Event()
    run(main())


def test_a_pool_whose_closing_is_cancelled_is_closed(dsn, run):
    """What it was to wait for is cut."""

    async def hang(_):
        is_hanging.set()
        await asyncio.sleep(60)

    async def main():
        pool = make_pool(AsyncConnectionPool, dsn, min_size=1, configure=hang)
        await pool.open()
        await is_hanging.wait()
        closing = asyncio.create_task(pool.close())
        await helpers.spin(2)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        assert pool.closed
        await eventually_async(lambda: not pool.fd_report(), "a pool that is empty")

    is_hanging = asyncio.Event()
    run(main())


def test_a_cancelled_caller_does_not_cancel_the_connect(dsn, run):
    """Somebody else gets the connection it was waiting for."""

    async def slow(_):
        await asyncio.sleep(0.1)

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=0, max_size=1, configure=slow) as pool:
            caller = asyncio.create_task(pool.getconn())
            await helpers.spin(2)
            caller.cancel()
            await asyncio.wait([caller])
            await eventually_async(lambda: len(pool._pool) == 1, "a connection that joins the pool")

    run(main())


async def copy_for_ever(connection):
    async with connection.cursor().copy("COPY (SELECT generate_series(1, 100000000)) TO STDOUT") as rows:
        async for _ in rows:
            pass


async def pipeline_for_ever(connection):
    async with connection.pipeline():
        for _ in range(3):
            await connection.execute("SELECT pg_sleep(20)")


async def listen_for_ever(connection):
    async for _ in connection.notifies():
        pass


async def fetch_for_ever(connection):
    async with connection.transaction(), connection.cursor("rows") as rows:
        await rows.execute("SELECT pg_sleep(0.01) FROM generate_series(1, 100000)")
        async for _ in rows:
            pass


@pytest.mark.parametrize("work", [copy_for_ever, pipeline_for_ever, listen_for_ever, fetch_for_ever])
def test_what_takes_long_can_be_cancelled(dsn, run, work):
    """It leaves a connection that can be used at once, or is replaced."""

    async def lease(pool):
        async with pool.connection() as connection:
            await work(connection)

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1) as pool:
            task = asyncio.create_task(lease(pool))
            await asyncio.sleep(0.1)
            assert not task.done()
            task.cancel()
            async with asyncio.timeout(15):
                await asyncio.wait([task])
            assert task.cancelled()
            await all_are_usable(pool, 1)

    run(main())


def test_copies_pipelines_notifications_and_cursors_work(dsn, run):
    """All that waits, waits for what it should."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1) as pool, pool.connection() as connection:
            await connection.execute("CREATE TEMPORARY TABLE lines (line text)")
            async with connection.cursor().copy("COPY lines FROM STDIN") as copy:
                for _ in range(2000):
                    await copy.write("x" * 1000 + "\n")
            async with connection.cursor().copy("COPY lines TO STDOUT") as copy:
                assert len([row async for row in copy.rows()]) == 2000
            async with connection.pipeline():
                cursors = [await connection.execute("SELECT %s::int", [number]) for number in range(200)]
            assert [(await cursor.fetchone())[0] for cursor in cursors] == list(range(200))
            async with connection.transaction(), connection.cursor("rows") as rows:
                await rows.execute("SELECT generate_series(1, 500)")
                assert len([row async for row in rows]) == 500
            await connection.execute("LISTEN news; NOTIFY news, 'a'; NOTIFY news, 'b'")
            assert [note.payload async for note in connection.notifies(timeout=0.2)] == ["a", "b"]

    run(main())


def test_a_silent_server_does_not_keep_a_cancelled_query(dsn, run, monkeypatch):
    """After the seconds that a cancellation is granted the connection is closed, and the task ends."""
    monkeypatch.setattr("loopaware_pool.psycopg.connection.CANCEL_SECONDS", 0.1)

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=0, max_size=1) as pool:
            connection = await pool.getconn()
            query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
            await busy(connection)
            monkeypatch.setattr(type(connection), "cancel_safe", lambda self, *, timeout: asyncio.sleep(0))
            query.cancel()
            await asyncio.wait([query])
            assert query.cancelled()
            assert connection.closed
            await pool.putconn(connection)

    run(main())


def test_a_check_that_hangs_ends_at_the_callers_deadline(dsn, run, monkeypatch):
    """Its connection is closed: the cancellation of its query might not be answered either."""

    async def hang(connection):
        monkeypatch.setattr(type(connection), "cancel_safe", lambda self, *, timeout: asyncio.sleep(60))
        await connection.execute("SELECT pg_sleep(60)")

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, check=hang) as pool:
            async with asyncio.timeout(10):
                with pytest.raises(psycopg.OperationalError, match="couldn't get a connection"):
                    await pool.getconn(timeout=0.1)

    run(main())


def test_a_connect_to_a_silent_server_is_waited_for_until_the_callers_deadline(run):
    """And until the pool is closed."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]

        async def main():
            dsn = f"host=127.0.0.1 port={port} user=nobody dbname=nobody sslmode=disable gssencmode=disable"
            async with make_pool(AsyncConnectionPool, dsn, min_size=0, max_size=1) as pool:
                with pytest.raises(psycopg.OperationalError, match="couldn't get a connection"):
                    await pool.getconn(timeout=0.1)
                await pool.close(timeout=0.1)

        run(main())
