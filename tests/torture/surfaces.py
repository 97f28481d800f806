"""The pools that a storm can be let loose on, each behind the same few methods."""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import psycopg_pool

from loopaware_pool.asyncpg import create_pool
from loopaware_pool.psycopg import AsyncConnectionPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["SURFACES", "Surface"]

# Without, each connect begins by asking for TLS; an asyncpg that is cut there complains of a future nobody looked at.
_PLAIN = {"asyncpg": {"ssl": False}, "psycopg": {"sslmode": "disable"}}
_QUESTION = "SELECT {}::bigint, coalesce(current_setting('torture.owner', true), '')"


class Surface:
    """
    A kind of pool.

    Attributes:
        abilities: What it offers, see `history.write`.
        errors: What its callers may be told when connections are cut, or the pool is closed.
        division: What they are told when they divide by zero.
        is_ours: Whether it is this project's, whose inside can be looked at.
        needs: A package that must be installed; None for none but what the tests need.
        connects_once: Whether a caller is told when a connect fails; else another is tried until its time is up.
    """

    abilities: frozenset[str]
    needs: str | None = None
    connects_once = False
    errors: tuple[type[BaseException], ...] = (
        OSError,
        psycopg.Error,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,  # asked for something while it reads the server's farewell
    )
    division: tuple[type[Exception], ...] = (asyncpg.DivisionByZeroError, psycopg.errors.DivisionByZero)
    is_ours = True
    dialect = "asyncpg"

    @property
    def is_installed(self) -> bool:
        """Whether a storm can be let loose on it here."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None

    def make(self, dsn: str, name: str, options: dict[str, Any]) -> Any:
        """Make a pool whose name is the application name of its sessions."""
        raise NotImplementedError

    async def open(self, pool: Any) -> None:
        """Open it, or introduce the running loop."""
        await pool

    def inside(self, pool: Any) -> Any:
        """What has the counts, of one of ours."""
        return pool

    async def acquire(self, pool: Any, timeout: float | None) -> Any:
        return await pool.acquire(timeout=timeout)

    async def release(self, pool: Any, connection: Any) -> None:
        await pool.release(connection)

    def lease(self, pool: Any, timeout: float | None) -> Any:
        """A context manager."""
        return pool.acquire(timeout=timeout)

    async def ask(self, connection: Any, number: int) -> tuple[int, str]:
        """Have the server repeat *number*, and say whose session it believes to be."""
        return tuple(await connection.fetchrow(_QUESTION.format("$1"), number))

    async def execute(self, connection: Any, query: str) -> None:
        await connection.execute(query)

    def transaction(self, connection: Any) -> Any:
        return connection.transaction()

    async def close_connection(self, connection: Any) -> None:
        """Close a connection that is lent."""
        await connection.close()

    async def close(self, pool: Any) -> None:
        await pool.close()

    def terminate(self, pool: Any) -> None:
        pool.terminate()

    async def expire(self, pool: Any) -> None:
        await pool.expire_connections()


class Asyncpg(Surface):
    """asyncpg's pool."""

    abilities = frozenset({"any", "close under way"})
    is_ours = False

    def make(self, dsn: str, name: str, options: dict[str, Any]) -> Any:
        sizes = {key: options[key] for key in ("min_size", "max_size")}
        return asyncpg.create_pool(dsn, **sizes, **_PLAIN["asyncpg"], server_settings={"application_name": name})


class OursForAsyncpg(Surface):
    """This project's pool of asyncpg connections."""

    abilities = frozenset({"any", "close under way", "ours"})

    def make(self, dsn: str, name: str, options: dict[str, Any]) -> Any:
        return create_pool(dsn, **options, **_PLAIN["asyncpg"], name=name, server_settings={"application_name": name})


class Psycopg(Surface):
    """psycopg_pool's pool."""

    abilities = frozenset({"any", "close under way"})
    is_ours = False
    dialect = "psycopg"
    kind: Any = psycopg_pool.AsyncConnectionPool

    def make(self, dsn: str, name: str, options: dict[str, Any]) -> Any:
        sizes = {key: options[key] for key in ("min_size", "max_size")}
        return self._make(dsn, name, sizes)

    def _make(self, dsn: str, name: str, options: dict[str, Any]) -> Any:
        kwargs = {"autocommit": True, "application_name": name} | _PLAIN["psycopg"]
        return self.kind(dsn, **options, name=name, open=False, kwargs=kwargs)

    async def open(self, pool: Any) -> None:
        await pool.open()

    async def acquire(self, pool: Any, timeout: float | None) -> Any:
        return await pool.getconn(timeout)

    async def release(self, pool: Any, connection: Any) -> None:
        await pool.putconn(connection)

    def lease(self, pool: Any, timeout: float | None) -> Any:
        return pool.connection(timeout)

    async def ask(self, connection: Any, number: int) -> tuple[int, str]:
        cursor = await connection.execute(_QUESTION.format("%s"), [number])
        return await cursor.fetchone()

    async def close(self, pool: Any) -> None:
        await pool.close()

    def terminate(self, pool: Any) -> None:
        """There is no such thing."""
        asyncio.get_running_loop().create_task(pool.close(timeout=0))

    async def expire(self, pool: Any) -> None:
        await pool.drain()


