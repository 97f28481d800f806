"""Both flavours' pools by the same few names, for tests of what they have in common."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg

import psycopg_pools
import running
from loopaware_pool.psycopg import AsyncConnectionPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["DRIVER_ERRORS", "Client", "asyncpg_flavour", "both", "psycopg_flavour", "sqlstate_of"]

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, psycopg.Error, OSError)


@dataclass(frozen=True)
class Client:
    """
    An open pool.

    Attributes:
        pool: The pool.
        lend: Lends a connection; takes `timeout`.
        ask: Called with a lent connection and a query: the first value of its first row.
        run: Called with a lent connection and a statement.
    """

    pool: Any
    lend: Callable[..., Any]
    ask: Callable[[Any, str], Any]
    run: Callable[[Any, str], Any]

    async def value(self, query: str, timeout: float | None = None) -> Any:
        async with self.lend(timeout=timeout) as connection:
            return await self.ask(connection, query)

    async def do(self, statement: str, timeout: float | None = None) -> None:
        async with self.lend(timeout=timeout) as connection:
            await self.run(connection, statement)


@asynccontextmanager
async def asyncpg_flavour(dsn: str, **options: Any) -> AsyncIterator[Client]:
    """As it comes."""
    async with running.make_pool(dsn, **options) as pool:
        yield Client(
            pool, pool.acquire, lambda con, query: con.fetchval(query), lambda con, statement: con.execute(statement)
        )


@asynccontextmanager
async def psycopg_flavour(dsn: str, **options: Any) -> AsyncIterator[Client]:
    """One that looks at a connection before it lends it."""

    async def ask(connection: psycopg.AsyncConnection[Any], query: str) -> Any:
        cursor = await connection.execute(query)
        return (await cursor.fetchone())[0]

    options = {"min_size": 0, "max_size": 2, "discard_dead": "always", "timeout": 20.0} | options
    async with psycopg_pools.make_pool(AsyncConnectionPool, dsn, **options) as pool:
        yield Client(pool, pool.connection, ask, lambda connection, statement: connection.execute(statement))


both = {"asyncpg": asyncpg_flavour, "psycopg": psycopg_flavour}


def sqlstate_of(error: BaseException) -> str | None:
    return getattr(error, "sqlstate", None)
