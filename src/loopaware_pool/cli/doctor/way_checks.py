"""Judge the way to the server: what stands in between, and who can listen. Decides only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopaware_pool.cli.doctor.facts import Pooling, Relay
from loopaware_pool.cli.doctor.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopaware_pool.cli.doctor.facts import Way

__all__ = ["check_way"]

_FOR_SHARED_SESSIONS = (
    'asyncpg flavour: create_pool(..., statement_cache_size=0, session_reset="never"), as a reset is of whichever '
    'session comes next, and is waited for; psycopg flavour: kwargs={"prepare_threshold": None}. With PgBouncer\'s '
    "max_prepared_statements above 0 (psycopg: and libpq 17) statements may be prepared as without it. Nothing of a "
    "session outlasts its transaction (SET, advisory locks, LISTEN, temporary tables): SET LOCAL, pg_advisory_xact_lock"
)

_FOR_PGPOOL = (
    "each connection holds one of its processes: max_size x processes within num_init_children; if client_idle_limit "
    "is not 0, a keepalive, or a shorter idle time, below it"
)
_FOR_TCP_PROXIES = (
    "if it ends connections that are idle (HAProxy: timeout client, timeout server), a keepalive, or a shorter idle "
    "time, below that"
)


def check_way(way: Way) -> Iterator[Finding]:
    """Make the findings of the way to the server."""
    yield _proxy(way)
    if way.relay is not None:
        yield _relay(way, way.relay)
    yield _tls(way)


def _proxy(way: Way) -> Finding:
    code = "proxy"
    pids = f"process {way.announced_pid} was announced, process {way.backend_pid} answers"
    match way.pooling:
        case Pooling.TRANSACTION:
            evidence = f"{pids}; two connections that were open at once kept no session of their own"
            title = "A proxy that pools, as PgBouncer does, shares sessions between transactions"
            return Finding(code, Severity.WARNING, title, evidence, _FOR_SHARED_SESSIONS)
        case Pooling.STATEMENT:
            evidence = f"{pids}; it hung up when a transaction was begun"
            title = "A proxy that pools, as PgBouncer does, shares sessions between statements"
            return Finding(code, Severity.PROBLEM, title, evidence, "pool_mode=transaction, or session")
        case Pooling.SESSION:
            evidence = f"{pids}; two connections that were open at once kept a session each"
            title = "A proxy that pools, as PgBouncer does, gives each connection a session of its own"
            remedy = (
                "idle connections of a pool hold the proxy's: max_size x processes within its pool size; asyncpg "
                'flavour: create_pool(..., session_reset="pipelined") if it is always so'
            )
            return Finding(code, Severity.NOTE, title, evidence, remedy)
        case Pooling.UNKNOWN:
            title = "A proxy that pools, as PgBouncer does, is between; how it shares sessions is not known"
            evidence = f"{pids}; a second connection got no answer"
            return Finding(code, Severity.WARNING, title, evidence, f"if it shares them: {_FOR_SHARED_SESSIONS}")
        case None:
            evidence = f"process {way.backend_pid} was announced, and answers"
            return Finding(code, Severity.OK, "There is no sign of a proxy that pools", evidence)


def _relay(way: Way, relay: Relay) -> Finding:
    evidence = f"the client is at {way.our_address} here, and at {way.seen_address} to the server"
    if relay is Relay.PGPOOL:
        title = "pgpool-II is between"
        return Finding("relay", Severity.NOTE, title, f"{evidence}; SHOW POOL_VERSION is answered", _FOR_PGPOOL)
    if way.pooling is not None:
        return Finding("relay", Severity.OK, "The proxy makes connections of its own", evidence)
    title = "Something passes the connection on: a TCP proxy such as HAProxy, or address translation"
    return Finding("relay", Severity.NOTE, title, evidence, _FOR_TCP_PROXIES)


def _tls(way: Way) -> Finding:
    code = "tls"
    where = way.peer or "an address that cannot be told"
    evidence = f"{way.client_tls or way.server_tls or 'no TLS'} to {where}; sslmode {way.sslmode}"
    if way.pooling is not None:
        evidence += f"; from the proxy to the server: {way.server_tls or 'no TLS'}"
    if way.is_local:
        return Finding(code, Severity.OK, "The connection does not leave this machine", evidence)
    if way.client_tls is None and (way.server_tls is None or way.pooling is not None):
        title = "Whatever is said, passwords perhaps included, can be read on the way"
        return Finding(code, Severity.WARNING, title, evidence, "sslmode=verify-full in the DSN, and TLS on the server")
    if way.sslmode in ("allow", "prefer"):
        title = "TLS is in use, but anyone on the way can have it dropped in silence"
        return Finding(code, Severity.WARNING, title, evidence, "sslmode=verify-full in the DSN, with sslrootcert")
    if way.sslmode == "require":
        title = "TLS is in use, but the server's certificate is not checked"
        return Finding(code, Severity.NOTE, title, evidence, "sslmode=verify-full in the DSN, with sslrootcert")
    return Finding(code, Severity.OK, "TLS is in use, and insisted upon", evidence)