class OursForPsycopg(Psycopg):
    """This project's pool of psycopg connections."""

    abilities = frozenset({"any", "close under way", "ours", "psycopg"})
    is_ours = True
    kind = AsyncConnectionPool

    def make(self, dsn: str, name: str, options: dict[str, Any]) -> Any:
        return self._make(dsn, name, options | {"session_reset": "awaited", "discard_dead": "always"})


class Sqlalchemy(Surface):
    """
    SQLAlchemy's engine on its own pool.

    It begins a transaction with the first statement, so that each of the storm's has a savepoint of its own. An acquire
    takes no deadline: it has one from outside. An engine that is disposed of can be used again, so it is closed at rest
    only.
    """

    abilities = frozenset({"any"})
    is_ours = False
    needs = "sqlalchemy"
    connects_once = True

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect

    @property
    def errors(self) -> tuple[type[BaseException], ...]:  # type: ignore[override]
        from sqlalchemy.exc import SQLAlchemyError

        return (*Surface.errors, SQLAlchemyError)

    @property
    def division(self) -> tuple[type[Exception], ...]:  # type: ignore[override]
        from sqlalchemy.exc import DBAPIError

        return (DBAPIError,)

    def make(self, dsn: str, name: str, options: dict[str, Any]) -> Any:
        named: Any = {"application_name": name}
        if self.dialect == "asyncpg":
            named = {"server_settings": named}
        return self._create_engine(
            f"postgresql+{self.dialect}://{dsn.partition('://')[2]}",
            pool_size=options["max_size"],
            max_overflow=0,
            connect_args=_PLAIN[self.dialect] | named,
        )

    def _create_engine(self, url: str, **options: Any) -> Any:
        from sqlalchemy.ext.asyncio import create_async_engine

        return create_async_engine(url, **options)

    async def open(self, pool: Any) -> None:
        """It opens with its first connection."""

    async def acquire(self, pool: Any, timeout: float | None) -> Any:
        async with asyncio.timeout(timeout):
            return await pool.connect()

    async def release(self, pool: Any, connection: Any) -> None:
        await connection.close()

    @asynccontextmanager
    async def lease(self, pool: Any, timeout: float | None) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(timeout):
                connection = await stack.enter_async_context(pool.connect())
            yield connection

    async def ask(self, connection: Any, number: int) -> tuple[int, str]:
        from sqlalchemy import text

        result = await connection.execute(text(_QUESTION.replace("::", "\\:\\:").format(":number")), {"number": number})
        return tuple(result.one())

    async def execute(self, connection: Any, query: str) -> None:
        from sqlalchemy import text

        async with connection.begin_nested():
            await connection.execute(text(query))

    def transaction(self, connection: Any) -> Any:
        return connection.begin_nested()

    async def close(self, pool: Any) -> None:
        await pool.dispose()


class OursForSqlalchemy(Sqlalchemy):
    """SQLAlchemy's engine on this project's pool."""

    abilities = frozenset({"any", "ours"})
    is_ours = True

    def _create_engine(self, url: str, **options: Any) -> Any:
        from loopaware_pool.sqlalchemy import create_async_engine

        return create_async_engine(url, **options)

    def inside(self, pool: Any) -> Any:
        """Its pool, which another replaces when it is disposed of."""
        return pool.pool

    async def close_connection(self, connection: Any) -> None:
        await connection.invalidate()

    async def expire(self, pool: Any) -> None:
        """Dispose of it, while others use it."""
        await pool.dispose()


SURFACES: dict[str, Surface] = {
    "ours-asyncpg": OursForAsyncpg(),
    "ours-psycopg": OursForPsycopg(),
    "ours-sqlalchemy": OursForSqlalchemy("asyncpg"),
    "ours-sqlalchemy-psycopg": OursForSqlalchemy("psycopg"),
    "asyncpg": Asyncpg(),
    "psycopg_pool": Psycopg(),
    "sqlalchemy": Sqlalchemy("asyncpg"),
    "sqlalchemy-psycopg": Sqlalchemy("psycopg"),
}
