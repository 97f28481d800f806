"""What comes at a moment when nobody reckons with it: a reset, a timeout, a close, a notification, a second error."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import time
from types import SimpleNamespace

import psycopg
import pytest
from psycopg.pq import ConnStatus
from psycopg.waiting import Wait

from loopaware_pool.psycopg import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    LoopAwareConnection,
    PoolClosed,
)
from loopaware_pool.psycopg.socket_waiter import ConnectionUse, SocketWaiter
from psycopg_pools import make_pool
from running import LoopThread

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]

DEADLINE_SECONDS = 10.0


class OfTheUsers(psycopg.AsyncConnection):
    """A connection class that is not ours."""


KINDS = [{}, {"connection_class": OfTheUsers}]
both_kinds = pytest.mark.parametrize("options", KINDS, ids=["ours", "foreign class"])


async def notify(dsn, payload):
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("SELECT pg_notify('odd_moments', %s)", [payload])


async def ask(connection):
    cursor = await connection.execute("SELECT 42")
    return (await cursor.fetchone())[0]


async def kill(dsn, connection):
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
        await other.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])


# ---- on the socket ----


def test_a_wait_hears_of_an_error_as_often_as_it_asks(run):
    """A connection is reset with a part of the answer unread; uvloop calls a reader that stays only once for that."""

    async def scenario():
        with socket.create_server(("127.0.0.1", 0)) as server:
            here = socket.create_connection(server.getsockname())
            peer, _ = server.accept()
        with here, peer:
            pgconn = SimpleNamespace(socket=here.fileno(), status=ConnStatus.OK)
            watch = SocketWaiter(pgconn, asyncio.get_running_loop())
            watch.use = ConnectionUse.USED
            waiting = asyncio.ensure_future(watch.drive(ask_thrice()))
            await asyncio.sleep(0)
            peer.send(b"a part of the answer")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            told = await waiting
            watch.detach()
        return told

    def ask_thrice():
        for _ in range(3):
            yield Wait.R
        return "told"

    assert run(scenario()) == "told"


@pytest.mark.parametrize("is_killed", [True, False])
def test_asking_a_closed_connection_for_its_number_costs_nothing(dsn, run, is_killed):
    """As a `finally` does that is to remove a reader."""

    async def scenario():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, max_size=1) as pool:
            connection = await pool.getconn()
            if is_killed:
                await kill(dsn, connection)
                with pytest.raises(psycopg.OperationalError):
                    await connection.execute("SELECT 1")
            else:
                await connection.close()
            with pytest.raises(psycopg.OperationalError):
                connection.fileno()
            await pool.putconn(connection)
            async with pool.connection() as another:
                return await ask(another)

    assert run(scenario()) == 42


# ---- notifications ----


def test_a_timeout_ends_no_wait_but_its_own(dsn, run):
    """What has come is handed over in its last moment; the next query is not its business."""

    async def scenario():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, max_size=1) as pool, pool.connection() as connection:
            await connection.execute("LISTEN odd_moments")
            await notify(dsn, "one")
            assert select.select([connection.pgconn.socket], [], [], DEADLINE_SECONDS)[0]  # and not read
            payloads = [message.payload async for message in connection.notifies(timeout=0)]
            cursor = await connection.execute("SELECT pg_sleep(0.05), 42")
            return payloads, (await cursor.fetchone())[1]

    assert run(scenario()) == (["one"], 42)


@both_kinds
@pytest.mark.parametrize("discard_dead", ["on_check", "always"])
def test_a_notification_to_an_idle_connection_is_left_to_its_next_holder(dsn, run, options, discard_dead):
    """To look whether a connection is alive is not to read from it."""

    async def scenario():
        looking = options | {"discard_dead": discard_dead}
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, max_size=1, **looking) as pool:
            async with pool.connection() as connection:
                await connection.execute("LISTEN odd_moments")
            await notify(dsn, "one")
            await asyncio.sleep(1.1)  # idle connections of the floor are looked at once a second
            async with pool.connection() as connection:
                return [
                    message.payload async for message in connection.notifies(timeout=DEADLINE_SECONDS, stop_after=1)
                ]

    assert run(scenario()) == ["one"]


@both_kinds
@pytest.mark.parametrize("is_forgotten", [True, False])
def test_a_generator_of_notifications_that_was_left_hinders_nobody(dsn, run, options, is_forgotten):
    """Forgotten, it lets the connection go in a moment; kept, it costs the connection."""

    async def scenario():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, max_size=1, **options) as pool:
            connection = await pool.getconn()
            await connection.execute("LISTEN odd_moments")
            await notify(dsn, "one")
            generator = connection.notifies(timeout=DEADLINE_SECONDS)
            assert (await anext(generator)).payload == "one"
            if is_forgotten:
                del generator
            await pool.putconn(connection)
            async with pool.connection() as another:
                assert await ask(another) == 42
            if not is_forgotten:
                await generator.aclose()

    run(scenario())


# ---- opening and closing ----


def test_what_another_loop_has_opened_counts(dsn, loop_factory):
    """`wait()` ends when the connections are open, whoever has them."""
    pool = make_pool(AsyncConnectionPool, dsn, min_size=3, max_size=3)
    with LoopThread(loop_factory) as elsewhere:
        elsewhere.run(pool.open())

        async def wait():
            await pool.open(wait=True, timeout=DEADLINE_SECONDS)
            return sum(loop.idle for loop in pool.stats().loops)

        began = time.monotonic()
        assert asyncio.run(wait()) == 3
        assert time.monotonic() - began < DEADLINE_SECONDS
        elsewhere.run(pool.close())


@pytest.mark.parametrize("cls", [AsyncConnectionPool, AsyncNullConnectionPool])
def test_a_pool_that_was_closed_before_it_was_opened_can_be_opened(dsn, run, cls):
    """There was nothing to close."""

    async def scenario():
        pool = make_pool(cls, dsn, min_size=0, max_size=1)
        await pool.close()
        async with pool, pool.connection() as connection:
            return await ask(connection)

    assert run(scenario()) == 42


@pytest.mark.parametrize("is_closed", [False, True], ids=["not open yet", "closed"])
def test_a_pool_that_is_not_open_opens_nothing(dsn, run, is_closed):
    """Whatever is asked of it: nobody would close that."""
    told = []

    async def main():
        pool = make_pool(AsyncConnectionPool, dsn, min_size=0, max_size=1, on_event=told.append)
        if is_closed:
            async with pool:
                pass
        await pool.check()
        await pool.drain()
        await pool.resize(1, 2)
        await pool.check()
        await asyncio.sleep(0.1)
        assert pool.get_stats()["pool_size"] == 0
        await pool.close()

    run(main())
    assert told == []


@pytest.mark.parametrize("cls", [AsyncConnectionPool, AsyncNullConnectionPool])
def test_who_waits_for_a_pool_that_is_closed_is_told(run, cls):
    """At once, and no further connect is made."""

    async def scenario():
        connects = []

        async def count():
            connects.append(1)
            return "host=127.0.0.1 port=1"

        pool = cls(count, open=False, min_size=0 if cls is AsyncNullConnectionPool else 1, max_size=1)
        await pool.open()
        waiting = asyncio.ensure_future(pool.wait(timeout=DEADLINE_SECONDS))
        while not connects:
            await asyncio.sleep(0.01)
        await pool.close()
        so_far = len(connects)
        with pytest.raises(PoolClosed):
            await waiting
        assert len(connects) == so_far

    run(scenario())


def test_who_is_between_two_checks_is_told_of_the_close(dsn, run):
    """Rather than wait for a connection of a pool that has none."""

    async def scenario():
        async def fail(_):
            failed.set()
            raise ValueError

        failed = asyncio.Event()
        pool = make_pool(AsyncConnectionPool, dsn, min_size=1, max_size=1, check=fail, timeout=float("inf"))
        await pool.open()
        waiting = asyncio.ensure_future(pool.getconn())
        await failed.wait()
        failed.clear()
        await failed.wait()  # the first check is repeated at once, the next after a second
        await pool.close()
        with pytest.raises(PoolClosed):
            await waiting

    run(scenario())


def test_an_outage_that_may_last_for_ever_is_not_told_of(run):
    """`reconnect_timeout=inf` is never, not at once."""

    async def scenario():
        told = []
        pool = AsyncConnectionPool(
            "host=127.0.0.1 port=1",
            open=False,
            min_size=1,
            reconnect_timeout=float("inf"),
            reconnect_failed=told.append,
        )
        async with pool:
            with pytest.raises(psycopg.OperationalError):
                await pool.getconn(timeout=0.3)
        return pool.reconnect_timeout, told

    assert run(scenario()) == (float("inf"), [])


# ---- errors ----


def test_a_check_that_comes_late_costs_no_connection(dsn, run, monkeypatch):
    """It has a moment, even if its caller has none."""
    monkeypatch.setattr("loopaware_pool.psycopg.lending.LEAST_CALLBACK_SECONDS", DEADLINE_SECONDS)

    async def scenario():
        check = AsyncConnectionPool.check_connection
        async with make_pool(AsyncConnectionPool, dsn, min_size=2, max_size=2, check=check) as pool:
            await pool.wait()
            opened = pool.get_stats()["connections_num"]
            for _ in range(4):
                await pool.putconn(await pool.getconn(timeout=0))
            assert pool.get_stats()["connections_num"] == opened

    run(scenario())


def test_a_connect_that_fails_ends_nobody_elses_work(run):
    """Two tasks handle one error, and one of them connects meanwhile: its error refers to the frames of both."""

    async def scenario():
        shared = asyncio.get_running_loop().create_future()
        done = []

        async def handle():
            try:
                await shared
            except ValueError:
                try:
                    await asyncio.sleep(0.2)
                    done.append("handled")
                finally:
                    done.append("cleaned up")

        async def connect():
            try:
                await shared
            except ValueError:
                await asyncio.sleep(0.05)
                with pytest.raises(psycopg.OperationalError):
                    await LoopAwareConnection.connect("host=127.0.0.1 port=1")

        tasks = [asyncio.ensure_future(work()) for work in (connect, handle)]
        await asyncio.sleep(0)
        shared.set_exception(ValueError())
        await asyncio.gather(*tasks)
        return done

    assert run(scenario()) == ["handled", "cleaned up"]
