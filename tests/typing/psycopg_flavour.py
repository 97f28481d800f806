"""What a type checker sees of the drop-in for psycopg_pool's async pools."""

from typing import Any, assert_type

import psycopg
import psycopg_pool
from psycopg import AsyncConnection
from psycopg.rows import DictRow, TupleRow, dict_row

from loopaware_pool import errors
from loopaware_pool.psycopg import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    LoopAwareConnection,
    PoolClosed,
    PoolTimeout,
    TooManyRequests,
    WrongLoop,
)
from loopaware_pool.stats import ConnectionReport, PoolEvent, PoolStats


def listen(event: PoolEvent) -> None:
    assert_type(event.pool, str)


async def address() -> str:
    return "postgresql://localhost/app"


async def configure(connection: AsyncConnection[Any]) -> None:
    await connection.set_autocommit(True)


class OurConnection(LoopAwareConnection[DictRow]):
    """A class of one's own, with rows of one's own."""


# ---- making: psycopg_pool's arguments, and the extras ----

plain = AsyncConnectionPool("postgresql://localhost/app", open=False)
assert_type(plain, AsyncConnectionPool[AsyncConnection[TupleRow]])
as_theirs: psycopg_pool.AsyncConnectionPool[AsyncConnection[TupleRow]] = plain

own = AsyncConnectionPool(
    address,
    connection_class=OurConnection,
    kwargs={"autocommit": True, "row_factory": dict_row},
    min_size=1,
    max_size=5,
    open=False,
    configure=configure,
    check=AsyncConnectionPool.check_connection,
    reset=configure,
    name="orders",
    close_returns=True,
    timeout=2.5,
    max_waiting=100,
    max_lifetime=3600,
    max_idle=60,
    reconnect_timeout=10,
    num_workers=1,
    session_reset="awaited",
    idle_order="lifo",
    discard_dead="always",
    discard_expired="always",
    keepalive=30,
    max_connecting=4,
    shed_after=0.5,
    leak_threshold=60.0,
    fd_check=30,
    on_event=listen,
)
assert_type(own, AsyncConnectionPool[OurConnection])

null: psycopg_pool.AsyncNullConnectionPool[AsyncConnection[TupleRow]] = AsyncNullConnectionPool(max_size=2, open=False)


# ---- using ----


async def use() -> None:
    async with own as opened:
        assert_type(opened, AsyncConnectionPool[OurConnection])
    async with own.connection() as connection:
        assert_type(connection, OurConnection)
    async with own.connection(timeout=1) as connection:
        cursor = await connection.execute("SELECT 1 AS one")
        assert_type(await cursor.fetchone(), DictRow | None)
    lent = await plain.getconn(timeout=1.0)
    assert_type(lent, AsyncConnection[TupleRow])
    await plain.putconn(lent)
    await plain.open(wait=True, timeout=5)
    await plain.wait(timeout=5)
    await plain.resize(1, 10)
    await plain.check()
    await plain.drain()
    await plain.settled()
    plain.suspend()
    plain.resume()
    assert_type(plain.get_stats(), dict[str, int])
    assert_type(plain.pop_stats(), dict[str, int])
    assert_type(plain.stats(), PoolStats)
    assert_type(plain.fd_report(), list[ConnectionReport])
    assert_type(plain.name, str)
    assert_type(plain.min_size, int)
    assert_type(plain.max_size, int)
    assert_type(plain.closed, bool)
    await plain.close(timeout=1)


# ---- errors: ours, and at the same time psycopg_pool's ----

as_ours: type[errors.PoolError]
for as_ours in (PoolClosed, PoolTimeout, TooManyRequests, WrongLoop):
    assert as_ours is not None
their_closed: type[psycopg_pool.PoolClosed] = PoolClosed
their_timeout: type[psycopg_pool.PoolTimeout] = PoolTimeout
their_limit: type[psycopg_pool.TooManyRequests] = TooManyRequests
wrong_loop: type[psycopg.InterfaceError] = WrongLoop
