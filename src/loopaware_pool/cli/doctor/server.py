"""Look at the server, with what our role may see of it, and at the way there."""

from __future__ import annotations

import ipaddress
import os
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import asyncpg

from loopaware_pool.asyncpg.internals import Internals
from loopaware_pool.cli.doctor.facts import Pooling, RoleSetting, Server, Sessions, Way

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["look_at_server"]

_NAME: Final = "loopaware-pool doctor"
_CONNECT_SECONDS: Final = 10.0
_QUERY_SECONDS: Final = 10.0
# A proxy that shares sessions lends the one used last first, or all in turn; either shows once two connections have
# asked in this order: one, the other, the other, one. The rest is for what others do meanwhile.
_ROUNDS: Final = 3

_SELF: Final = """
SELECT session_user::text AS role, current_database()::text AS database,
       r.rolsuper AS is_superuser, r.rolconnlimit AS role_limit,
       pg_has_role(session_user, 'pg_read_all_stats', 'USAGE') AS sees_all,
       coalesce(r.rolsuper OR pg_has_role(session_user, (SELECT oid FROM pg_roles
           WHERE rolname = 'pg_use_reserved_connections'), 'USAGE'), false) AS may_use_reserved
FROM pg_roles r WHERE r.rolname = session_user
"""
_SETTINGS: Final = """
SELECT name, setting FROM pg_settings WHERE name IN (
    'max_connections', 'superuser_reserved_connections', 'reserved_connections', 'max_parallel_workers_per_gather',
    'idle_session_timeout', 'idle_in_transaction_session_timeout', 'statement_timeout', 'transaction_timeout',
    'tcp_keepalives_idle', 'tcp_keepalives_interval', 'tcp_keepalives_count')
"""
_DATABASE_LIMIT: Final = "SELECT datconnlimit FROM pg_database WHERE datname = current_database()"
# For sessions that a role may not see, the server leaves out what kind they are. Those without a database are its own.
_SESSIONS: Final = """
SELECT usename::text AS user, coalesce(application_name, '') AS application, datname::text AS database, state,
       backend_type IS NULL AS is_hidden, count(*)::int AS number,
       max(extract(epoch FROM clock_timestamp() - state_change))::float AS longest_seconds
FROM pg_stat_activity
WHERE datname IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()
GROUP BY 1, 2, 3, 4, 5 ORDER BY number DESC, 1, 2, 3, 4
"""
_ROLE_SETTINGS: Final = """
SELECT r.rolname::text AS role, d.datname::text AS database, assignment
FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS assignment
LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
WHERE assignment LIKE 'max_parallel_workers_per_gather=%' OR assignment LIKE '%async_client_compatibility=%'
ORDER BY 1, 2, 3
"""
_MAY_READ_FILES: Final = """
SELECT has_table_privilege('pg_catalog.pg_file_settings', 'SELECT')
   AND has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')
"""
_FILE_SETTINGS: Final = """
SELECT sourcefile || ' line ' || sourceline FROM pg_file_settings WHERE name LIKE '%async_client_compatibility'
"""
_TLS: Final = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl"
_CLIENT_PORT: Final = "SELECT inet_client_port()"


async def look_at_server(dsn: str) -> tuple[Way, Server]:
    """
    Connect and gather the facts; changes nothing. If a proxy is there, a second connection is opened for a moment.

    Args:
        dsn: `postgresql://user:password@host:port/database`.

    Raises:
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError: The server could not be reached, or hung up.

    Cancellation: the connections are closed at once.
    """
    async with _connect(dsn) as connection:
        backend_pid = await connection.fetchval("SELECT pg_backend_pid()")
        pooling = None
        if backend_pid != connection.get_server_pid():
            pooling = await _find_pooling(dsn, connection)
        look = _Look(connection, may_begin=pooling is not Pooling.STATEMENT)
        way = await _look_at_way(dsn, connection, look, backend_pid, pooling)
        return way, await _look_at_sessions(connection, look)


@asynccontextmanager
async def _connect(dsn: str) -> AsyncIterator[Any]:
    # Without a name of its own a statement cannot be left behind in a session that a proxy gives to others next.
    connection = await asyncpg.connect(
        dsn,
        statement_cache_size=0,
        timeout=_CONNECT_SECONDS,
        command_timeout=_QUERY_SECONDS,
        server_settings={"application_name": _NAME},
    )
    try:
        yield connection
        await connection.close(timeout=_QUERY_SECONDS)
    finally:
        connection.terminate()


