"""
What a traced program does with a pool: the same on the driver's own pool and on ours.

Nothing here imports a driver before it is asked to, so that a tracer can come first.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
from contextlib import suppress

__all__ = ["FLAVOURS", "drop", "import_pool", "make_pool", "work"]

WAIT_SECONDS = 0.5  # a connection is opened within it
# The modules that a program imports for each kind of pool: the driver's own, and ours.
_MODULES = {
    "asyncpg": ("asyncpg", "loopaware_pool.asyncpg"),
    "psycopg": ("psycopg_pool", "loopaware_pool.psycopg"),
    "sqlalchemy+asyncpg": ("sqlalchemy.ext.asyncio", "loopaware_pool.sqlalchemy"),
    "sqlalchemy+psycopg": ("sqlalchemy.ext.asyncio", "loopaware_pool.sqlalchemy"),
}
FLAVOURS = tuple(_MODULES)


def import_pool(flavour, *, ours):
    """Import the driver, and the module that the pool is made with; return the module."""
    importlib.import_module(flavour.partition("+")[2] or flavour)
    return importlib.import_module(_MODULES[flavour][ours])


def make_pool(flavour, dsn, *, ours, **options):
    """A pool, or an engine, of one connection, that is not open yet."""
    module = import_pool(flavour, ours=ours)
    if flavour == "asyncpg":
        return module.create_pool(dsn, min_size=1, max_size=1, **options)
    if flavour == "psycopg":
        return module.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False)
    url = dsn.replace("postgresql://", f"postgresql+{flavour.partition('+')[2]}://")
    return module.create_async_engine(url, pool_size=1, max_overflow=0)


async def work(flavour, pool, request):
    """
    Open the pool, use it inside `request()`, and close it.

    Args:
        flavour: One of `FLAVOURS`.
        pool: What `make_pool` has made.
        request: Makes a context manager, inside which all spans are looked for.
    """
    await _WORK[flavour.partition("+")[0]](pool, request)


async def _with_asyncpg(pool, request):
    async with pool:
        with request():
            async with pool.acquire() as connection:
                await _ask_asyncpg(connection)
            await pool.execute("SELECT 'execute by the pool'")
            await pool.executemany("SELECT $1::int", [(1,), (2,)])
            await pool.fetch("SELECT 'fetch by the pool'")
            await pool.fetchrow("SELECT 'fetchrow by the pool'")
            await pool.fetchval("SELECT 'fetchval by the pool'")
            # A second lease of the same connection.
            async with pool.acquire() as connection:
                await connection.fetchval("SELECT 'once more'")


async def _ask_asyncpg(connection):
    await connection.execute("SELECT 'execute'")
    await connection.execute("CREATE TEMPORARY TABLE t (i int)")
    await connection.executemany("INSERT INTO t VALUES ($1)", [(1,), (2,)])
    await connection.copy_records_to_table("t", records=[(3,)])
    await connection.fetch("SELECT i FROM t WHERE i > $1", 1)
    await connection.fetchrow("SELECT 'fetchrow'")
    await connection.fetchval("SELECT 'fetchval'")
    statement = await connection.prepare("SELECT $1::int")
    await statement.fetch(1)
    await statement.fetchval(2)
    async with connection.transaction():
        await connection.execute("SELECT 'in a transaction'")
        async for _ in connection.cursor("SELECT i FROM t"):
            pass
        cursor = await connection.cursor("SELECT i + 1 FROM t")
        await cursor.forward(1)
        await cursor.fetch(1)
        await cursor.fetchrow()
    with suppress(Exception):
        await connection.execute("SELECT 1 / 0")
    with suppress(Exception):
        await connection.fetch("SELEC 1")
    with suppress(Exception):
        async with connection.transaction():
            await connection.fetchval("SELECT $1::int / 0", 1)


async def _with_psycopg(pool, request):
    async with pool:
        await pool.wait()
        with request():
            async with pool.connection() as connection:
                await _ask_psycopg(connection)
            with suppress(Exception):
                async with pool.connection() as connection:
                    await connection.execute("SELECT 1 / 0")
            # A second lease of the same connection, taken in the other way.
            connection = await pool.getconn()
            await connection.execute("SELECT 'once more'")
            await connection.commit()
            await pool.putconn(connection)


async def _ask_psycopg(connection):
    from psycopg import rows, sql

    await connection.execute("SELECT 'execute'")
    await connection.execute("CREATE TEMPORARY TABLE t (i int)")
    async with connection.cursor() as cursor:
        await cursor.execute(sql.SQL("SELECT {}").format(1))
        await cursor.fetchone()
        await cursor.executemany("INSERT INTO t VALUES (%s)", [(1,), (2,)])
        async with cursor.copy("COPY t FROM STDIN") as copy:
            await copy.write_row((3,))
    async with connection.cursor(row_factory=rows.dict_row) as cursor:
        await cursor.execute("SELECT i FROM t WHERE i > %s", [1])
        await cursor.fetchall()
    async with connection.transaction():
        await connection.execute("SELECT 'in a transaction'")
        async with connection.cursor("named") as cursor:
            await cursor.execute("SELECT i FROM t")
            await cursor.fetchmany(2)
    async with connection.cursor() as cursor:
        async for _ in cursor.stream("SELECT i + 1 FROM t"):
            pass
    await connection.commit()
    with suppress(Exception):
        async with connection.transaction():
            await connection.execute("SELEC 1")
    async with connection.pipeline():
        await connection.execute("SELECT 'in a pipeline'")


async def _with_sqlalchemy(engine, request):
    from sqlalchemy import text

    try:
        async with engine.connect() as connection:  # what SQLAlchemy asks a new server is no part of the request
            await connection.execute(text("SELECT 'first'"))
        with request():
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 'execute'"))
                await connection.execute(text("CREATE TEMPORARY TABLE t (i int)"))
                await connection.execute(text("INSERT INTO t VALUES (:i)"), [{"i": 1}, {"i": 2}])
                rows = await connection.stream(text("SELECT i FROM t"))
                await rows.all()
                await connection.commit()
            async with engine.begin() as connection:
                await connection.execute(text("SELECT 'in a transaction'"))
                async with connection.begin_nested():
                    await connection.execute(text("SELECT 'in a savepoint'"))
            with suppress(Exception):
                async with engine.connect() as connection:
                    await connection.execute(text("SELECT 1 / 0"))
    finally:
        await engine.dispose()


_WORK = {"asyncpg": _with_asyncpg, "psycopg": _with_psycopg, "sqlalchemy": _with_sqlalchemy}


async def drop(flavour, pool, request):
    """
    Drop a lease of a pool of ours, first all of it but what still uses the connection, then that as well.

    Returns:
        Whether the connection was taken away while it was in use, and when it was found dropped, in words.
    """
    found = "never"
    async with pool:
        with request():
            took = await _drop_in_two_steps(flavour, pool)
            if not took and await _is_lent_anew(flavour, pool):
                found = "in the request"
        if found == "never" and not took and await _is_lent_anew(flavour, pool):
            found = "after the request"
    return {"taken away": took, "found": found}


async def _drop_in_two_steps(flavour, pool):
    """A function of its own: an agent that has read its local variables keeps them until it returns."""
    rest = await _drop_all_but_the_rest(flavour, pool)
    took = await _is_lent_anew(flavour, pool)
    await _go_on(flavour, rest)
    return took


async def _drop_all_but_the_rest(flavour, pool):
    if flavour == "asyncpg":
        connection = await pool.acquire()
        await connection.fetchval("SELECT 1")
        return await connection.prepare("SELECT 1")
    connection = await pool.getconn()
    await connection.execute("SELECT 1")
    return connection.cursor()


async def _go_on(flavour, rest):
    if flavour == "asyncpg":
        assert await rest.fetchval() == 1
    else:
        await rest.execute("SELECT 1")
        assert await rest.fetchone() == (1,)


async def _is_lent_anew(flavour, pool):
    """Whether the pool, which has one connection at most, serves another caller: it looks for dropped leases then."""
    gc.collect()
    await asyncio.sleep(0)
    try:
        async with pool.acquire(timeout=WAIT_SECONDS) if flavour == "asyncpg" else pool.connection(WAIT_SECONDS):
            return True
    except TimeoutError:
        return False
