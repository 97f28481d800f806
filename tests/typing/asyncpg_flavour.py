"""What a type checker sees of the drop-in for asyncpg's pool."""

import asyncio
from typing import Any, assert_type

import loopaware_pool
from loopaware_pool import errors
from loopaware_pool._platform.sockets import SocketIdentity
from loopaware_pool.asyncpg import Pool, PoolClosed, PoolConnectionProxy, PoolTimeout, TooManyWaiting, create_pool
from loopaware_pool.stats import (
    ConnectFailed,
    ConnectionReport,
    Counters,
    LeaseDropped,
    LeaseInfo,
    LeaseOverdue,
    LeaseReturned,
    LoopStats,
    PoolEvent,
    PoolStats,
)


def listen(event: PoolEvent) -> None:
    assert_type(event.pool, str)
    if isinstance(event, ConnectFailed):
        assert_type(event.error, BaseException)
    elif isinstance(event, (LeaseOverdue, LeaseReturned, LeaseDropped)):
        assert_type(event.lease, LeaseInfo)
        assert_type(event.lease.stack, tuple[str, ...])


async def prepare(connection: PoolConnectionProxy) -> None:
    await connection.execute("SET search_path TO app")


# ---- making: asyncpg's arguments, and the extras ----

assert_type(create_pool("postgresql://localhost/app"), Pool)
assert_type(loopaware_pool.create_pool(), Pool)
assert_type(create_pool(min_size=1, max_size=5, init=prepare, host="localhost", statement_cache_size=0), Pool)

# With every extra; none of them is needed.
module_level = create_pool(
    "postgresql://localhost/app",
    name="orders",
    acquire_timeout=2.5,
    session_reset="pipelined",
    reset_query="RESET ALL",
    max_lifetime=3600,
    lifetime_jitter=0.2,
    keepalive=30,
    max_waiting=100,
    max_connecting=4,
    shed_after=0.5,
    leak_threshold=60.0,
    fd_check=30,
    close_timeout=10,
    on_event=listen,
)


# Wrong ones are flagged: an ignored line that has no error is an error itself.
create_pool(max_lifetime="3")  # type: ignore[arg-type]
create_pool(session_reset="bogus")  # type: ignore[arg-type]
create_pool(on_event=3)  # type: ignore[arg-type]
create_pool(name=7)  # type: ignore[arg-type]
create_pool(max_waiting=None)  # type: ignore[arg-type]
create_pool(fd_check="often")  # type: ignore[arg-type]
loopaware_pool.create_pool(close_timeout="soon")  # type: ignore[arg-type]


class OurPool(Pool):
    """A subclass may add to it, and is what it is after it was awaited or entered."""

    async def count(self, table: str) -> int:
        found: int = await self.fetchval(f"SELECT count(*) FROM {table}")
        return found


ours = OurPool(
    min_size=1,
    max_size=2,
    max_queries=50000,
    max_inactive_connection_lifetime=300,
    session_reset="never",
    on_event=lambda event: None,
)


OurPool(min_size=1, max_size=2, max_queries=1, max_inactive_connection_lifetime=0, max_lifetime="3")  # type: ignore[arg-type]
OurPool(min_size=1, max_size=2, max_queries=1, max_inactive_connection_lifetime=0, session_reset="x")  # type: ignore[arg-type]
OurPool(min_size=1, max_size=2, max_queries=1, max_inactive_connection_lifetime=0, on_event=3)  # type: ignore[arg-type]


# ---- lending ----


async def use_it(pool: Pool) -> None:
    async with pool.acquire() as connection:
        assert_type(connection, PoolConnectionProxy)
        async with connection.transaction():
            await connection.fetch("SELECT 1")

    connection = await pool.acquire(timeout=1)
    try:
        await connection.fetchrow("SELECT 1 AS one")
    finally:
        await pool.release(connection, timeout=1.5)


async def query_it(pool: Pool) -> Any:
    await pool.execute("DELETE FROM baskets", timeout=5)
    await pool.executemany("INSERT INTO baskets VALUES ($1)", [(1,), (2,)])
    rows = [row["id"] for row in await pool.fetch("SELECT id FROM baskets")]
    return rows, await pool.fetchrow("SELECT 1"), await pool.fetchval("SELECT 1")


async def tell_errors_apart(pool: Pool) -> None:
    try:
        await use_it(pool)
    except PoolTimeout as error:
        assert_type(error.timeout, float)
        assert_type(error.stats, PoolStats)
        assert_type(error.holders, tuple[LeaseInfo, ...])
        assert_type(error.held_by_this_task, tuple[LeaseInfo, ...])
    except TooManyWaiting as error:
        assert_type(error.max_waiting, int)
    except PoolClosed as error:
        assert_type(error.pool, str)
    except TimeoutError as error:
        assert_type(error, TimeoutError)

    try:
        await use_it(pool)
    except errors.PoolTimeout as error:
        assert_type(error.stats.summary(), str)
    except errors.PoolError as error:
        assert_type(error.pool, str)


# ---- living ----


async def open_and_close() -> None:
    async with create_pool() as entered:
        assert_type(entered, Pool)
    async with ours as ours_entered:
        assert_type(ours_entered, OurPool)
        assert_type(await ours_entered.count("baskets"), int)
    opened = await create_pool()
    assert_type(opened, Pool)
    assert_type(await opened.settled(), None)
    await opened.expire_connections()
    opened.set_connect_args("postgresql://other/app", ssl=True)
    opened.suspend()
    opened.resume()
    await opened.close()
    opened.terminate()


def look_at(pool: Pool) -> None:
    assert_type(pool.name, str)
    assert_type(pool.is_closing(), bool)
    sizes = (pool.get_size(), pool.get_idle_size(), pool.get_init_size(), pool.get_min_size(), pool.get_max_size())
    assert_type(sizes, tuple[int, int, int, int, int])

    stats = pool.stats()
    assert_type(stats, PoolStats)
    assert_type(stats.waiting, int)
    assert_type(stats.loops, tuple[LoopStats, ...])
    assert_type(stats.loops[0].counters, Counters)
    assert_type(stats.ended.acquired, int)
    assert_type(stats.ended.waited_seconds, float)

    for row in pool.fd_report():
        assert_type(row, ConnectionReport)
        assert_type(row.identity, SocketIdentity | None)
        assert_type(row.registered, bool | None)
        assert_type(row.lease, LeaseInfo | None)


asyncio.run(open_and_close())
look_at(module_level)
