"""What a user may pick: pools of both drivers, and connections without a pool; each behind the same two calls."""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import psycopg_pool

import loopaware_pool
import loopaware_pool.psycopg
from loopaware_pool.asyncpg.internals import Internals
from loopaware_pool.cli.demo.scenes import ArticleDesign

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from loopaware_pool.asyncpg import SessionReset

__all__ = [
    "ARTICLE",
    "ASYNCPG",
    "ASYNCPG_NO_RESET",
    "BARE_ASYNCPG",
    "BARE_ASYNCPG_64_KIB",
    "BARE_PSYCOPG",
    "CONNECTIONS",
    "CONTENDERS",
    "OURS",
    "OURS_AWAITED",
    "OURS_CONFIRMED",
    "OURS_NEVER",
    "OURS_PSYCOPG",
    "OURS_PSYCOPG_SHEDDING",
    "OURS_SHEDDING",
    "OURS_SQLALCHEMY",
    "OURS_SQLALCHEMY_PSYCOPG",
    "OURS_WHEN_DIRTY",
    "PSQLPY",
    "PSYCOPG_POOL",
    "SQLALCHEMY",
    "SQLALCHEMY_PSYCOPG",
    "Client",
    "Contender",
    "Setting",
]

CONNECTIONS = 10
SHED_AFTER_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Client:
    """
    A contender, open.

    Attributes:
        lease: Makes a context manager that takes a connection and gives it back.
        fetch: Takes a connection, asks a query, and gives it back; returns the value.
        pool: The pool itself; None where there is none.
    """

    lease: Callable[[], AbstractAsyncContextManager[Any]]
    fetch: Callable[[str], Awaitable[Any]]
    pool: Any

    async def settle(self) -> None:
        """Wait for what a release of ours puts off; those of others have done everything when they return."""
        if hasattr(self.pool, "settled"):
            await self.pool.settled()


@dataclass(frozen=True, slots=True)
class Setting:
    """
    What contenders are opened with.

    Attributes:
        dsn: The server.
        min_size: Connections open from the start.
        max_size: Most connections.
        connect_seconds: How much longer a connect is to take.
        ssl: What asyncpg takes for TLS; None to leave it to asyncpg.
    """

    dsn: str
    min_size: int = CONNECTIONS
    max_size: int = CONNECTIONS
    connect_seconds: float = 0.0
    ssl: Any = None

    @property
    def sizes(self) -> dict[str, Any]:
        """For a pool."""
        return {"min_size": self.min_size, "max_size": self.max_size}


@dataclass(frozen=True, slots=True)
class Contender:
    """
    Something to be measured.

    Attributes:
        name: For tables and for `--contender`.
        open: Opens it.
        max_tasks: More tasks than so many cannot use it at once; None for no limit.
        needs: A package that must be installed; None for none but ours.
    """

    name: str
    open: Callable[[Setting, str], AbstractAsyncContextManager[Client]]
    max_tasks: int | None = None
    needs: str | None = None

    @property
    def is_installed(self) -> bool:
        """Whether it can be opened here."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


# ---- asyncpg ----


class _NoReset(asyncpg.Connection):  # type: ignore[misc]  # the driver is not typed
    """The documented way to have asyncpg's pool reset nothing."""

    def get_reset_query(self) -> str:
        return ""


def _of_asyncpg(
    create_pool: Callable[..., Any], **options: Any
) -> Callable[[Setting, str], AbstractAsyncContextManager[Client]]:
    @asynccontextmanager
    async def open_pool(setting: Setting, name: str) -> AsyncIterator[Client]:
        arguments = _asyncpg_arguments(setting, name) | setting.sizes | options
        if setting.connect_seconds:
            arguments["connect"] = _delayed(asyncpg.connect, setting.connect_seconds)
        async with create_pool(setting.dsn, **arguments) as pool:

            async def fetch(query: str) -> Any:
                async with pool.acquire() as connection:
                    return await connection.fetchval(query)

            yield Client(pool.acquire, fetch, pool)

    return open_pool


def _ours(session_reset: SessionReset, **options: Any) -> Callable[[Setting, str], AbstractAsyncContextManager[Client]]:
    return _of_asyncpg(loopaware_pool.create_pool, session_reset=session_reset, **options)


def _asyncpg_arguments(setting: Setting, name: str) -> dict[str, Any]:
    return {"server_settings": {"application_name": name}} | ({} if setting.ssl is None else {"ssl": setting.ssl})


