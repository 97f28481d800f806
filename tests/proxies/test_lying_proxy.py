"""A proxy that shares server connections, and the user or the proxy itself says that it does not."""

from __future__ import annotations

import asyncio
import logging
import struct
from contextlib import asynccontextmanager

import pytest

from helpers import make_known
from loopaware_pool.asyncpg import create_pool
from pgbouncer import pgbouncer
from running import make_pool, take_all

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]

QUESTION = "SELECT $1::text"
SHARED = "gives one server connection to several of the pool's connections"
_SSL_REQUEST, _CANCEL_REQUEST = 80877103, 80877102


class ServerSide:
    """One connection of a sharing proxy's to the server, and the client that has it."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.welcome = b""
        self.client = None

    async def message(self):
        head = await self.reader.readexactly(5)
        return head + await self.reader.readexactly(int.from_bytes(head[1:], "big") - 4)

    async def begin(self, startup):
        self.writer.write(startup)
        while not self.welcome.endswith(b"Z\0\0\0\5I"):
            self.welcome += await self.message()


class SharingProxy:
    """
    Gives a server connection to a client for one transaction.

    It announces to each client the process of a connection that is free, so that the right process answers the first
    question. It counts simple queries and Syncs only: with the last answer to those it takes the connection away, and
    whatever else was asked is lost, as PgBouncer 1.18 does.
    """

    def __init__(self, path):
        self.path = path
        self.free = []
        self.lost = 0
        self._tasks = set()

    async def serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        try:
            await self._serve(reader, writer)
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader, writer):
        head = await reader.readexactly(8)
        length, code = struct.unpack("!II", head)
        if code == _CANCEL_REQUEST:
            return
        startup = head + await reader.readexactly(length - 8)
        server = await self._take(startup)
        writer.write(server.welcome)
        self.free.append(server)
        answers = None
        while True:
            head = await reader.readexactly(5)
            message = head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
            if head[:1] == b"X":
                return
            if answers is None or answers.done():
                server = await self._take(startup)
                server.due = 0
                answers = asyncio.create_task(self._answer(server, writer))
                self._tasks.add(answers)
            server.due += head[:1] in b"QS"
            server.is_ahead = head[:1] not in b"QS"
            server.writer.write(message)

    async def _answer(self, server, writer):
        while True:
            message = await server.message()
            writer.write(message)
            if message[:1] == b"Z":
                server.due -= 1
                if not server.due and message[5:] == b"I":
                    break
        if server.is_ahead:
            self.lost += 1
            server.writer.close()
        else:
            self.free.append(server)

    async def _take(self, startup):
        if self.free:
            return self.free.pop()
        server = ServerSide(*await asyncio.open_unix_connection(self.path))
        self._tasks.add(server)
        await server.begin(startup)
        return server

    async def close(self):
        tasks = {task for task in self._tasks if isinstance(task, asyncio.Task)}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._tasks - tasks:
            server.writer.close()
        await asyncio.sleep(0)


@asynccontextmanager
async def sharing_proxy(server):
    """Gives the proxy, and the DSN of the way through it."""
    folder, port = server.unix_dsn.partition("host=")[2].split("&port=")
    proxy = SharingProxy(f"{folder.replace('%2F', '/')}/.s.PGSQL.{port}")
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield proxy, f"postgresql://postgres@127.0.0.1:{listener.sockets[0].getsockname()[1]}/postgres?sslmode=disable"
    finally:
        listener.close()
        await proxy.close()


@pytest.fixture
def trusting_server(server):
    """A server that can be reached without a password."""
    if not hasattr(server, "unix_dsn"):
        pytest.skip("the server was not started by the tests")
    return server


def warnings_of(caplog):
    """What pools have warned of."""
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING and "pool" in each.name]


@pytest.mark.parametrize("session_reset", ["auto", "pipelined"])
def test_a_process_that_answers_two_connections_gives_a_sharing_proxy_away(trusting_server, run, caplog, session_reset):
    """Although each connection is answered by the process that was announced: nothing is sent behind a reset then."""
    make_known(QUESTION)

    async def main():
        async with sharing_proxy(trusting_server) as (proxy, dsn):
            options = {"session_reset": session_reset, "statement_cache_size": 0, "command_timeout": 10}
            async with make_pool(dsn, max_size=3, **options) as pool:
                await take_all(pool)
                for _ in range(3):
                    asked = (pool.fetchval(QUESTION, str(number)) for number in range(50))
                    assert await asyncio.gather(*asked) == [str(number) for number in range(50)]
            assert not proxy.lost

    run(main())
    warnings = warnings_of(caplog)
    assert len(warnings) == 1, warnings
    (warning,) = warnings
    assert SHARED in warning
    assert 'session_reset="never"' in warning


async def succeed_in_resetting(pool):
    """No call is sent behind the resets of a connection before one of them has succeeded; the next call is."""
    for _ in range(2):
        assert await pool.fetchval(QUESTION, "1") == "1"
    assert pool._driver.has_reset


def test_a_query_that_a_lying_proxy_loses_costs_its_caller_its_own_time(trusting_server, run, caplog):
    """
    With one connection there is nothing to compare at first. The caller gets a timeout, and nothing is lost but that
    query. Then the pool asks which process answers now, and sends nothing behind a reset any more.
    """
    make_known(QUESTION)

    async def main():
        options = {"max_size": 1, "statement_cache_size": 0}
        async with sharing_proxy(trusting_server) as (proxy, dsn), make_pool(dsn, **options) as pool:
            await succeed_in_resetting(pool)
            with pytest.raises(TimeoutError):
                await pool.fetchval(QUESTION, "2", timeout=0.3)
            assert proxy.lost == 1
            await take_all(pool)
            stats = pool.stats()
            assert (stats.size, stats.lent, stats.waiting, pool._core.permits.in_use) == (1, 0, 0, 1)
            for number in range(5):
                assert await pool.fetchval(QUESTION, str(number)) == str(number)
            assert proxy.lost == 1

    run(main())
    warnings = warnings_of(caplog)
    assert len(warnings) == 1, warnings
    (warning,) = warnings
    assert SHARED in warning


def test_another_warning_does_not_keep_a_sharing_proxy_from_being_named(trusting_server, run, caplog):
    """Each reason is told, although another one was told before; and told once."""

    async def main():
        async with sharing_proxy(trusting_server) as (_, dsn):
            options = {"statement_cache_size": 0, "command_timeout": 10}
            async with make_pool(dsn, max_size=3, **options) as pool:
                pool._driver.warn_once("something else")
                for _ in range(2):
                    await take_all(pool)
                    await pool.expire_connections()

    run(main())
    first, second = warnings_of(caplog)
    assert first == "something else"
    assert SHARED in second


def test_a_slow_query_is_no_lost_one(dsn, run, caplog):
    """Its cancellation is answered."""
    make_known("SELECT pg_sleep($1)", QUESTION)

    async def main():
        async with make_pool(dsn, max_size=1) as pool:
            await succeed_in_resetting(pool)
            with pytest.raises(TimeoutError):
                await pool.fetchval("SELECT pg_sleep($1)", 60, timeout=0.1)
            await take_all(pool)

    run(main())
    assert not warnings_of(caplog)


def test_a_false_promise_is_found_out(dsn, pgbouncer_program, run, caplog):
    """
    "pipelined" before a PgBouncer in transaction mode: it has fewer sessions than the pool has connections, so one
    process answers two of them. All callers are answered.
    """
    make_known(QUESTION)

    async def main(address):
        options = {"session_reset": "pipelined", "statement_cache_size": 0, "command_timeout": 10}
        async with create_pool(address, min_size=4, max_size=4, **options) as pool:
            for _ in range(3):
                asked = (pool.fetchval(QUESTION, str(number)) for number in range(100))
                assert await asyncio.gather(*asked) == [str(number) for number in range(100)]

    with pgbouncer(pgbouncer_program, dsn, pool_mode="transaction", default_pool_size=3) as address:
        run(main(address))
    warnings = warnings_of(caplog)
    assert len(warnings) == 1, warnings
    (warning,) = warnings
    assert SHARED in warning


def test_a_kept_promise_is_believed(dsn, pgbouncer_program, run, caplog):
    """In session mode each connection has a process of its own, also one that another connection had before."""
    make_known(QUESTION)

    async def main(address):
        async with make_pool(address, session_reset="pipelined", max_size=2) as pool:
            for _ in range(3):
                await take_all(pool)
                await pool.expire_connections()
            asked = (pool.fetchval(QUESTION, str(number)) for number in range(100))
            assert await asyncio.gather(*asked) == [str(number) for number in range(100)]
            assert all(session._guarded is not None for session in pool._sessions())

    with pgbouncer(pgbouncer_program, dsn, pool_mode="session") as address:
        run(main(address))
    assert not warnings_of(caplog)
