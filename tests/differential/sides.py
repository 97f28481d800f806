"""The two sides of each comparison: the driver's own pool, and this project's."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg_pool

import loopaware_pool.asyncpg
import loopaware_pool.psycopg

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KINDS", "PROBE", "Kind"]

APPLICATION = "differential"
# What the server knows of a session; the parameter tells in what encoding the client writes. The settings of the
# transaction begin anew with each, but show for ever after that some transaction of the session was begun with them.
PROBE = """
SELECT
  current_user::text AS "user",
  session_user::text AS "session user",
  pg_catalog.convert_to({parameter}::text, 'UTF8')::text AS "encoded",
  (SELECT pg_catalog.string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_catalog.pg_settings
    WHERE (source = 'session' AND name !~ '^transaction_')
      OR name IN ('application_name', 'client_encoding', 'role', 'TimeZone')) AS "settings",
  nullif(pg_catalog.current_setting('app.tenant', true), '') AS "tenant",
  (SELECT pg_catalog.string_agg(channel, ' ') FROM pg_catalog.pg_listening_channels() AS channel) AS "channels",
  (SELECT pg_catalog.string_agg(name, ' ') FROM pg_catalog.pg_cursors WHERE is_holdable) AS "cursors",
  (SELECT pg_catalog.string_agg(name, ' ') FROM pg_catalog.pg_prepared_statements WHERE from_sql) AS "prepared",
  (SELECT pg_catalog.string_agg(relname, ' ') FROM pg_catalog.pg_class
    WHERE relnamespace = pg_catalog.pg_my_temp_schema() AND relkind = 'r') AS "temporary",
  (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks
    WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'advisory')::int AS "advisory locks"
"""
_ENCODED = "Ã©"


class Kind:
    """
    A kind of pool, both sides of it.

    Attributes:
        upstream: Makes the driver's own pool, as `ours` makes this project's.
        acquire: The names of the methods that lend a connection. `release` is the one that takes it back.
        counts: What is looked at after each step.
    """

    release: str
    upstream: Callable[..., Any]
    ours: Callable[..., Any]

    def make(self, factory: Callable[..., Any], dsn: str, options: dict[str, Any]) -> Any:
        """Make a pool that is not open."""
        raise NotImplementedError

    async def open(self, pool: Any) -> None:
        """Open it."""
        raise NotImplementedError

    def pid(self, connection: Any) -> int | None:
        """The process id of a connection's server process; None if there is none any more."""
        raise NotImplementedError

    async def probe(self, connection: Any) -> Any:
        """Ask the server what it knows of the session."""
        raise NotImplementedError

    def memory(self, connection: Any) -> Any:
        """What the driver knows of the session, without a question to the server."""
        raise NotImplementedError

    def counts(self, pool: Any) -> Any:
        """How many connections the pool says it has."""
        raise NotImplementedError

    async def give_back(self, pool: Any, connection: Any) -> None:
        """Release a connection."""
        raise NotImplementedError

    async def run(self, connection: Any, statement: str) -> None:
        """Execute a statement."""
        await connection.execute(statement)


class AsyncpgKind(Kind):
    """asyncpg.create_pool."""

    release = "release"

    upstream = staticmethod(asyncpg.create_pool)
    ours = staticmethod(loopaware_pool.asyncpg.create_pool)

    def make(self, factory: Callable[..., Any], dsn: str, options: dict[str, Any]) -> Any:
        settings = {"application_name": APPLICATION, "timezone": "UTC"}
        return factory(dsn, **{"server_settings": settings, "ssl": False} | options)

    async def open(self, pool: Any) -> None:
        await pool

    def pid(self, connection: Any) -> int | None:
        with contextlib.suppress(asyncpg.InterfaceError):
            return connection.get_server_pid()
        return None

    async def probe(self, connection: Any) -> Any:
        return dict(await connection.fetchrow(PROBE.format(parameter="$1"), _ENCODED))

    def memory(self, connection: Any) -> Any:
        settings = connection.get_settings()
        names = ("application_name", "client_encoding", "TimeZone", "standard_conforming_strings", "is_superuser")
        return [connection.is_in_transaction(), {name: getattr(settings, name, None) for name in names}]

    def counts(self, pool: Any) -> Any:
        return {"size": pool.get_size(), "idle": pool.get_idle_size(), "closing": pool.is_closing()}

    async def give_back(self, pool: Any, connection: Any) -> None:
        await pool.release(connection)


class PsycopgKind(Kind):
    """psycopg_pool.AsyncConnectionPool."""

    release = "putconn"

    upstream = psycopg_pool.AsyncConnectionPool
    ours = loopaware_pool.psycopg.AsyncConnectionPool

    def make(self, factory: Callable[..., Any], dsn: str, options: dict[str, Any]) -> Any:
        kwargs = {"application_name": APPLICATION, "options": "-c timezone=UTC", "sslmode": "disable"}
        return factory(dsn, **options | {"kwargs": kwargs | options.get("kwargs", {})})

    async def open(self, pool: Any) -> None:
        await pool.open()

    def pid(self, connection: Any) -> int | None:
        return connection.info.backend_pid if not connection.closed else None

    async def probe(self, connection: Any) -> Any:
        cursor = connection.cursor(row_factory=_plain_rows)
        await cursor.execute(PROBE.format(parameter="%s"), [_ENCODED])
        names = [column.name for column in cursor.description]
        return dict(zip(names, await cursor.fetchone(), strict=True))

    def memory(self, connection: Any) -> Any:
        names = ("application_name", "client_encoding", "TimeZone", "standard_conforming_strings")
        return [
            connection.info.transaction_status.name,
            connection.autocommit,
            {name: connection.info.parameter_status(name) for name in names},
        ]

    def counts(self, pool: Any) -> Any:
        stats = pool.get_stats()
        return {name: stats.get(name, 0) for name in ("pool_size", "pool_available", "requests_waiting")}

    async def give_back(self, pool: Any, connection: Any) -> None:
        await pool.putconn(connection)


def _plain_rows(cursor: Any) -> Any:
    return tuple


class NullPsycopgKind(PsycopgKind):
    """psycopg_pool.AsyncNullConnectionPool."""

    upstream = psycopg_pool.AsyncNullConnectionPool
    ours = loopaware_pool.psycopg.AsyncNullConnectionPool


KINDS: dict[str, Kind] = {"asyncpg": AsyncpgKind(), "psycopg": PsycopgKind(), "psycopg null": NullPsycopgKind()}
