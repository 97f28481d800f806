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


def fail(pool: psycopg_pool.AsyncConnectionPool[Any]) -> None:
    assert_type(pool.name, str)


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

null = AsyncNullConnectionPool("postgresql://localhost/app", max_size=2, open=False)
assert_type(null, AsyncNullConnectionPool[AsyncConnection[TupleRow]])
as_their_null: psycopg_pool.AsyncNullConnectionPool[AsyncConnection[TupleRow]] = null

own_null = AsyncNullConnectionPool(
    address,
    connection_class=OurConnection,
    kwargs={"autocommit": True, "row_factory": dict_row},
    min_size=0,
    max_size=5,
    open=False,
    configure=configure,
    check=AsyncNullConnectionPool.check_connection,
    reset=configure,
    name="orders",
    close_returns=True,
    timeout=2.5,
    max_waiting=100,
    max_lifetime=3600,
    max_idle=60,
    reconnect_timeout=10,
    reconnect_failed=fail,
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
assert_type(own_null, AsyncNullConnectionPool[OurConnection])


class OurNullPool(AsyncNullConnectionPool[OurConnection]):
    """A subclass may add to it."""


assert_type(OurNullPool(connection_class=OurConnection, max_size=1, open=False).max_size, int)

# Wrong ones are flagged: an ignored line that has no error is an error itself.
AsyncConnectionPool(open=False, max_lifetime="3")  # type: ignore[arg-type]
AsyncConnectionPool(open=False, session_reset="bogus")  # type: ignore[arg-type]
AsyncConnectionPool(open=False, max_lifetme=3)  # type: ignore[call-arg]
AsyncNullConnectionPool(open=False, max_lifetime="3")  # type: ignore[arg-type]
AsyncNullConnectionPool(open=False, session_reset="bogus")  # type: ignore[arg-type]
AsyncNullConnectionPool(open=False, idle_order="random")  # type: ignore[arg-type]
AsyncNullConnectionPool(open=False, min_size="0")  # type: ignore[arg-type]
AsyncNullConnectionPool(open=False, name=7)  # type: ignore[arg-type]
AsyncNullConnectionPool(open=False, on_event=3)  # type: ignore[arg-type]
AsyncNullConnectionPool(open=False, configure=listen)  # type: ignore[arg-type]
AsyncNullConnectionPool(open=False, connection_class=int)  # type: ignore[type-var]
AsyncNullConnectionPool(open=False, max_lifetme=3)  # type: ignore[call-arg]
OurNullPool(open=False, max_waiting="3")  # type: ignore[arg-type]


# ---- assigning ----

for pool in (own, own_null):
    pool.name, pool.conninfo, pool.kwargs, pool.connection_class = "orders", address, None, OurConnection
    pool.timeout, pool.max_waiting, pool.max_lifetime, pool.max_idle, pool.reconnect_timeout = 1.5, 3, 60, 0.5, 10
own.timeout = "3"  # type: ignore[assignment]
own.max_idle = "3"  # type: ignore[assignment]
own.max_waiting = 1.5  # refused when it is done: infinity is allowed
own.min_size = 3  # type: ignore[misc]
own_null.max_size = 3  # type: ignore[misc]
assert_type(own.timeout, float)
assert_type(own.max_idle, float)


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
