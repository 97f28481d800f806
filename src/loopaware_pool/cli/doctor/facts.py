"""What doctor has seen, as plain data: of the process, of the way to the server, of the server."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Facts", "Host", "Plan", "Pooling", "Relay", "Server", "Way", "Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """What the pools of all processes are to do together."""

    rate: float  # leases begun a second
    hold_seconds: float  # how long one lasts, on average


@dataclass(frozen=True, slots=True)
class Plan:
    """How many connections are meant to be opened, by one pool in each process."""

    pool_size: int  # max_size of each pool
    processes: int
    work: Work | None = None  # None if it is not known

    @property
    def wanted(self) -> int:
        """The connections of all processes."""
        return self.pool_size * self.processes

    def __str__(self) -> str:
        return f"a pool of {self.pool_size} x {self.processes} process{'' if self.processes == 1 else 'es'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The process that doctor runs in."""

    versions: Mapping[str, str | None]  # of Python and of packages; None for one that is not installed
    psycopg_implementation: str | None  # "c", "binary" or "python"; None if psycopg cannot be imported
    psycopg_failure: str | None  # why psycopg cannot be imported
    fd_limit: int | None  # fds a process may have open; None for no limit


class Pooling(Enum):
    """For how long a proxy gives a client a session of the server."""

    SESSION = "session"
    TRANSACTION = "transaction"
    STATEMENT = "statement"
    UNKNOWN = "unknown"


class Relay(Enum):
    """What passes the connection on, as far as it shows."""

    PGPOOL = "pgpool-II"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The way from here to the server."""

    peer: str | None  # address of the socket's other end; None if it cannot be told
    is_local: bool  # whether that is this machine
    sslmode: str  # of the DSN, or PGSSLMODE
    client_tls: str | None  # the TLS version of our socket; None without TLS
    server_tls: str | None  # the TLS version that the server sees; None without TLS
    announced_pid: int  # the process id that was announced when we connected
    backend_pid: int  # the process id of the server's process
    pooling: Pooling | None = None  # None if there is no sign of a proxy that pools
    our_address: str | None = None  # the client's, as the client has it; None if it cannot be told
    seen_address: str | None = None  # the client's, as the server sees it
    relay: Relay | None = None  # None if both are the same, or one cannot be told


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server, and what it has told of the role that we are and the database that we are in."""

    version: str
    role: str
    database: str
    is_superuser: bool
    may_use_reserved: bool  # whether the role may use what reserved_connections keeps free
    max_connections: int
    superuser_reserved_connections: int
    reserved_connections: int  # 0 before PostgreSQL 16
    idle_session_timeout: float  # in seconds; 0 for never
    role_limit: int  # connections the role may have; -1 for no limit
    database_limit: int  # connections the database may have; -1 for no limit
    taken: int  # connections that others have, of all the server
    taken_by_role: int  # the part of them that is the role's
    taken_in_database: int  # the part of them that is the database's


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was seen, and what it is to be judged by."""

    plan: Plan
    host: Host
    way: Way
    server: Server
