"""The claims that `docs/article.md` goes through, each tried on what is installed here."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import psycopg_pool
import pytest

import helpers
from loopaware_pool.cli.demo import scenes as demo_scenes

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool.testing.embedded_server import EmbeddedServer

pytestmark = [pytest.mark.thorough, pytest.mark.both_pythons]


def test_asyncpg_does_not_use_libpq(dsn: str) -> None:
    """A process that has queried a server through asyncpg has no libpq loaded."""
    program = (
        "import asyncio, asyncpg, sys\n"
        "async def main():\n"
        "    connection = await asyncpg.connect(sys.argv[1])\n"
        "    assert await connection.fetchval('SELECT 1') == 1\n"
        "    await connection.close()\n"
        "asyncio.run(main())\n"
        "print('libpq' in open('/proc/self/maps').read())\n"
    )
    outcome = subprocess.run([sys.executable, "-c", program, dsn], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "False"


def test_the_selector_loop_is_level_triggered(run: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A reader that leaves half of what arrived unread is called again, though nothing new arrives."""
    reading, writing = socket.socketpair()
    received: list[bytes] = []

    async def read_by_halves() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def read() -> None:
            received.append(reading.recv(1))
            if len(received) == 2:
                done.set_result(None)

        loop.add_reader(reading, read)
        writing.send(b"ab")
        await done
        loop.remove_reader(reading)

    with reading, writing:
        run(read_by_halves())
    assert received == [b"a", b"b"]


@pytest.mark.parametrize("version", ["server", "pg17_server"])
def test_there_is_no_setting_async_client_compatibility(version: str, request: pytest.FixtureRequest) -> None:
    """PostgreSQL 17 and 18 both refuse the setting that the article tells to change."""
    server: EmbeddedServer = request.getfixturevalue(version)
    with psycopg.connect(server.dsn) as connection, pytest.raises(psycopg.errors.UndefinedObject):
        connection.execute("SET async_client_compatibility = on")


def test_psycopg_has_no_adaptive_pool() -> None:
    """Neither psycopg nor its pool package has the class that the article recommends."""
    assert not hasattr(psycopg, "AdaptivePool")
    assert not hasattr(psycopg_pool, "AdaptivePool")


def test_the_articles_pool_deadlocks_with_more_tasks_than_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that waits for a connection holds the lock without which nobody can bring one back."""

    async def have_two_tasks_share_one_connection() -> bool:
        pool = demo_scenes.ArticleDesign(["the connection"])
        connection = await pool.acquire()
        waiting = asyncio.ensure_future(pool.acquire())
        bringing = asyncio.ensure_future(pool.release(connection))
        sleep = asyncio.sleep
        monkeypatch.setattr(asyncio, "sleep", lambda _: sleep(0))
        for _ in range(1000):
            await sleep(0)
        is_stuck = not waiting.done() and not bringing.done()
        for task in (waiting, bringing):
            task.cancel()
        await asyncio.gather(waiting, bringing, return_exceptions=True)
        return is_stuck

    assert asyncio.run(have_two_tasks_share_one_connection())


def test_the_articles_reproduction_fails_because_all_tasks_share_one_connection(dsn: str) -> None:
    """Of 10,000 queries at once on one connection, 9,999 fail: with an error about that, not for want of fds."""

    async def burst() -> list[Any]:
        connection = await asyncpg.connect(dsn)
        outcomes = await asyncio.gather(
            *(connection.fetchval("SELECT 1") for _ in range(10_000)), return_exceptions=True
        )
        await connection.close()
        return outcomes

    failures = [outcome for outcome in asyncio.run(burst()) if isinstance(outcome, Exception)]
    assert len(failures) == 9_999
    assert {str(failure) for failure in failures} == {"cannot perform operation: another operation is in progress"}


@pytest.mark.usefixtures("zero_fd_delta")
def test_asyncpgs_own_pool_leaks_no_fd_when_it_is_closed(dsn: str) -> None:
    """10,000 queries of 50 tasks through asyncpg's pool, closed in the end, leave as many sockets as there were."""

    async def burst() -> None:
        async with asyncpg.create_pool(dsn, min_size=10, max_size=10) as pool:

            async def query() -> None:
                for _ in range(200):
                    await pool.fetchval("SELECT 1")

            await asyncio.gather(*(query() for _ in range(50)))

    before = helpers.socket_count()
    asyncio.run(burst())
    assert helpers.socket_count() == before