async def _find_pooling(dsn: str, first: Any) -> Pooling:
    """Find out whether two connections that are open at once keep a session each."""
    try:
        async with _connect(dsn) as second:
            await second.fetchval("SELECT 1")
            if not await _may_begin(second):
                return Pooling.STATEMENT
            ours, theirs = set(), set()
            for _ in range(_ROUNDS):
                ours.add(await _backend_pid(first))
                theirs |= {await _backend_pid(second), await _backend_pid(second)}
                ours.add(await _backend_pid(first))
            is_apart = len(ours) == len(theirs) == 1 and ours != theirs
            return Pooling.SESSION if is_apart else Pooling.TRANSACTION
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return Pooling.UNKNOWN


async def _may_begin(connection: Any) -> bool:
    """PgBouncer hangs up on a client that begins a transaction in statement mode."""
    try:
        async with connection.transaction(readonly=True):
            return True
    except asyncpg.ConnectionDoesNotExistError:
        return False


async def _backend_pid(connection: Any) -> int:
    async with connection.transaction(readonly=True):
        pid: int = await connection.fetchval("SELECT pg_backend_pid()")
        return pid


class _Look:
    """Asks one thing after the other, and notes what our role may not see."""

    def __init__(self, connection: Any, *, may_begin: bool) -> None:
        self.unseen: list[str] = []
        self._connection = connection
        self._may_begin = may_begin

    async def rows(self, what: str, query: str) -> list[Any] | None:
        """Return what *query* gives, or None if it is forbidden."""
        try:
            async with AsyncExitStack() as stack:
                if self._may_begin:  # a proxy then cannot give the session away between parsing and running
                    await stack.enter_async_context(self._connection.transaction(readonly=True))
                rows: list[Any] = await self._connection.fetch(query)
                return rows
        except asyncpg.InsufficientPrivilegeError as error:
            self.unseen.append(f"{what} ({error})")
            return None

    async def value(self, what: str, query: str) -> Any:
        """Return the first value that *query* gives; None if there is none, or it is forbidden."""
        rows = await self.rows(what, query)
        return rows[0][0] if rows else None


async def _look_at_way(dsn: str, connection: Any, look: _Look, backend_pid: int, pooling: Pooling | None) -> Way:
    transport = Internals(connection).transport
    seen = {} if transport is None else {n: transport.get_extra_info(n) for n in ("peername", "sockname", "ssl_object")}
    peer, ours, tls = seen.get("peername"), seen.get("sockname"), seen.get("ssl_object")
    is_unix = isinstance(peer, (str, bytes))
    return Way(
        peer=None if peer is None else ("a Unix socket" if is_unix else str(peer[0])),
        is_local=is_unix or (peer is not None and ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback),
        sslmode=_sslmode(dsn),
        client_tls=None if tls is None else tls.version(),
        server_tls=await look.value("whether the server sees TLS", _TLS),
        announced_pid=connection.get_server_pid(),
        backend_pid=backend_pid,
        local_port=ours[1] if isinstance(ours, tuple) else None,
        client_port=await look.value("the port that the server sees", _CLIENT_PORT),
        pooling=pooling,
    )


def _sslmode(dsn: str) -> str:
    """What asyncpg and libpq take, in this order; the last one of several."""
    given = parse_qs(urlsplit(dsn).query).get("sslmode")
    return given[-1] if given else os.environ.get("PGSSLMODE") or "prefer"


async def _look_at_sessions(connection: Any, look: _Look) -> Server:
    settings = {row["name"]: row["setting"] for row in await look.rows("settings", _SETTINGS) or ()}
    assignments = await look.rows("settings of roles", _ROLE_SETTINGS)
    given = None if assignments is None else [RoleSetting(*row.values()) for row in assignments]
    sessions = await look.rows("sessions", _SESSIONS)
    who = await look.rows("roles", _SELF)
    return Server(
        version=str(connection.get_settings().server_version).split()[0],
        **(dict(who[0]) if who else await _nameless(look)),
        settings=settings,
        database_limit=await look.value("limits of databases", _DATABASE_LIMIT),
        sessions=None if sessions is None else [Sessions(*row.values()) for row in sessions],
        parallel=None if given is None else [each for each in given if "max_parallel" in each.assignment],
        misnamed=[
            *(str(each) for each in given or () if "async_client" in each.assignment),
            *await _misnamed_in_files(look),
        ],
        unseen=look.unseen,
    )


async def _nameless(look: _Look) -> dict[str, Any]:
    """What is known of our role if pg_roles may not be read."""
    rows = await look.rows("our own name", "SELECT session_user::text, current_database()::text") or [("?", "?")]
    unknown = {"role_limit": None, "is_superuser": False, "may_use_reserved": False, "sees_all": False}
    return {"role": rows[0][0], "database": rows[0][1], **unknown}


async def _misnamed_in_files(look: _Look) -> list[str]:
    if not await look.value("who may read configuration files", _MAY_READ_FILES):
        look.unseen.append("configuration files (they need a superuser, or a grant on pg_file_settings)")
        return []
    return [row[0] for row in await look.rows("configuration files", _FILE_SETTINGS) or ()]
