"""
Programs that make the messages of `docs/troubleshooting.md`, each on its own loop: `python tests/messages.py`.

Prints an object: the name of each program, and the message that it got. Needs no server: it starts one.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import threading
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import psycopg_pool
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import loopaware_pool
from loopaware_pool import create_pool
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.sqlalchemy import LoopAwareQueuePool
from loopaware_pool.testing.embedded_server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAMS: dict[str, Callable[[str], Any]] = {}
MAX_CONNECTIONS = 12


def program(function):
    """Register a program: a function that gets a DSN, and raises the message, or returns it."""
    PROGRAMS[function.__name__.replace("_", "-")] = function
    return function


def message_of(function, dsn):
    try:
        result = function(dsn)
        if asyncio.iscoroutine(result):
            result = asyncio.run(result)
    except BaseException as error:
        return described(error)
    return result


def described(error):
    """As the last line of a traceback has it, without the module."""
    return f"{type(error).__name__}: {error}".rstrip(": ")


class Heard(logging.Handler):
    """What is logged while it listens, by its level and text."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.levelname} {record.getMessage()}")

    def __enter__(self):
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_):
        logging.getLogger().removeHandler(self)

    def first(self, part):
        return next(line for line in self.lines if part in line)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


# ---- no connection in time ----


@program
async def ours_timeout(dsn):
    async with create_pool(dsn, min_size=0, max_size=1, name="shop") as pool, pool.acquire():
        await pool.acquire(timeout=0.1)


@program
async def ours_timeout_psycopg(dsn):
    async with AsyncConnectionPool(dsn, min_size=0, max_size=1, name="shop") as pool, pool.connection():
        await pool.getconn(timeout=0.1)


@program
async def ours_timeout_sqlalchemy(dsn):
    engine = loopaware_engine(dsn, pool_size=1, max_overflow=0, pool_timeout=0.1, name="shop")
    async with engine.connect():
        try:
            await engine.connect()
        finally:
            await engine.dispose()


@program
async def ours_timeout_full(dsn):
    async with full(dsn), create_pool(dsn, min_size=0, max_size=1, name="shop") as pool:
        patient = asyncio.ensure_future(pool.acquire(timeout=20))
        await until(lambda: pool.stats().totals.connect_failures)
        try:
            await pool.acquire(timeout=0.3)
        finally:
            patient.cancel()


@program
async def ours_incomplete(dsn):
    pool = AsyncConnectionPool("host=127.0.0.1 port=1 connect_timeout=1", min_size=1, open=False, name="shop")
    await pool.open()
    await until(lambda: pool.stats().totals.connect_failures)
    try:
        await pool.wait(timeout=0.2)
    finally:
        await pool.close()


@program
async def ours_too_many_waiting(dsn):
    async with create_pool(dsn, min_size=0, max_size=1, max_waiting=1, name="shop") as pool, pool.acquire():
        waiter = asyncio.ensure_future(pool.fetchval("SELECT 1"))
        await until(lambda: pool.stats().waiting)
        try:
            await pool.acquire()
        finally:
            waiter.cancel()


@program
async def ours_too_many_requests(dsn):
    pool = AsyncConnectionPool(dsn, min_size=0, max_size=1, max_waiting=1, name="shop")
    async with pool, pool.connection():
        waiter = asyncio.ensure_future(pool.getconn())
        await until(lambda: pool.stats().waiting)
        try:
            await pool.getconn()
        finally:
            waiter.cancel()


