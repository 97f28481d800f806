"""A primary and its standby: how one fails, and the pools of all flavours that know both."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from sqlalchemy import exc, text

from engines import Engines
from faults import connect
from flavours import DRIVER_ERRORS, Client, asyncpg_flavour, psycopg_flavour
from running import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from loopaware_pool.testing.embedded_server import EmbeddedServer

__all__ = [
    "ERRORS",
    "FLAVOURS",
    "ON_ASYNCPG",
    "ON_PSYCOPG",
    "Limited",
    "answer_of_a_host",
    "dsn_of_both",
    "follow",
    "frozen",
    "processes_of",
    "replace_all",
    "sessions_of",
    "until_replicated",
]

ERRORS = (*DRIVER_ERRORS, exc.SQLAlchemyError, TimeoutError)


@asynccontextmanager
async def _engine_flavour(dsn: str, driver: str, arguments: dict[str, Any], **options: Any) -> AsyncIterator[Client]:
    """An engine in autocommit mode. It takes no time limit for a lease: its pool has one for all."""
    parts = urlsplit(dsn)
    login, _, hosts = parts.netloc.rpartition("@")
    query = "&".join(f"host={host}" for host in hosts.split(","))
    engines = Engines(f"postgresql://{login}@{parts.path}?{query}", driver)
    engines.named |= dict(parse_qsl(parts.query)) | arguments
    sizes = {
        "pool_size": options.pop("max_size", 2),
        "pool_timeout": 15.0,
        "pool_recycle": options.pop("max_lifetime", -1),
    }
    engine = engines.make(isolation_level="AUTOCOMMIT", **(sizes | options))

    async def ask(connection: Any, query: str) -> Any:
        return (await connection.execute(text(query))).scalar()

    try:
        yield Client(engine.pool, lambda timeout=None: engine.connect(), ask, lambda con, run: con.execute(text(run)))
    finally:
        await engine.dispose()


def _engine(driver: str) -> Any:
    """As `asyncpg_flavour` and `psycopg_flavour`: takes what the driver's `connect` does, and sizes of the pool."""

    def open_engine(dsn: str, **options: Any) -> Any:
        arguments = {name: options.pop(name) for name in ("timeout", "command_timeout") if name in options}
        return _engine_flavour(dsn, driver, arguments, **options)

    return open_engine


ON_ASYNCPG = {"asyncpg": asyncpg_flavour, "engine-asyncpg": _engine("asyncpg")}
ON_PSYCOPG = {"psycopg": psycopg_flavour, "engine-psycopg": _engine("psycopg")}
FLAVOURS = ON_ASYNCPG | ON_PSYCOPG


def dsn_of_both(first: EmbeddedServer, second: EmbeddedServer, *, first_port: int | None = None, **options: Any) -> str:
    """A DSN of both servers, with *options* as its query; the first may be reached by way of another port."""
    parts = urlsplit(first.dsn)
    login = parts.netloc.rpartition("@")[0]
    query = "&".join(f"{name}={value}" for name, value in options.items())
    hosts = f"{parts.hostname}:{first_port or first.port},127.0.0.1:{second.port}"
    return f"postgresql://{login}@{hosts}/postgres?{query}"


class Limited:
    """
    A client that waits long for connections, and whose first query has a short limit, which is to run out.

    Those that follow have none: a busy machine, too, is to answer them.
    """

    def __init__(self, client: Client, limit: float | None = 0.4) -> None:
        self._client = client
        self._limit = limit

    async def value(self, query: str) -> Any:
        async with self._client.lend(timeout=15) as connection, self._next_limit():
            return await self._client.ask(connection, query)

    async def do(self, statement: str) -> None:
        async with self._client.lend(timeout=15) as connection, self._next_limit():
            await self._client.run(connection, statement)

    def _next_limit(self) -> asyncio.Timeout:
        limit, self._limit = self._limit, None
        return asyncio.timeout(limit)


async def answer_of_a_host(client: Client, query: str = "SELECT inet_server_port()") -> tuple[Any, int]:
    """Ask until there is an answer; and how many callers got an error before."""
    errors = 0
    while True:
        try:
            return await client.value(query), errors
        except ERRORS:
            errors += 1
            assert errors < 50, "nobody is served"


async def replace_all(client: Client) -> None:
    """Have every connection replaced: by the flavour's own method."""
    for name in ("expire_connections", "drain"):
        if hasattr(client.pool, name):
            await getattr(client.pool, name)()
            return
    client.pool.dispose()


def processes_of(server: EmbeddedServer) -> list[int]:
    """The postmaster, and all that it has started."""
    postmaster = server.pid
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
    return [postmaster, *map(int, children.split())]


def sessions_of(server: EmbeddedServer) -> list[int]:
    """The processes that serve clients, or may begin to. No session is needed to see them: there may be no room."""
    return [pid for pid in processes_of(server)[1:] if _is_sessions(Path(f"/proc/{pid}/cmdline"))]


def _is_sessions(title: Path) -> bool:
    try:
        shown = title.read_text()
    except OSError:  # it has ended
        return False
    return not shown.startswith("postgres: ") or "[local]" in shown or re.search(r"\(\d+\)", shown) is not None


@contextmanager
def frozen(processes: Iterable[int]) -> Iterator[None]:
    """Stop processes for a while. The first one goes on last: a postmaster, after its sessions."""
    stopped = list(processes)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)


def until_replicated(primary: EmbeddedServer, standby: EmbeddedServer) -> None:
    """Wait until the standby has all that the primary has written."""
    with connect(primary.dsn) as connection:
        row = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
    with connect(standby.dsn) as connection:
        query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        eventually(lambda: connection.execute(query, row).fetchone()[0], "the standby has it")  # type: ignore[index]


def follow(old: EmbeddedServer, new: EmbeddedServer) -> None:
    """Start a primary that was stopped before the other one was promoted, as the standby of that one."""
    data = Path(old._running.directory, "data")
    (data / "standby.signal").touch()
    parts = urlsplit(new.dsn)
    with (data / "postgresql.conf").open("a") as settings:
        source = f"host={parts.hostname} port={parts.port} user={parts.username} password={parts.password}"
        settings.write(f"primary_conninfo = '{source}'\n")
    old.control("start")
