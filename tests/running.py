"""Loops, threads and waiting, for tests that own their loops."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

import helpers
from loopaware_pool.asyncpg import create_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from concurrent.futures import Future

    from loopaware_pool.asyncpg import Pool

__all__ = [
    "DEADLINE_SECONDS",
    "LoopThread",
    "end_abruptly",
    "end_politely",
    "eventually",
    "eventually_async",
    "make_pool",
    "no_session_left",
    "no_socket_left",
    "until_server_waits",
]

# After this a test is wrong or the machine is ill; nothing is expected to take a hundredth of it.
DEADLINE_SECONDS = 20.0
_POLL_SECONDS = 0.005
_numbers = itertools.count(1)


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


def end_politely(loop_factory, work):
    """As `asyncio.run` does: tasks cancelled, async generators closed, then the loop."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work)


def end_abruptly(loop_factory, work):
    """As programs that know no better."""
    loop = loop_factory()
    loop.run_until_complete(work)
    with warnings.catch_warnings():
        # uvloop warns of every socket that it has to close itself, and where warnings are errors does not close it.
        warnings.simplefilter("ignore", ResourceWarning)
        loop.close()


class LoopThread:
    """A loop that runs in a thread of its own until the end of the `with` block; then it ends as in `asyncio.run`."""

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop: asyncio.AbstractEventLoop
        self._loop_factory = loop_factory
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="loop-thread", daemon=True)

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._ready.set()
        await self._end.wait()

    def start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Have the loop do *work*."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Have the loop do *work*, and wait for it."""
        return self.start(work).result(DEADLINE_SECONDS)

    def __enter__(self) -> LoopThread:
        self._thread.start()
        assert self._ready.wait(DEADLINE_SECONDS)
        return self

    def __exit__(self, *exc: object) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive(), "the loop does not end"
