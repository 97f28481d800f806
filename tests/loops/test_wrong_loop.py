"""A connection that is used, released or dropped where its loop does not run."""

from __future__ import annotations

import asyncio
import gc
import threading

import asyncpg
import psycopg
import pytest

from flavours import both
from loopaware_pool import errors
from running import (
    DEADLINE_SECONDS,
    LoopThread,
    ask,
    end_abruptly,
    end_politely,
    eventually,
    make_pool,
    no_session_left,
    no_socket_left,
    take_all,
)

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


def test_a_connection_released_on_another_loop_goes_home(dsn, loop_factory, runner_factory):
    """`release` on a foreign loop, in a foreign thread, hands the connection to the loop that opened it."""
    pool = make_pool(dsn, max_size=1)

    async def open_and_acquire():
        await pool
        connection = await pool.acquire()
        return connection, await connection.fetchval("SELECT pg_backend_pid()")

    with LoopThread(loop_factory) as home:
        for _ in range(3):
            connection, pid = home.run(open_and_acquire())
            with runner_factory() as runner:
                runner.run(pool.release(connection))
            assert home.run(ask(pool, "SELECT pg_backend_pid()", timeout=DEADLINE_SECONDS)) == pid
            with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                connection.fetchval("SELECT 1")


def test_a_foreign_release_leaves_the_connection_to_its_loop(dsn, loop_factory, runner_factory):
    """While the loop that opened a connection is busy, nobody else does its work: the connection is lent until then."""
    pool = make_pool(dsn, max_size=1)
    is_busy, go_on = threading.Event(), threading.Event()

    async def open_and_acquire():
        await pool
        return await pool.acquire()

    def be_busy():
        is_busy.set()
        go_on.wait(DEADLINE_SECONDS)

    with LoopThread(loop_factory) as home, runner_factory() as runner:
        connection = home.run(open_and_acquire())
        home.loop.call_soon_threadsafe(be_busy)
        assert is_busy.wait(DEADLINE_SECONDS)
        try:
            runner.run(pool.release(connection))
            assert [row.state for row in pool.fd_report()] == ["lent"]
        finally:
            go_on.set()
        eventually(lambda: [row.state for row in pool.fd_report()] == ["idle"], "it is taken back")


@pytest.mark.parametrize("session_reset", ["never", "awaited"])
@pytest.mark.parametrize("flavour", both)
def test_a_connection_released_while_its_loop_stands_still_is_free(dsn, runner_factory, flavour, session_reset):
    """Another loop may release it: it is closed, somebody else has its place, and the pool can be closed."""
    opening = both[flavour](dsn, max_size=1, session_reset=session_reset)

    async def lend(client):
        lease = client.lend(timeout=DEADLINE_SECONDS)
        return lease, await lease.__aenter__()

    async def release_and_ask(client, lease):
        await lease.__aexit__(None, None, None)
        return await client.value("SELECT 1", timeout=DEADLINE_SECONDS)

    async def fail_to_ask(client, connection):
        with pytest.raises((asyncpg.InterfaceError, psycopg.OperationalError)):
            await client.ask(connection, "SELECT 1")

    async def release_and_close(lease):
        await lease.__aexit__(None, None, None)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await opening.__aexit__(None, None, None)

    with no_socket_left(), runner_factory() as home, runner_factory() as elsewhere:
        client = home.run(opening.__aenter__())
        lease, connection = home.run(lend(client))
        assert elsewhere.run(release_and_ask(client, lease)) == 1
        home.run(fail_to_ask(client, connection))
        lease, _ = home.run(lend(client))
        elsewhere.run(release_and_close(lease))
    no_session_left(dsn, client.pool)


@pytest.mark.parametrize("flavour", both)
def test_a_connection_dropped_while_its_loop_stands_still_is_free(dsn, runner_factory, flavour):
    """It is closed when somebody elsewhere waits for its place."""
    opening = both[flavour](dsn, max_size=1)

    async def lend(client):
        lease = client.lend(timeout=DEADLINE_SECONDS)
        return lease, await lease.__aenter__()

    async def ask(client):
        return await client.value("SELECT 1", timeout=DEADLINE_SECONDS)

    with runner_factory() as home, runner_factory() as elsewhere:
        client = home.run(opening.__aenter__())
        held = home.run(lend(client))
        del held
        gc.collect()
        assert elsewhere.run(ask(client)) == 1
        elsewhere.run(opening.__aexit__(None, None, None))
    no_session_left(dsn, client.pool)


def test_a_connection_released_after_its_loop_is_a_no_op(dsn, loop_factory, runner_factory):
    """A lease that outlived its loop may be released anywhere; it is gone already."""
    pool = make_pool(dsn)
    kept = []

    async def acquire():
        await pool
        kept.append(await pool.acquire())

    for end in (end_politely, end_abruptly):
        with no_socket_left():
            end(loop_factory, acquire())
            with runner_factory() as runner:
                runner.run(pool.release(kept.pop()))
                runner.run(take_all(pool))


USES = {
    "fetchval": lambda connection: connection.fetchval("SELECT 1"),
    "execute": lambda connection: connection.execute("SELECT 1"),
    "prepare": lambda connection: connection.prepare("SELECT 1"),
    "reset": lambda connection: connection.reset(),
    "close": lambda connection: connection.close(),
}


@pytest.mark.parametrize("use", USES)
def test_a_foreign_connection_says_whose_it_is(use, dsn, loop_factory):
    """Using a connection on another loop raises `WrongLoop`, names both loops, and does the connection no harm."""
    pool = make_pool(dsn)

    async def open_and_acquire():
        await pool
        return await pool.acquire()

    async def misuse(connection):
        with pytest.raises(errors.WrongLoop) as caught:
            await USES[use](connection)
        return str(caught.value)

    async def use_well(connection):
        assert await connection.fetchval("SELECT 1") == 1
        await pool.release(connection)

    def labels():
        return {loop.loop for loop in pool.stats().loops}

    with LoopThread(loop_factory) as home, LoopThread(loop_factory) as abroad:
        connection = home.run(open_and_acquire())
        (home_label,) = labels()
        abroad.run(ask(pool))
        (abroad_label,) = labels() - {home_label}
        message = abroad.run(misuse(connection))
        assert home_label in message
        assert abroad_label in message
        home.run(use_well(connection))
