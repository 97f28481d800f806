"""What a caller sees when the network is silent, or breaks off; docs/reliability.md has it as a table."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from faults import both_flavours, pids, within
from flavours import both
from loopaware_pool import errors
from loopaware_pool._core import timeouts
from loopaware_pool.asyncpg import session as asyncpg_session
from loopaware_pool.psycopg import connection as psycopg_connection
from loopaware_pool.testing import FaultProxy
from running import eventually_async

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]


@both_flavours
def test_on_a_silent_network_every_wait_has_its_bound(dsn, run, open_pool, monkeypatch):
    """Queueing, connecting, a query that is cancelled, its connection's return, and the end of the pool."""
    monkeypatch.setattr(asyncpg_session, "RESET_SECONDS", 0.2)
    monkeypatch.setattr(psycopg_connection, "CANCEL_SECONDS", 0.1)

    async def main():
        with FaultProxy(dsn) as proxy:
            async with open_pool(proxy.dsn) as client:
                lease = client.lend()
                connection = await lease.__aenter__()
                proxy.freeze()
                with within(0.2), pytest.raises(errors.PoolTimeout):  # the second connection is never welcomed
                    await client.value("SELECT 1", timeout=0.2)
                query = asyncio.create_task(client.ask(connection, "SELECT 1"))
                await asyncio.sleep(0.05)
                query.cancel()
                with within(0.2), pytest.raises(asyncio.CancelledError):
                    await query
                with within(0.2):
                    await asyncio.gather(lease.__aexit__(None, None, None), return_exceptions=True)
                with within(0.2), pytest.raises(errors.PoolTimeout):
                    await client.value("SELECT 1", timeout=0.2)
                proxy.reset()
                proxy.heal()
                assert await client.value("SELECT 1", timeout=20) == 1
                proxy.freeze()
                await end(client.pool)

    async def end(pool):
        if open_pool is both["psycopg"]:
            with within(0.2):
                await pool.close(timeout=0.2)
        else:
            with within(0.2), pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.close(), 0.2)

    run(main())


async def query_in_time(pool, proxy, query):
    """The pool's own method, with a deadline for the query."""
    proxy.freeze()
    await pool.fetchval(query, timeout=0.2)


async def time_out_around(pool, proxy, query):
    """A deadline around the lease."""
    async with asyncio.timeout(0.2), pool.acquire() as connection:
        proxy.freeze()
        await connection.fetchval(query)


async def time_out_in_transaction(pool, proxy, query):
    """The same, when the connection has something to roll back."""
    async with asyncio.timeout(0.2), pool.acquire() as connection:
        await connection.execute("BEGIN")
        proxy.freeze()
        await asyncio.sleep(60)


async def release_by_hand(pool, proxy, query):
    """A release while the error of the query is on its way."""
    connection = await pool.acquire()
    try:
        proxy.freeze()
        await connection.fetchval(query, timeout=0.2)
    finally:
        await pool.release(connection)


async def catch_inside(pool, proxy, query):
    """A lease that ends well, as it has caught the query's error."""
    async with pool.acquire() as connection:
        proxy.freeze()
        try:
            await connection.fetchval(query, timeout=0.2)
        except TimeoutError as error:
            late = error
    raise late


@pytest.mark.both_drivers
@pytest.mark.parametrize("session_reset", ["pipelined", "when_dirty", "confirmed", "awaited", "never"])
@pytest.mark.parametrize(
    "caller",
    [query_in_time, time_out_around, time_out_in_transaction, release_by_hand, catch_inside],
    ids=lambda caller: caller.__name__,
)
def test_a_caller_whose_time_is_up_does_not_wait_for_the_reset(dsn, run, caller, session_reset):
    """Whatever is left to do on the connection is the pool's, and its place is free again once the network is well."""
    if caller is catch_inside and session_reset == "awaited":
        pytest.skip("this release is to tell what the reset fails with, and has no deadline")

    async def main():
        with FaultProxy(dsn) as proxy:
            async with both["asyncpg"](proxy.dsn, max_size=1, session_reset=session_reset) as client:
                assert await client.value("SELECT 1") == 1
                await client.pool.settled()
                with within(0.2), pytest.raises(TimeoutError):
                    await caller(client.pool, proxy, "SELECT 1")
                proxy.reset()
                proxy.heal()
                assert await client.value("SELECT 1", timeout=20) == 1

    run(main())


def lose(pool, connection, proxy):
    """The network ends the connection."""
    proxy.reset()


def terminate(pool, connection, proxy):
    """Another task does."""
    connection.terminate()


def terminate_pool(pool, connection, proxy):
    """The pool's end does."""
    pool.terminate()


