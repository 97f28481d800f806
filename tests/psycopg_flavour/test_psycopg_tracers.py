"""Connections that a tracer wraps when they are made, as ddtrace and newrelic do, are pooled as others are."""

from __future__ import annotations

import asyncio
import gc

import psycopg
import psycopg_pool
import pytest
import wrapt

import helpers
from loopaware_pool.psycopg import AsyncConnectionPool, AsyncNullConnectionPool, LoopAwareConnection
from psycopg_pools import IS_PSYCOPG_3_2, busy, make_pool
from running import eventually_async, until_server_waits

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]


class Traced(wrapt.ObjectProxy):
    """What a tracer makes of a connection; it notes what is executed by way of it."""

    async def execute(self, query, *args, **kwargs):
        spans.append(query)
        return await self.__wrapped__.execute(query, *args, **kwargs)

    async def __aenter__(self):
        await self.__wrapped__.__aenter__()
        return self

    async def __aexit__(self, *exc):
        spans.append("__aexit__")
        return await self.__wrapped__.__aexit__(*exc)


spans: list[str] = []


@pytest.fixture(autouse=True)
def tracer(monkeypatch):
    """Wraps each connection that is made."""

    async def traced(connect, _, args, kwargs):
        return Traced(await connect(*args, **kwargs))

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", psycopg.AsyncConnection.__dict__["connect"])
    wrapt.wrap_function_wrapper("psycopg", "AsyncConnection.connect", traced)
    spans.clear()


@pytest.fixture(params=[LoopAwareConnection, psycopg.AsyncConnection], ids=["our class", "psycopg's class"])
def connection_class(request):
    return request.param


@pytest.mark.parametrize(
    "cls",
    [AsyncConnectionPool, AsyncNullConnectionPool, psycopg_pool.AsyncConnectionPool],
    ids=["ours", "ours null", "theirs"],
)
def test_a_wrapped_connection_is_lent_and_lent_again(dsn, run, cls, connection_class):
    """Wrapped each time, and what is done by way of it is traced, its end included."""
    keeps_idle = cls is not AsyncNullConnectionPool

    async def main():
        async with make_pool(cls, dsn, min_size=int(keeps_idle), max_size=1, connection_class=connection_class) as pool:
            pids = []
            for _ in range(2):
                async with pool.connection() as connection:
                    assert type(connection) is Traced
                    assert isinstance(connection, connection_class)
                    pids.append(connection.info.backend_pid)
                    await connection.execute("SELECT 1")
            assert (pids[0] == pids[1]) is keeps_idle
            assert spans == ["SELECT 1", "__aexit__"] * 2

    run(main())


def test_a_wrapped_connection_is_what_the_users_functions_are_called_with(dsn, run, connection_class):
    """Each of the four."""
    seen = []

    async def see(connection):
        seen.append(type(connection))

    async def main():
        options = {"configure": see, "check": see, "reset": see, "connection_class": connection_class}
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, **options) as pool:
            for _ in range(2):
                async with pool.connection():
                    pass
                await pool.settled()

    run(main())
    assert seen == [Traced] * 5


def test_a_wrapped_connections_query_is_cancelled(dsn, run, connection_class):
    """And the connection used again."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, connection_class=connection_class) as pool:
            connection = await pool.getconn()
            query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
            await until_server_waits(dsn, pool)
            query.cancel()
            with pytest.raises(asyncio.CancelledError):
                await query
            await connection.execute("SELECT 1")
            await pool.putconn(connection)

    run(main())


@pytest.mark.parametrize("end", ["close", "putconn"])
def test_a_wrapped_connection_that_ends_under_a_query_ends_the_query(dsn, run, connection_class, end):
    """And is replaced."""
    if IS_PSYCOPG_3_2 and connection_class is psycopg.AsyncConnection:
        pytest.skip("psycopg 3.2's own wait may take the interpreter down")

    async def main():
        async with make_pool(
            AsyncConnectionPool, dsn, min_size=0, max_size=1, connection_class=connection_class
        ) as pool:
            connection = await pool.getconn()
            query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
            await busy(connection)
            await (connection.close() if end == "close" else pool.putconn(connection))
            async with asyncio.timeout(10):
                with pytest.raises(psycopg.OperationalError):
                    await query
            if end == "close":
                await pool.putconn(connection)
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")

    run(main())


def test_a_wrapped_connection_that_is_dropped_comes_back(dsn, run, connection_class):
    """As soon as nobody has it, or a cursor of its own, any more."""

    async def main():
        async with make_pool(
            AsyncConnectionPool, dsn, min_size=0, max_size=1, connection_class=connection_class
        ) as pool:
            connection = await pool.getconn()
            cursor = connection.cursor()  # refers to what is wrapped
            del connection
            await helpers.spin(3)
            await cursor.execute("SELECT 1")
            assert await cursor.fetchone() == (1,)
            del cursor
            gc.collect()
            await eventually_async(lambda: not pool.fd_report(), "a place that is free")
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")

    run(main())


def test_a_wrapped_connection_can_come_back_without_its_wrapper(dsn, run, connection_class):
    """Or in another one; what is lent next is the tracer's."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, connection_class=connection_class) as pool:
            connection = await pool.getconn()
            await pool.putconn(connection.__wrapped__)
            again = await pool.getconn()
            assert again is connection
            await pool.putconn(wrapt.ObjectProxy(again))
            assert await pool.getconn() is connection
            await pool.putconn(connection)

    run(main())


# psycopg_pool's own of that time has no such option.
@pytest.mark.parametrize(
    "cls",
    [AsyncConnectionPool, *([] if IS_PSYCOPG_3_2 else [psycopg_pool.AsyncConnectionPool])],
    ids=["ours", *([] if IS_PSYCOPG_3_2 else ["theirs"])],
)
def test_a_wrapped_connection_can_be_closed_into_its_pool(dsn, run, cls):
    """The pool made with `close_returns` has it back."""

    async def main():
        async with make_pool(cls, dsn, min_size=1, close_returns=True) as pool:
            connection = await pool.getconn()
            await connection.close()
            assert not connection.closed
            again = await pool.getconn()
            assert again.info.backend_pid == connection.info.backend_pid
            await again.close()

    run(main())
