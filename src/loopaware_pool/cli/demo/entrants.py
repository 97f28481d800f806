"""The pools that the demo sets side by side: the drivers' own and ours, made of the same arguments."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import asyncpg
import psycopg_pool

from loopaware_pool.asyncpg import create_pool
from loopaware_pool.cli.command import Unusable
from loopaware_pool.psycopg.pool import AsyncConnectionPool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

__all__ = [
    "CONNECTIONS",
    "QUERY",
    "ROWS",
    "STUCK_SECONDS",
    "Entrant",
    "Playground",
    "has_sqlalchemy",
    "open_playground",
]

QUERY: Final = "SELECT COUNT(*) FROM bug_repro WHERE payload = 'test_payload'"
ROWS: Final = 1000
CONNECTIONS: Final = 10
STUCK_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Entrant:
    """
    A pool, and how pools of its driver are used.

    Attributes:
        name: What to call it.
        make: Makes it, not opened yet. It can be entered with `async with`, unless it is an engine of SQLAlchemy's.
        open: Opens it for the running loop.
        fetch: Takes a connection from it, asks for one value, and gives the connection back.
    """

    name: str
    make: Callable[[], Any]
    open: Callable[[Any], Awaitable[object]]
    fetch: Callable[[Any, str], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Playground:
    """
    A server with the table `bug_repro` in a schema of our own.

    Attributes:
        dsn: The server.
        schema: The schema's name, which is the application name of our sessions as well.
    """

    dsn: str
    schema: str

    def for_asyncpg(self) -> tuple[Entrant, Entrant]:
        """Enter asyncpg's pool and ours."""
        options: dict[str, Any] = {"min_size": CONNECTIONS, "max_size": CONNECTIONS, "server_settings": self.settings}
        return (
            Entrant("asyncpg's pool", lambda: asyncpg.create_pool(self.dsn, **options), _await, _fetchval),
            Entrant("loopaware-pool", lambda: create_pool(self.dsn, **options), _await, _fetchval),
        )

    def for_psycopg(self, min_size: int = CONNECTIONS, max_size: int = CONNECTIONS) -> tuple[Entrant, Entrant]:
        """Enter psycopg_pool's pool and ours, both of connections in autocommit mode."""
        options: dict[str, Any] = {
            "min_size": min_size,
            "max_size": max_size,
            "timeout": STUCK_SECONDS,
            "open": False,
            "kwargs": {
                "autocommit": True,
                "application_name": self.schema,
                "options": f"-c search_path={self.schema}",
            },
        }
        return (
            Entrant("psycopg_pool", lambda: psycopg_pool.AsyncConnectionPool(self.dsn, **options), _open, _execute_one),
            Entrant("loopaware-pool", lambda: AsyncConnectionPool(self.dsn, **options), _open, _execute_one),
        )

    def for_sqlalchemy(self, pool_size: int) -> tuple[Entrant, Entrant]:
        """Enter engines of SQLAlchemy's, on its own pool and on ours. SQLAlchemy must be installed."""
        from sqlalchemy.ext.asyncio import create_async_engine

        from loopaware_pool.sqlalchemy import create_async_engine as create_ours

        options: dict[str, Any] = {
            "pool_size": pool_size,
            "pool_timeout": STUCK_SECONDS,
            "async_creator": functools.partial(asyncpg.connect, self.dsn, server_settings=self.settings),
        }
        url = "postgresql+asyncpg://"
        return (
            Entrant("SQLAlchemy's pool", lambda: create_async_engine(url, **options), _ready, _scalar),
            Entrant("loopaware-pool", lambda: create_ours(url, **options), _ready, _scalar),
        )

    @property
    def settings(self) -> dict[str, str]:
        """What a session needs to see the table, and to be found on the server."""
        return {"search_path": self.schema, "application_name": self.schema}


async def _await(pool: Any) -> None:
    await pool


async def _fetchval(pool: Any, query: str) -> Any:
    async with pool.acquire() as connection:
        return await connection.fetchval(query)


async def _open(pool: Any) -> None:
    await pool.open()


async def _execute_one(pool: Any, query: str) -> Any:
    async with pool.connection() as connection:
        cursor = await connection.execute(query)
        return (await cursor.fetchone())[0]


async def _ready(_: Any) -> None:
    """Do nothing: an engine needs not be opened."""


async def _scalar(engine: Any, query: str) -> Any:
    from sqlalchemy import text

    async with engine.connect() as connection:
        return await connection.scalar(text(query))


def has_sqlalchemy() -> bool:
    """Whether SQLAlchemy is installed, with what its async engine needs."""
    return all(importlib.util.find_spec(name) is not None for name in ("sqlalchemy", "greenlet"))


@contextmanager
def open_playground(dsn: str) -> Iterator[Playground]:
    """Make the schema and its table, and drop them at the end, whatever happens between."""
    playground = Playground(dsn, f"loopaware_demo_{uuid4().hex[:12]}")
    try:
        asyncio.run(_execute(dsn, _SET_UP.format(schema=playground.schema, rows=ROWS)))
    except asyncpg.InsufficientPrivilegeError as error:
        raise Unusable(
            f"the demo makes a schema of its own, and drops it in the end, which this user may not do: {error}; "
            "give a user with CREATE on the database, or no DSN for an embedded server"
        ) from None
    try:
        yield playground
    finally:
        asyncio.run(_execute(dsn, f"DROP SCHEMA IF EXISTS {playground.schema} CASCADE"))


_SET_UP = """
SET client_min_messages = warning;
CREATE SCHEMA {schema};
CREATE TABLE {schema}.bug_repro (id serial PRIMARY KEY, payload text NOT NULL);
INSERT INTO {schema}.bug_repro (payload) SELECT 'test_payload' FROM generate_series(1, {rows});
ANALYZE {schema}.bug_repro;
"""


async def _execute(dsn: str, statements: str) -> None:
    connection = await asyncpg.connect(dsn, server_settings={"client_min_messages": "warning"})
    try:
        await connection.execute(statements)
    finally:
        await connection.close()
