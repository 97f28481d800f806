"""What doctor has seen, as plain data: of the process and its machine, of the way to the server, of the server."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Facts", "Host", "Plan", "Pooling", "RoleSetting", "Server", "Sessions", "Way"]


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How many connections are meant to be opened.

    Attributes:
        pool_size: The largest number a pool may open (`max_size`), one pool in each process.
        processes: How many processes have such a pool.
    """

    pool_size: int
    processes: int

    @property
    def wanted(self) -> int:
        """The connections of all processes."""
        return self.pool_size * self.processes

    def __str__(self) -> str:
        return f"a pool of {self.pool_size} x {self.processes} process{'' if self.processes == 1 else 'es'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """
    The interpreter and the machine that doctor runs on.

    Attributes:
        python: Its version.
        loop: What `asyncio.run` uses, as in `UnixSelectorEventLoop with EpollSelector`.
        is_proactor: Whether that is Windows' Proactor loop.
        versions: Of packages, by their names; None for one that is not installed.
        psycopg_implementation: `"c"`, `"binary"` or `"python"`; None if psycopg cannot be imported.
        psycopg_failure: Why it cannot be imported; None if it can.
        libpq: The version of the libpq that psycopg uses; None without psycopg.
        start_method: How multiprocessing starts processes by default.
        can_hear_of_forks: Whether there is `os.register_at_fork`.
        fd_limit: Fds a process may have open; None for no limit, or where there is no such thing.
        shows_fds: Whether the process's own open fds can be listed, which the audit needs.
        worker_count: What `WEB_CONCURRENCY`, which gunicorn and uvicorn go by, says; None if it is not set.
        gunicorn_arguments: What `GUNICORN_CMD_ARGS` says.
    """

    python: str
    loop: str
    is_proactor: bool
    versions: Mapping[str, str | None]
    psycopg_implementation: str | None
    psycopg_failure: str | None
    libpq: str | None
    start_method: str
    can_hear_of_forks: bool
    fd_limit: int | None
    shows_fds: bool
    worker_count: str | None
    gunicorn_arguments: str


class Pooling(Enum):
    """For how long a proxy gives a client a session of the server."""

    SESSION = "session"
    TRANSACTION = "transaction"
    STATEMENT = "statement"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """
    The way from here to the server.

    Attributes:
        peer: Address of the other end of the socket; a path for a Unix socket; None if it cannot be told.
        is_local: Whether that is this machine.
        sslmode: What the DSN or `PGSSLMODE` asks for, `"prefer"` by default.
        client_tls: The TLS version of our socket; None without TLS.
        server_tls: The TLS version that the server sees; None without TLS, or if it does not tell.
        announced_pid: The process id that was announced when we connected.
        backend_pid: The one that the server's process has.
        local_port: Port of our end; None for a Unix socket, or if it cannot be told.
        client_port: The port that the server sees at our end; None for a Unix socket.
        pooling: What a proxy was seen to do; None if there is no sign of one that pools.
    """

    peer: str | None
    is_local: bool
    sslmode: str
    client_tls: str | None
    server_tls: str | None
    announced_pid: int
    backend_pid: int
    local_port: int | None
    client_port: int | None
    pooling: Pooling | None = None


@dataclass(frozen=True, slots=True)
class Sessions:
    """
    Sessions of the server that have all of this in common; ours is not among them.

    Attributes:
        user: Whose they are.
        application: What they call themselves; empty if nothing.
        database: What they are connected to.
        state: As in pg_stat_activity; None if it is hidden from our role.
        is_hidden: Whether our role may not see more than this.
        number: How many they are.
        longest_seconds: The longest any has been in that state; None if it is hidden.
    """

    user: str | None
    application: str
    database: str
    state: str | None
    is_hidden: bool
    number: int
    longest_seconds: float | None


@dataclass(frozen=True, slots=True)
class RoleSetting:
    """
    A setting that is given to a role, a database, or a role in a database.

    Attributes:
        role: Which; None for all.
        database: Which; None for all.
        assignment: As in `max_parallel_workers_per_gather=0`.
    """

    role: str | None
    database: str | None
    assignment: str

    def __str__(self) -> str:
        whose = f"role {self.role}" if self.role is not None else "all roles"
        where = "" if self.database is None else f" in database {self.database}"
        return f"{self.assignment} for {whose}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """
    The server, as seen by the role that we are.

    Attributes:
        version: Such as `"18.1"`.
        role: Who has logged in.
        database: Where.
        is_superuser: Whether that role is one.
        may_use_reserved: Whether it may use what `reserved_connections` keeps free.
        sees_all: Whether it sees every session's state.
        settings: Raw values in the setting's own unit; one that the server does not have is missing.
        role_limit: Connections the role may have; -1 for no limit, None if it is hidden.
        database_limit: Connections the database may have; -1 for no limit, None if it is hidden.
        sessions: Who is connected; None if that is hidden.
        parallel: Where `max_parallel_workers_per_gather` is set for roles and databases; None if that is hidden.
        misnamed: Where `async_client_compatibility` was found.
        unseen: What could not be looked at, and why.
    """

    version: str
    role: str
    database: str
    is_superuser: bool
    may_use_reserved: bool
    sees_all: bool
    settings: Mapping[str, str]
    role_limit: int | None = -1
    database_limit: int | None = -1
    sessions: Sequence[Sessions] | None = ()
    parallel: Sequence[RoleSetting] | None = ()
    misnamed: Sequence[str] = ()
    unseen: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was seen, and what it is to be judged by."""

    plan: Plan
    host: Host
    way: Way
    server: Server