def _delayed(connect: Callable[..., Awaitable[Any]], seconds: float) -> Callable[..., Awaitable[Any]]:
    async def connect_later(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(seconds)
        return await connect(*args, **kwargs)

    return connect_later


async def _asyncpg_connections(stack: AsyncExitStack, setting: Setting, name: str) -> list[Any]:
    """Open as many as a pool may have; *stack* closes them."""
    connections = []
    for _ in range(setting.max_size):
        connections.append(await asyncpg.connect(setting.dsn, **_asyncpg_arguments(setting, name)))
        stack.push_async_callback(connections[-1].close)
    return connections


def _bare_asyncpg(*, reads_less: bool = False) -> Callable[[Setting, str], AbstractAsyncContextManager[Client]]:
    """Make connections without a pool, which ask for as much at each read as asyncio's do, or ours."""

    @asynccontextmanager
    async def open_connections(setting: Setting, name: str) -> AsyncIterator[Client]:
        async with AsyncExitStack() as stack:
            free = await _asyncpg_connections(stack, setting, name)
            if reads_less:
                for connection in free:
                    Internals(connection).read_less_at_once()

            async def fetch(query: str) -> Any:
                connection = free.pop()
                value = await connection.fetchval(query)
                free.append(connection)
                return value

            yield Client(_lease_from(free), fetch, None)

    return open_connections


def _lease_from(free: list[Any]) -> Callable[[], AbstractAsyncContextManager[Any]]:
    @asynccontextmanager
    async def lease() -> AsyncIterator[Any]:
        connection = free.pop()
        yield connection
        free.append(connection)

    return lease


@asynccontextmanager
async def _article(setting: Setting, name: str) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        pool = ArticleDesign(await _asyncpg_connections(stack, setting, name))

        @asynccontextmanager
        async def lease() -> AsyncIterator[Any]:
            connection = await pool.acquire()
            try:
                yield connection
            finally:
                await pool.release(connection)

        async def fetch(query: str) -> Any:
            connection = await pool.acquire()
            try:
                return await connection.fetchval(query)
            finally:
                await pool.release(connection)

        yield Client(lease, fetch, pool)


def _sqlalchemy(driver: str, *, is_ours: bool = False) -> Callable[[Setting, str], AbstractAsyncContextManager[Client]]:
    @asynccontextmanager
    async def open_engine(setting: Setting, name: str) -> AsyncIterator[Client]:
        from sqlalchemy import text
        from sqlalchemy.ext import asyncio as stock

        from loopaware_pool import sqlalchemy as ours

        engine = (ours if is_ours else stock).create_async_engine(
            f"postgresql+{driver}://{setting.dsn.partition('://')[2]}",
            pool_size=setting.max_size,
            max_overflow=0,
            pool_timeout=600,
            connect_args=_asyncpg_arguments(setting, name) if driver == "asyncpg" else {"application_name": name},
        )

        async def fetch(query: str) -> Any:
            async with engine.connect() as connection:
                return await connection.scalar(text(query))

        try:
            async with AsyncExitStack() as stack:
                for _ in range(setting.min_size):
                    await stack.enter_async_context(engine.connect())
            yield Client(engine.connect, fetch, engine)
        finally:
            await engine.dispose()

    return open_engine


@asynccontextmanager
async def _psqlpy(setting: Setting, name: str) -> AsyncIterator[Client]:
    """A driver in Rust with a pool of its own, which opens connections as they are needed, and resets nothing."""
    import psqlpy

    pool = psqlpy.ConnectionPool(setting.dsn, max_db_pool_size=setting.max_size, application_name=name)

    async def fetch(query: str) -> Any:
        async with pool.acquire() as connection:
            return await connection.fetch_val(query)

    try:
        yield Client(pool.acquire, fetch, pool)
    finally:
        pool.close()


# ---- psycopg, in autocommit mode: a transaction's two more round trips are no pool's business ----


def _of_psycopg(
    kind: type[psycopg_pool.AsyncConnectionPool], connection_class: type[psycopg.AsyncConnection], **more: Any
) -> Callable[[Setting, str], AbstractAsyncContextManager[Client]]:
    @asynccontextmanager
    async def open_pool(setting: Setting, name: str) -> AsyncIterator[Client]:
        options: dict[str, Any] = {
            "kwargs": {"autocommit": True, "application_name": name},
            "timeout": 600,
            "connection_class": _slow(connection_class, setting.connect_seconds),
            **more,
        }
        async with kind(setting.dsn, open=False, **setting.sizes, **options) as pool:
            await pool.wait()

            async def fetch(query: str) -> Any:
                async with pool.connection() as connection:
                    row = await (await connection.execute(query)).fetchone()
                    assert row is not None
                    return row[0]

            yield Client(pool.connection, fetch, pool)

    return open_pool


def _slow(connection_class: type[psycopg.AsyncConnection], seconds: float) -> type[psycopg.AsyncConnection]:
    if not seconds:
        return connection_class

    class Slow(connection_class):  # type: ignore[misc, valid-type]  # a class that is an argument
        @classmethod
        async def connect(cls, *args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(seconds)
            return await super().connect(*args, **kwargs)

    return Slow


@asynccontextmanager
async def _bare_psycopg(setting: Setting, name: str) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        free = []
        for _ in range(setting.max_size):
            connection = await psycopg.AsyncConnection.connect(setting.dsn, autocommit=True, application_name=name)
            stack.push_async_callback(connection.close)
            free.append(connection)

        async def fetch(query: str) -> Any:
            connection = free.pop()
            row = await (await connection.execute(query)).fetchone()
            assert row is not None
            free.append(connection)
            return row[0]

        yield Client(_lease_from(free), fetch, None)


ASYNCPG = Contender("asyncpg", _of_asyncpg(asyncpg.create_pool))
ASYNCPG_NO_RESET = Contender("asyncpg, no reset", _of_asyncpg(asyncpg.create_pool, connection_class=_NoReset))
SQLALCHEMY = Contender("SQLAlchemy", _sqlalchemy("asyncpg"), needs="sqlalchemy")
SQLALCHEMY_PSYCOPG = Contender("SQLAlchemy, psycopg", _sqlalchemy("psycopg"), needs="sqlalchemy")
OURS_SQLALCHEMY = Contender("ours for SQLAlchemy", _sqlalchemy("asyncpg", is_ours=True), needs="sqlalchemy")
OURS_SQLALCHEMY_PSYCOPG = Contender(
    "ours for SQLAlchemy, psycopg", _sqlalchemy("psycopg", is_ours=True), needs="sqlalchemy"
)
# With more tasks it deadlocks: `acquire` waits for a connection while it holds the lock that `release` needs.
ARTICLE = Contender("the article's", _article, max_tasks=CONNECTIONS)
BARE_ASYNCPG = Contender("bare asyncpg", _bare_asyncpg(), max_tasks=CONNECTIONS)
BARE_ASYNCPG_64_KIB = Contender("bare asyncpg, 64 KiB", _bare_asyncpg(reads_less=True), max_tasks=CONNECTIONS)
PSQLPY = Contender("psqlpy", _psqlpy, needs="psqlpy")
OURS = Contender("ours", _ours("auto"))
OURS_SHEDDING = Contender("ours, shed_after", _ours("auto", shed_after=SHED_AFTER_SECONDS))
OURS_CONFIRMED = Contender("ours, confirmed", _ours("confirmed"))
OURS_AWAITED = Contender("ours, awaited", _ours("awaited"))
OURS_WHEN_DIRTY = Contender("ours, when_dirty", _ours("when_dirty"))
OURS_NEVER = Contender("ours, never", _ours("never"))
PSYCOPG_POOL = Contender("psycopg_pool", _of_psycopg(psycopg_pool.AsyncConnectionPool, psycopg.AsyncConnection))
BARE_PSYCOPG = Contender("bare psycopg", _bare_psycopg, max_tasks=CONNECTIONS)
OURS_PSYCOPG = Contender(
    "ours for psycopg",
    _of_psycopg(loopaware_pool.psycopg.AsyncConnectionPool, loopaware_pool.psycopg.LoopAwareConnection),
)
OURS_PSYCOPG_SHEDDING = Contender(
    "ours for psycopg, shed_after",
    _of_psycopg(
        loopaware_pool.psycopg.AsyncConnectionPool,
        loopaware_pool.psycopg.LoopAwareConnection,
        shed_after=SHED_AFTER_SECONDS,
    ),
)
CONTENDERS = (
    ASYNCPG,
    ASYNCPG_NO_RESET,
    SQLALCHEMY,
    ARTICLE,
    BARE_ASYNCPG,
    BARE_ASYNCPG_64_KIB,
    PSQLPY,
    OURS,
    OURS_SHEDDING,
    OURS_CONFIRMED,
    OURS_AWAITED,
    OURS_WHEN_DIRTY,
    OURS_NEVER,
    PSYCOPG_POOL,
    BARE_PSYCOPG,
    OURS_PSYCOPG,
    OURS_PSYCOPG_SHEDDING,
    SQLALCHEMY_PSYCOPG,
    OURS_SQLALCHEMY,
    OURS_SQLALCHEMY_PSYCOPG,
)
