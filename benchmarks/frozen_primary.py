"""
How long callers are without an answer when a primary freezes and its standby is promoted, on pools of all kinds.

    python -m benchmarks.frozen_primary

It starts two servers with streaming replication for each pool, and stops all processes of the primary, or has the
network to it pass nothing on. Callers allow 1 s for a query, 2 s for a connect, and 30 s for a connection.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import asyncpg
import psycopg_pool
from sqlalchemy import text
from sqlalchemy.ext import asyncio as sqlalchemy

import loopaware_pool.psycopg
import loopaware_pool.sqlalchemy
from loopaware_pool.testing import FaultProxy
from loopaware_pool.testing.embedded_server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    Ask = Callable[[], Awaitable[int]]

__all__: list[str] = []

QUERY_SECONDS: Final = 1.0
CONNECT_SECONDS: Final = 2
DEADLINE_SECONDS: Final = 30.0
CONNECTIONS: Final = 4
CALLERS: Final = 2
WARM_SECONDS: Final = 1.5
QUERY: Final = "SELECT inet_server_port()"


@asynccontextmanager
async def _asyncpg(create_pool: Any, login: str, hosts: str) -> AsyncIterator[Ask]:
    limits = {"timeout": CONNECT_SECONDS, "command_timeout": QUERY_SECONDS, "target_session_attrs": "read-write"}
    async with create_pool(
        f"postgresql://{login}@{hosts}/postgres", min_size=0, max_size=CONNECTIONS, **limits
    ) as pool:

        async def ask() -> int:
            async with pool.acquire(timeout=DEADLINE_SECONDS) as connection:
                return int(await connection.fetchval(QUERY))

        yield ask


@asynccontextmanager
async def _psycopg(kind: Any, login: str, hosts: str) -> AsyncIterator[Ask]:
    options = f"target_session_attrs=read-write&connect_timeout={CONNECT_SECONDS}"
    sizes = {"min_size": 0, "max_size": CONNECTIONS, "timeout": DEADLINE_SECONDS, "open": False}
    async with kind(f"postgresql://{login}@{hosts}/postgres?{options}", kwargs={"autocommit": True}, **sizes) as pool:

        async def ask() -> int:
            async with pool.connection() as connection, asyncio.timeout(QUERY_SECONDS):
                return int((await (await connection.execute(QUERY)).fetchone())[0])

        yield ask


@asynccontextmanager
async def _engine(create: Any, driver: str, login: str, hosts: str) -> AsyncIterator[Ask]:
    limit = "timeout" if driver == "asyncpg" else "connect_timeout"
    arguments = {limit: CONNECT_SECONDS, "target_session_attrs": "read-write"}
    query = "&".join(f"host={host}" for host in hosts.split(","))
    sizes = {"pool_size": CONNECTIONS, "max_overflow": 0, "pool_timeout": DEADLINE_SECONDS}
    engine = create(f"postgresql+{driver}://{login}@/postgres?{query}", connect_args=arguments, **sizes)

    async def ask() -> int:
        async with engine.connect() as connection, asyncio.timeout(QUERY_SECONDS):
            return int((await connection.execute(text(QUERY))).scalar())

    try:
        yield ask
    finally:
        await engine.dispose()


OPENERS: Final[dict[str, Callable[[str, str], Any]]] = {
    "asyncpg": lambda *where: _asyncpg(asyncpg.create_pool, *where),
    "ours": lambda *where: _asyncpg(loopaware_pool.create_pool, *where),
    "psycopg_pool": lambda *where: _psycopg(psycopg_pool.AsyncConnectionPool, *where),
    "ours for psycopg": lambda *where: _psycopg(loopaware_pool.psycopg.AsyncConnectionPool, *where),
    "SQLAlchemy": lambda *where: _engine(sqlalchemy.create_async_engine, "asyncpg", *where),
    "ours for SQLAlchemy": lambda *where: _engine(loopaware_pool.sqlalchemy.create_async_engine, "asyncpg", *where),
    "SQLAlchemy, psycopg": lambda *where: _engine(sqlalchemy.create_async_engine, "psycopg", *where),
    "ours for SQLAlchemy, psycopg": lambda *where: _engine(
        loopaware_pool.sqlalchemy.create_async_engine, "psycopg", *where
    ),
}


@contextmanager
def _stopped(server: EmbeddedServer) -> Iterator[None]:
    """Stop all processes of a server, which then go on."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    pids = [server.pid, *map(int, children.split())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


@contextmanager
def _silenced(proxy: FaultProxy) -> Iterator[None]:
    proxy.freeze()
    try:
        yield
    finally:
        proxy.reset()


class Callers:
    """Callers that ask one after the other; when each had an answer, or an error, after the primary froze."""

    def __init__(self, ask: Ask) -> None:
        self.answers: list[tuple[float, int]] = []
        self.errors: list[float] = []
        self._ask = ask
        self._tasks = [asyncio.create_task(self._go_on()) for _ in range(CALLERS)]

    async def _go_on(self) -> None:
        while True:
            try:
                port = await self._ask()
                self.answers.append((time.monotonic(), port))
            except Exception:  # noqa: BLE001 - whatever it is, the caller has no answer
                self.errors.append(time.monotonic())
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _measure(name: str, how: str, watch_seconds: float) -> str:
    """Return a row of the table."""
    with ExitStack() as stack:
        primary = stack.enter_context(EmbeddedServer())
        standby = stack.enter_context(EmbeddedServer(standby_of=primary.dsn))
        proxy = stack.enter_context(FaultProxy(primary.dsn))
        login = urlsplit(primary.dsn).netloc.rpartition("@")[0]
        hosts = f"127.0.0.1:{primary.port if how == 'stopped' else proxy.port},127.0.0.1:{standby.port}"
        async with OPENERS[name](login, hosts) as ask:
            await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
            await asyncio.sleep(WARM_SECONDS)
            callers = Callers(ask)
            with _stopped(primary) if how == "stopped" else _silenced(proxy):
                began = time.monotonic()
                await asyncio.to_thread(standby.control, "promote")
                while time.monotonic() < began + watch_seconds and len(callers.answers) < 100:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                first = next((at - began for at, port in callers.answers if port == standby.port), None)
                errors = len(callers.errors)
                last = callers.errors[-1] - began if errors else 0.0
            await callers.stop()
    served = "never" if first is None else f"{first:.1f}"
    return f"| {name} | {served} | {errors} | {last:.1f} |"


def _main() -> None:
    parser = argparse.ArgumentParser(description="Time a failover from a frozen primary.")
    parser.add_argument("--how", choices=["stopped", "silent"], default="stopped", help="what the primary is")
    parser.add_argument("--watch", type=float, default=45.0, help="seconds after which nobody is served any more")
    parser.add_argument("pool", nargs="*", help=f"of {', '.join(OPENERS)}; default: all")
    arguments = parser.parse_args()
    logging.disable()
    sys.stdout.write("| | first answer, s | errors | the last of them, s |\n|---|---:|---:|---:|\n")
    for name in arguments.pool or OPENERS:
        sys.stdout.write(asyncio.run(_measure(name, arguments.how, arguments.watch)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