@pytest.mark.both_drivers
@pytest.mark.parametrize("end", [lose, terminate, terminate_pool], ids=lambda end: end.__name__)
def test_a_query_that_waits_behind_a_cancelled_one_fails_when_the_connection_ends(dsn, run, end):
    """It is sent when the server has ended the cancelled one. If the connection ends first, the caller is told."""

    async def main():
        with FaultProxy(dsn) as proxy:
            async with both["asyncpg"](proxy.dsn, max_size=1) as client, client.pool.acquire() as connection:
                assert await connection.fetchval("SELECT 1") == 1
                proxy.freeze()
                with pytest.raises(TimeoutError):
                    await connection.fetchval("SELECT 1", timeout=0.05)
                query = asyncio.create_task(connection.fetchval("SELECT 2"))
                await asyncio.sleep(0.05)
                assert not query.done()
                end(client.pool, connection, proxy)
                with within(0.2), pytest.raises(asyncpg.InterfaceError, match="connection is closed"):
                    await asyncio.wait_for(query, 5)

    run(main())


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_caller_whose_time_is_up_does_not_wait_for_the_rollback(dsn, run, by_hand, caplog, monkeypatch):
    """The pool rolls back in the caller's place."""
    monkeypatch.setattr(psycopg_connection, "CANCEL_SECONDS", 3600.0)

    async def lend_in_time(pool, proxy):
        async with asyncio.timeout(None) as limit, pool.connection() as connection:
            await begin_and_hang(connection, proxy, limit)

    async def put_back_in_time(pool, proxy):
        async with asyncio.timeout(None) as limit:
            connection = await pool.getconn()
            try:
                await begin_and_hang(connection, proxy, limit)
            finally:
                await pool.putconn(connection)

    async def begin_and_hang(connection, proxy, limit):
        await connection.execute("BEGIN")
        proxy.freeze()
        limit.reschedule(asyncio.get_running_loop().time() + 0.2)
        await asyncio.sleep(60)

    async def main():
        with FaultProxy(dsn) as proxy:
            async with both["psycopg"](proxy.dsn, max_size=1) as client:
                assert await client.value("SELECT 1") == 1
                with within(0.2), pytest.raises(TimeoutError):
                    await (put_back_in_time if by_hand else lend_in_time)(client.pool, proxy)
                proxy.reset()
                proxy.heal()
                assert await client.value("SELECT 1", timeout=20) == 1

    run(main())
    assert ("rolling back returned connection" in caplog.text) is by_hand


@both_flavours
def test_what_a_cancelled_caller_held_is_free_when_its_block_ends(dsn, run, open_pool, monkeypatch):
    """On a server that is well, a transaction is rolled back before the cancelled task goes on."""
    for module in (timeouts, asyncpg_session):  # a server that is well may be on a busy machine
        monkeypatch.setattr(module, "LATE_SECONDS", 20.0)

    async def main():
        async with open_pool(dsn, max_size=2) as client:

            async def hold():
                async with client.lend() as connection:
                    await client.run(connection, "BEGIN")
                    await client.run(connection, "SELECT pg_advisory_xact_lock(4711)")
                    held.set()
                    await asyncio.sleep(60)

            for _ in range(10):
                held = asyncio.Event()
                holder = asyncio.create_task(hold())
                await held.wait()
                holder.cancel()
                await asyncio.wait([holder])
                assert await client.value("SELECT pg_try_advisory_xact_lock(4711)") is True

    run(main())


@pytest.mark.parametrize("fault", ["reset", "drop"])
@both_flavours
def test_connections_that_the_network_ends_while_idle_are_replaced(dsn, run, open_pool, fault):
    """Nobody notices."""

    async def main():
        with FaultProxy(dsn) as proxy:
            async with open_pool(proxy.dsn, max_size=3) as client:
                for _ in range(3):
                    await pids(client, 3)
                    getattr(proxy, fault)()
                    values = await asyncio.gather(*(client.value("SELECT 1") for _ in range(9)))
                    assert values == [1] * 9

    run(main())


@pytest.mark.parametrize("after_bytes", [0, 1, 40, 200, 345])
@both_flavours
def test_a_handshake_that_breaks_off_is_tried_again(dsn, run, open_pool, after_bytes):
    """Wherever it does."""

    async def main():
        with FaultProxy(dsn) as proxy:
            proxy.truncate(after_bytes)
            async with open_pool(proxy.dsn) as client:
                waiting = asyncio.create_task(client.value("SELECT 1", timeout=20))
                await asyncio.sleep(0.1)
                assert not waiting.done()
                proxy.heal()
                assert await waiting == 1

    run(main())


@both_flavours
def test_half_open_connections_are_found_by_their_keepalive(dsn, run, open_pool, monkeypatch):
    """They look alive; a ping that is not answered in time ends them."""
    monkeypatch.setattr("loopaware_pool._core.runner.GOODBYE_SECONDS", 0.2)

    async def main():
        with FaultProxy(dsn) as proxy:
            async with open_pool(proxy.dsn, keepalive=0.1) as client:
                await pids(client, 2)
                await client.pool.settled()  # else it is the answer to a reset that does not come
                proxy.half_open()
                await eventually_async(lambda: not client.pool.fd_report(), "the end of both")
                proxy.heal()
                assert await client.value("SELECT 1", timeout=20) == 1

    run(main())