@program
async def ours_overloaded(dsn):
    async with create_pool(dsn, min_size=1, max_size=1, shed_after=0.02, name="shop") as pool:
        calls = [pool.execute("SELECT pg_sleep(0.1)") for _ in range(20)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        raise next(error for error in results if isinstance(error, Exception))


@program
async def asyncpg_timeout(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool, pool.acquire():
        await pool.acquire(timeout=0.1)


@program
async def psycopg_pool_timeout(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool, pool.connection():
        await pool.getconn(timeout=0.1)


@program
async def psycopg_pool_incomplete(dsn):
    pool = psycopg_pool.AsyncConnectionPool("host=127.0.0.1 port=1 connect_timeout=1", min_size=1, open=False)
    await pool.open()
    try:
        await pool.wait(timeout=0.2)
    finally:
        await pool.close()


@program
async def psycopg_pool_cannot_connect(dsn):
    pool = psycopg_pool.AsyncConnectionPool("host=127.0.0.1 port=1", min_size=1, open=False, name="shop")
    with Heard() as heard:
        await pool.open()
        await until(lambda: heard.lines)
        await pool.close()
    return heard.first("error connecting")


@program
async def sqlalchemy_timeout(dsn):
    engine = create_async_engine(theirs(dsn), pool_size=1, max_overflow=0, pool_timeout=0.1)
    async with engine.connect():
        try:
            await engine.connect()
        finally:
            await engine.dispose()


@program
async def server_full(dsn):
    async with full(dsn):
        await asyncpg.connect(dsn)


# ---- loops ----


@program
def asyncpg_other_loop(dsn):
    asyncio.set_event_loop(asyncio.new_event_loop())  # as at the start of a program, before Python 3.14
    pool = asyncpg.create_pool(dsn, min_size=1)

    async def answer():
        return await (await pool).fetchval("SELECT 42")

    return asyncio.run(answer()), asyncio.run(answer())


@program
def asyncpg_other_loop_busy(dsn):
    async def make():
        return await asyncpg.create_pool(dsn, min_size=1, max_size=1)

    pool = asyncio.run(make())

    async def use():
        await pool.fetchval("SELECT 1")

    asyncio.run(use())


@program
def asyncpg_loop_closed(dsn):
    async def make():
        return await asyncpg.connect(dsn)

    connection = asyncio.run(make())
    asyncio.run(connection.close())


@program
def asyncpg_no_current_loop(dsn):
    asyncio.set_event_loop(None)  # as it is in a thread, or after asyncio.run()
    asyncpg.create_pool(dsn)


@program
def sqlalchemy_other_loop(dsn):
    engine = create_async_engine(theirs(dsn))

    async def use():
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    asyncio.run(use())
    asyncio.run(use())


@program
def ours_wrong_loop(dsn):
    pool = create_pool(dsn, min_size=0, name="shop")

    async def lend():
        return await (await pool).acquire()

    async def use(connection):
        try:
            await connection.fetchval("SELECT 1")
        finally:
            await pool.release(connection)

    with asyncio.Runner() as first:
        connection = first.run(lend())
        try:
            asyncio.run(use(connection))
        finally:
            pool.terminate()


@program
def ours_wrong_loop_psycopg(dsn):
    pool = AsyncConnectionPool(dsn, min_size=0, max_size=1, open=False, name="shop")

    async def lend():
        await pool.open()
        return await pool.getconn()

    with asyncio.Runner() as first:
        connection = first.run(lend())
        try:
            asyncio.run(connection.execute("SELECT 1"))
        finally:
            first.run(pool.putconn(connection))
            first.run(pool.close())


@program
def ours_no_loop(dsn):
    pool = create_pool(dsn, min_size=0, name="shop")
    opening = pool._open()
    try:
        opening.send(None)
        pool.acquire().__await__().send(None)
    finally:
        opening.close()


@program
def psycopg_pool_no_loop(dsn):
    psycopg_pool.AsyncConnectionPool(dsn, open=True)


# ---- the pool is not open ----


@program
async def ours_not_open(dsn):
    await create_pool(dsn).acquire()


@program
async def ours_closed(dsn):
    async with create_pool(dsn, min_size=0) as pool:
        pass
    await pool.acquire()


@program
async def ours_closing(dsn):
    async with create_pool(dsn, min_size=0, max_size=1) as pool, pool.acquire():
        closing = asyncio.ensure_future(pool.close())
        await until(pool.is_closing)
        try:
            await pool.acquire()
        finally:
            closing.cancel()


@program
async def ours_not_open_psycopg(dsn):
    await AsyncConnectionPool(dsn, open=False, name="shop").getconn()


@program
async def ours_closed_psycopg(dsn):
    async with AsyncConnectionPool(dsn, min_size=0, max_size=1, name="shop") as pool:
        pass
    await pool.getconn()


@program
async def ours_opened_again(dsn):
    pool = AsyncConnectionPool(dsn, min_size=0, max_size=1, name="shop")
    async with pool:
        pass
    await pool.open()


@program
async def asyncpg_closing(dsn):
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=1)
    connection = await pool.acquire()
    closing = asyncio.ensure_future(pool.close())
    await until(lambda: pool._closing)
    try:
        await pool.acquire()
    finally:
        await pool.release(connection)
        await closing


@program
async def asyncpg_not_open(dsn):
    await asyncpg.create_pool(dsn).fetchval("SELECT 1")


# ---- using a connection ----


@program
async def ours_released(dsn):
    async with create_pool(dsn, min_size=0) as pool:
        async with pool.acquire() as connection:
            pass
        await connection.fetchval("SELECT 1")


@program
async def ours_returned(dsn):
    async with AsyncConnectionPool(dsn, min_size=0, max_size=1, name="shop") as pool:
        async with pool.connection() as connection:
            pass
        await connection.execute("SELECT 1")


@program
async def ours_returned_in_use(dsn):
    async with AsyncConnectionPool(dsn, min_size=0, max_size=1) as pool:
        connection = await pool.getconn()
        query = asyncio.ensure_future(connection.execute("SELECT pg_sleep(60)"))
        await until(lambda: connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE)
        await pool.putconn(connection)
        await query


@program
async def ours_busy(dsn):
    async with create_pool(dsn, min_size=0) as pool:
        connection = await pool.acquire()
        query = asyncio.ensure_future(connection.execute("SELECT pg_sleep(60)"))
        await asyncio.sleep(0.1)
        try:
            await pool.release(connection)
        finally:
            await asyncio.gather(query, return_exceptions=True)


@program
async def ours_not_a_member(dsn):
    async with create_pool(dsn, min_size=0) as pool, create_pool(dsn, min_size=0) as other, other.acquire() as theirs:
        await pool.release(theirs)


@program
async def ours_entered_twice(dsn):
    async with AsyncConnectionPool(dsn, min_size=0, max_size=1) as pool:
        lease = pool.connection()
        async with lease:
            pass
        async with lease:
            pass


@program
async def asyncpg_busy(dsn):
    connection = await asyncpg.connect(dsn)
    try:
        await asyncio.gather(connection.fetchval("SELECT pg_sleep(0.2)"), connection.fetchval("SELECT 1"))
    finally:
        await asyncio.sleep(0.3)
        await connection.close()


@program
async def asyncpg_closed_in_operation(dsn):
    connection = await asyncpg.connect(dsn)
    query = asyncio.ensure_future(connection.fetchval("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.1)
    connection._transport.abort()
    await query


@program
async def asyncpg_connection_closed(dsn):
    connection = await asyncpg.connect(dsn)
    await connection.close()
    await connection.fetchval("SELECT 1")


@program
async def asyncpg_released(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            pass
        await connection.fetchval("SELECT 1")


@program
async def asyncpg_statement_gone(dsn):
    connection = await asyncpg.connect(dsn)
    try:
        await connection.fetchval("SELECT 1")
        await connection.execute("DEALLOCATE ALL")
        await connection.fetchval("SELECT 1")
    finally:
        await connection.close()


@program
async def psycopg_killed(dsn):
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await kill(dsn, connection.info.backend_pid)
        await connection.execute("SELECT 1")


@program
async def psycopg_closed(dsn):
    connection = await psycopg.AsyncConnection.connect(dsn)
    await connection.close()
    await connection.execute("SELECT 1")


@program
async def server_killed(dsn):
    connection = await asyncpg.connect(dsn)
    query = asyncio.ensure_future(connection.fetchval("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.1)
    await kill(dsn, connection.get_server_pid())
    await query


@program
async def server_read_only(dsn):
    async with create_pool(dsn, min_size=0, server_settings={"default_transaction_read_only": "on"}) as pool:
        await pool.execute("CREATE TABLE t ()")


@program
async def server_aborted(dsn):
    async with create_pool(dsn, min_size=0) as pool, pool.acquire() as connection, connection.transaction():
        with suppress(asyncpg.PostgresError):
            await connection.execute("SELECT 1 / 0")
        await connection.execute("SELECT 1")


@program
async def server_statement_timeout(dsn):
    async with create_pool(dsn, min_size=0, server_settings={"statement_timeout": "50"}) as pool:
        await pool.execute("SELECT pg_sleep(60)")


# ---- SQLAlchemy ----


class Base(DeclarativeBase):
    pass


class Shop(Base):
    __tablename__ = "shops"
    id: Mapped[int] = mapped_column(primary_key=True)


@program
async def sqlalchemy_greenlet(dsn):
    engine = create_async_engine(theirs(dsn))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    try:
        async with AsyncSession(engine) as session:
            session.add(shop := Shop())
            await session.commit()
            return shop.id
    finally:
        await engine.dispose()


@program
async def sqlalchemy_session_shared(dsn):
    engine = create_async_engine(theirs(dsn))
    try:
        async with AsyncSession(engine) as session:
            await asyncio.gather(session.execute(text("SELECT 1")), session.execute(text("SELECT 2")))
    finally:
        await engine.dispose()


@program
async def sqlalchemy_collected(dsn):
    engine = create_async_engine(theirs(dsn))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        connection = await engine.connect()
        await connection.execute(text("SELECT 1"))
        del connection
        gc.collect()
        await asyncio.sleep(0.1)
    await engine.dispose()
    return next(f"{type(one.message).__name__}: {one.message}" for one in caught if "garbage" in str(one.message))


@program
def ours_wrong_engine(dsn):
    create_engine("postgresql+psycopg://", poolclass=LoopAwareQueuePool)


# ---- making a pool ----


@program
def ours_unknown_argument(dsn):
    create_pool(dsn, max_sise=5)


@program
def ours_sizes(dsn):
    create_pool(dsn, min_size=10, max_size=5)


@program
def ours_pickled(dsn):
    import pickle

    pickle.dumps(create_pool(dsn, name="shop"))


# ---- what is logged ----


@program
async def ours_overdue(dsn):
    with Heard() as heard:
        async with create_pool(dsn, min_size=0, leak_threshold=0.05, name="shop") as pool, pool.acquire():
            await until(lambda: heard.lines)
    return heard.first("still held")


@program
async def ours_dropped(dsn):
    async def forget(pool):
        await pool.acquire()

    with Heard() as heard:
        async with create_pool(dsn, min_size=0, max_size=1, name="shop") as pool:
            await asyncio.create_task(forget(pool), name="checkout")
            await pool.fetchval("SELECT 1", timeout=20)
    return heard.first("dropped")


@program
async def ours_reset_refused(dsn):
    with Heard() as heard:
        async with create_pool(dsn, min_size=0, reset_query="RESET everything", name="shop") as pool:
            await pool.fetchval("SELECT 1")
            await until(lambda: heard.lines)
    return heard.first("its reset failed")


@program
async def ours_close_timeout(dsn):
    pool = await create_pool(dsn, min_size=0, close_timeout=0.1, name="shop")
    with Heard() as heard:
        connection = await pool.acquire()
        await pool.close()
        del connection
    return heard.first("close_timeout")


@program
def ours_unclosed(dsn):
    async def forget():
        pool = create_pool(dsn, min_size=0, name="shop")
        await (await pool).fetchval("SELECT 1")
        del pool
        await asyncio.sleep(0)
        gc.collect()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(forget())
        gc.collect()
    return next(f"{type(one.message).__name__}: {one.message}" for one in caught if "unclosed pool" in str(one.message))


@program
def ours_not_swapped(dsn):
    class Derived(psycopg_pool.AsyncConnectionPool):
        pass

    sys.modules[__name__].derived = Derived
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loopaware_pool.install()
        loopaware_pool.uninstall()
    return next(f"NotSwapped: {one.message}" for one in caught if "still used" in str(one.message))


# ---- helpers ----


def theirs(dsn):
    return dsn.replace("postgresql:", "postgresql+asyncpg:")


def loopaware_engine(dsn, **options):
    from loopaware_pool.sqlalchemy import create_async_engine as create

    return create(theirs(dsn), **options)


async def kill(dsn, pid):
    other = await asyncpg.connect(dsn)
    await other.execute("SELECT pg_terminate_backend($1, 5000)", pid)
    await other.close()


class full:
    """A server that has no room: all its connections are taken."""

    def __init__(self, dsn):
        self.dsn = dsn
        self.taken = []

    async def __aenter__(self):
        while len(self.taken) < MAX_CONNECTIONS:
            try:
                self.taken.append(await asyncpg.connect(self.dsn))
            except asyncpg.TooManyConnectionsError:  # a session of the last program has yet to end
                await asyncio.sleep(0.01)

    async def __aexit__(self, *_):
        for connection in self.taken:
            await connection.close()


def main(names):
    logging.getLogger().addHandler(logging.NullHandler())
    messages = {}
    with EmbeddedServer(settings={"max_connections": MAX_CONNECTIONS, "superuser_reserved_connections": 0}) as server:
        for name in names or PROGRAMS:
            began = time.monotonic()
            messages[name] = message_of(PROGRAMS[name], server.dsn)
            sys.stderr.write(f"{name}: {time.monotonic() - began:.1f} s\n")
    sys.stdout.write(json.dumps(messages, indent=1, default=repr))
    sys.stdout.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    threading.excepthook = lambda _: None
    main(sys.argv[1:])
