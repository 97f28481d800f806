"""Ask the server for its limits, and look at the connection to it."""

from __future__ import annotations

import ipaddress
import os
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import asyncpg

from loopaware_pool.asyncpg.internals import Internals
from loopaware_pool.cli.doctor.facts import Pooling, Relay, Server, Way
from loopaware_pool.cli.target import say_goodbye

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["look_at_server"]

_NAME: Final = "loopaware-pool doctor"
_CONNECT_SECONDS: Final = 10.0
_QUERY_SECONDS: Final = 10.0
# A proxy that shares sessions lends the one used last first, or all in turn; either shows once two connections have
# asked in this order: one, the other, the other, one. The rest is for what others do meanwhile.
_ROUNDS: Final = 3

# Every role may call current_setting; pg_settings can be closed to it. backend_type is null for sessions whose details
# the role may not see. Sessions without a database are the server's own processes.
_SERVER: Final = """
SELECT session_user::text AS role, current_database()::text AS database,
       current_setting('is_superuser') = 'on' AS is_superuser,
       coalesce(pg_has_role(session_user, to_regrole('pg_use_reserved_connections'), 'USAGE'), false)
           AS may_use_reserved,
       current_setting('max_connections')::int AS max_connections,
       current_setting('superuser_reserved_connections')::int AS superuser_reserved_connections,
       coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved_connections,
       extract(epoch FROM coalesce(current_setting('idle_session_timeout', true), '0')::interval)::float
           AS idle_session_timeout,
       (SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user) AS role_limit,
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database_limit,
       count(*)::int AS taken,
       (count(*) FILTER (WHERE usename = session_user))::int AS taken_by_role,
       (count(*) FILTER (WHERE datname = current_database()))::int AS taken_in_database
FROM pg_stat_activity
WHERE datname IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()
"""
_CLIENT: Final = "SELECT host(inet_client_addr()) AS host, inet_client_port() AS port"
_UNIX_SOCKET: Final = "a Unix socket"
_TLS: Final = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl"


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
        async with AsyncExitStack() as stack:
            if pooling is not Pooling.STATEMENT:  # a proxy then cannot give the session away in between
                await stack.enter_async_context(connection.transaction(readonly=True))
            tls, told = await connection.fetchval(_TLS), await connection.fetchrow(_SERVER)
            seen = _address(await connection.fetchrow(_CLIENT))
        version = connection.get_settings().server_version.split()[0]
        way = _describe_way(dsn, connection, backend_pid, pooling, tls)
        if way.our_address is not None and way.our_address != seen:
            way = replace(way, seen_address=seen, relay=await _find_relay(connection))
        return way, Server(version=version, **told)


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
        await say_goodbye(connection)
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


def _address(name: Any) -> str:
    """Write an address and port; a Unix socket has neither."""
    if not isinstance(name, (tuple, asyncpg.Record)) or name[0] is None:
        return _UNIX_SOCKET
    address = ipaddress.ip_address(name[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return f"{mapped or address} port {name[1]}"


async def _find_relay(connection: Any) -> Relay:
    """Ask a question that only pgpool-II answers, and only if it is a simple query."""
    try:
        await connection.execute("SHOW POOL_VERSION")
    except asyncpg.PostgresError:
        return Relay.UNKNOWN
    return Relay.PGPOOL


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


def _describe_way(dsn: str, connection: Any, backend_pid: int, pooling: Pooling | None, server_tls: str | None) -> Way:
    transport = Internals(connection).transport
    peer = None if transport is None else transport.get_extra_info("peername")
    tls = None if transport is None else transport.get_extra_info("ssl_object")
    is_unix = isinstance(peer, (str, bytes))
    return Way(
        peer=None if peer is None else (_UNIX_SOCKET if is_unix else str(peer[0])),
        is_local=is_unix or (peer is not None and ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback),
        sslmode=_sslmode(dsn),
        client_tls=None if tls is None else tls.version(),
        server_tls=server_tls,
        announced_pid=connection.get_server_pid(),
        backend_pid=backend_pid,
        pooling=pooling,
        our_address=None if transport is None else _address(transport.get_extra_info("sockname")),
    )


def _sslmode(dsn: str) -> str:
    """What asyncpg and libpq take, in this order; the last one of several."""
    given = parse_qs(urlsplit(dsn).query).get("sslmode")
    return given[-1] if given else os.environ.get("PGSSLMODE") or "prefer"
