"""Loops, threads and waiting, for tests that own their loops."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import signal
import struct
import subprocess
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

import helpers
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.testing import LoopThread, end_abruptly, end_politely

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loopaware_pool.asyncpg import Pool

__all__ = [
    "DEADLINE_SECONDS",
    "NOWHERE",
    "LoopThread",
    "ask",
    "child_process",
    "end_abruptly",
    "end_politely",
    "eventually",
    "eventually_async",
    "make_pool",
    "no_session_left",
    "no_socket_left",
    "take_all",
    "until_read",
    "until_server_waits",
]

# After this a test is wrong or the machine is ill; nothing is expected to take a hundredth of it.
DEADLINE_SECONDS = 20.0
_POLL_SECONDS = 0.005
# Where nobody listens.
NOWHERE = "postgresql://postgres@127.0.0.1:1/postgres"
_numbers = itertools.count(1)


@contextmanager
def child_process(arguments: list[Any], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that Ctrl-C ends, even where this one ignores it (as under nohup); it is killed if the block fails."""
    with subprocess.Popen(arguments, preexec_fn=_listen_to_ctrl_c, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _listen_to_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def make_pool(dsn: str | None, **options: Any) -> Pool:
    """A pool that keeps nothing open unasked, and whose name is the application name of its sessions."""
    name = f"pool-{os.getpid()}-{next(_numbers)}"
    settings = {"application_name": name}
    return create_pool(dsn, **{"name": name, "min_size": 0, "max_size": 2, "server_settings": settings} | options)


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(_POLL_SECONDS)


async def eventually_async(condition: Callable[[], object], what: str) -> None:
    """Wait until *condition* holds, while the loop runs."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        await asyncio.sleep(_POLL_SECONDS)


async def ask(pool: Pool, query: str = "SELECT 1", **options: Any) -> Any:
    """The first value that a query gives, on a connection acquired with those options."""
    async with pool.acquire(**options) as connection:
        return await connection.fetchval(query)


async def take_all(pool: Pool) -> None:
    """Lend everything the pool has at once: no slot is lost."""
    connections = [await pool.acquire(timeout=DEADLINE_SECONDS) for _ in range(pool.get_max_size())]
    assert [await connection.fetchval("SELECT 1") for connection in connections] == [1] * len(connections)
    for connection in connections:
        await pool.release(connection)


async def until_server_waits(dsn: str, pool: Pool) -> None:
    """Wait until the server is in the middle of a query of *pool*'s: one that sleeps, or waits for a lock."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state = 'active' "
        "AND wait_event IN ('PgSleep', 'advisory')"
    )

    def waits() -> bool:
        with psycopg.connect(dsn) as connection:
            return bool(connection.execute(query, [pool.name]).fetchone()[0])

    await eventually_async(waits, "a query that waits")


def no_session_left(dsn: str, pool: Pool) -> None:
    """The server, too, comes to know that a pool has no connection any more."""
    eventually(lambda: not helpers.server_sessions(dsn, pool.name), f"no session of {pool.name} on the server")


@contextmanager
def no_socket_left() -> Iterator[None]:
    """What is open at the end was open at the beginning."""
    before = helpers.open_sockets()
    yield
    left = [helpers.describe_socket(fd) for name, fd in helpers.open_sockets().items() if name not in before]
    assert not left


async def until_read(sock: Any) -> None:
    """Wait until all that has come for a socket of this process has been read."""
    while struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]:
        await asyncio.sleep(0)
