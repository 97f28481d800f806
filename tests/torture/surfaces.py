"""The pools that a storm can be let loose on, each behind the same few methods."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import psycopg
import psycopg_pool

from loopaware_pool.asyncpg import create_pool
from loopaware_pool.psycopg import AsyncConnectionPool

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
        is_ours: Whether it is this project's, whose inside can be looked at.
    """

    abilities: frozenset[str]
    errors: tuple[type[BaseException], ...] = (
        OSError,
        psycopg.Error,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,  # asked for something while it reads the server's farewell
    )
    is_ours = True
    dialect = "asyncpg"

    def make(self, dsn: str, name: str, options: dict[str, Any]) -> Any:
        """Make a pool whose name is the application name of its sessions."""
        raise NotImplementedError

    async def open(self, pool: Any) -> None:
        """Open it, or introduce the running loop."""
        await pool

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

    async def close(self, pool: Any) -> None:
        await pool.close()

    def terminate(self, pool: Any) -> None:
        pool.terminate()

    async def expire(self, pool: Any) -> None:
        await pool.expire_connections()


class Asyncpg(Surface):
    """asyncpg's pool."""

    abilities = frozenset({"any"})
    is_ours = False

    def make(self, dsn: str, name: str, options: dict[str, Any]) -> Any:
        sizes = {key: options[key] for key in ("min_size", "max_size")}
        return asyncpg.create_pool(dsn, **sizes, **_PLAIN["asyncpg"], server_settings={"application_name": name})


class OursForAsyncpg(Surface):
    """This project's pool of asyncpg connections."""

    abilities = frozenset({"any", "ours"})

    def make(self, dsn: str, name: str, options: dict[str, Any]) -> Any:
        return create_pool(dsn, **options, **_PLAIN["asyncpg"], name=name, server_settings={"application_name": name})


class Psycopg(Surface):
    """psycopg_pool's pool."""

    abilities = frozenset({"any"})
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

    abilities = frozenset({"any", "ours", "psycopg"})
    is_ours = True
    kind = AsyncConnectionPool

    def make(self, dsn: str, name: str, options: dict[str, Any]) -> Any:
        return self._make(dsn, name, options | {"session_reset": "awaited", "discard_dead": "always"})


SURFACES: dict[str, Surface] = {
    "ours-asyncpg": OursForAsyncpg(),
    "ours-psycopg": OursForPsycopg(),
    "asyncpg": Asyncpg(),
    "psycopg_pool": Psycopg(),
}
