"""Both flavours on a server whose every byte is in the script."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext

import asyncpg
import psycopg
import pytest

import helpers
import psycopg_pools
from loopaware_pool._core import housekeeping, runner, shard
from loopaware_pool.asyncpg import session as asyncpg_session
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.psycopg import session as psycopg_session
from loopaware_pool.stats import ConnectionClosed
from loopaware_pool.testing import FakeServer
from loopaware_pool.testing.fake_server import (
    NOTICE,
    NOTIFICATION,
    READY,
    ROWS,
    completed,
    error,
    is_reset,
    message,
    parameter,
    reset_answer,
    reset_messages,
)
from running import eventually_async, make_pool, until_read

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]

SAYS = {
    "an error": error("42501"),
    "a goodbye": error("57P01", "FATAL"),
    "an answer": completed("evil") + READY,
    "half an answer": ROWS,
    "a readiness": READY,
    "a copy": message(b"H", b"\0\0\0"),
    "nonsense": b"\0" * 16,
}
HARMLESS = {"a notice": NOTICE, "a parameter": parameter("TimeZone", "Mars"), "a notification": NOTIFICATION}


@asynccontextmanager
async def asyncpg_pool(server, **options):
    async with make_pool(server.asyncpg_dsn, **{"max_size": 1, "server_settings": {}} | options) as pool:
        yield pool, pool.execute


@asynccontextmanager
async def psycopg_pool(server, **options):
    options = {"min_size": 0, "max_size": 1, "discard_dead": "always", "session_reset": "awaited"} | options
    async with psycopg_pools.make_pool(AsyncConnectionPool, server.dsn, **options) as pool:

        async def execute(query, **options):
            async with pool.connection(**options) as connection:
                return (await connection.execute(query)).statusmessage

        yield pool, execute


both = pytest.mark.parametrize("open_pool", [asyncpg_pool, psycopg_pool])


def client_socket(pool):
    (row,) = pool.fd_report()
    return row.identity.fd


# ---- the answer to a reset ----


@pytest.mark.parametrize("position", range(7))
@both
def test_an_error_in_the_middle_of_a_resets_answer_costs_a_connection(run, open_pool, position):
    """Whatever was answered before it: the next caller gets another."""

    def answer(_, query):
        if is_reset(query) and not is_broken:
            is_broken.append(True)
            return b"".join(reset_messages(query)[:position]) + error("42501") + READY
        return reset_answer(query) if is_reset(query) else completed(query) + READY

    async def main():
        async with FakeServer(answer) as server, open_pool(server) as (pool, execute):
            assert await execute("first") == "first"
            await pool.settled()
            assert await execute("second") == "second"
            assert len(server.sessions) == 2
            await eventually_async(lambda: server.sessions[0].has_left, "the end of the first")
            assert sum(loop.counters.reset_failures for loop in pool.stats().loops) == 1

    is_broken: list[bool] = []
    run(main())


def test_a_caller_whose_query_is_behind_a_reset_that_fails_hears_of_it(run):
    """He has a connection that is of no use any more; his query has run, or not: nobody can know."""

    async def main():
        async with FakeServer() as server, asyncpg_pool(server) as (pool, execute):
            await execute("first")
            await pool.settled()
            await execute_unanswered(server, pool)
            server.answer = lambda session, query: None
            async with pool.acquire() as connection:
                query = asyncio.create_task(connection.execute("behind"))
                await eventually_async(lambda: server.session.queries[-1] == "behind", "a query behind the reset")
                server.session.send(completed() + error("42501") + READY + completed("behind") + READY)
                with pytest.raises((asyncpg.ConnectionDoesNotExistError, asyncpg.InterfaceError)):
                    await query
            server.answer = answered
            assert await execute("next") == "next"

    run(main())


def answered(_, query):
    return reset_answer(query) if is_reset(query) else completed(query) + READY


async def execute_unanswered(server, pool):
    """Lend and release once, with a query that is answered and leaves nothing, and a reset that is not answered."""
    server.answer = lambda session, query: None if is_reset(query) else completed(query) + READY
    helpers.make_known("SELECT 1")
    await pool.execute("SELECT 1")
    await eventually_async(lambda: is_reset(server.session.queries[-1]), "a reset")


async def query_of_a_followed_reset(server, pool):
    """Lend and release; return the reset that comes after a lease which has left nothing, and after another reset."""
    helpers.make_known("SELECT 1")
    for _ in range(2):
        await pool.execute("SELECT 1")
        await pool.settled()
    return server.session.queries[-1]


@pytest.mark.parametrize("is_pipelined", [False, True], ids=["idle", "lent"])
def test_a_resets_answer_split_at_every_byte_is_understood(run, is_pipelined):
    """With the next query's answer behind it or not; and that is still the answer to that query."""

    async def main():
        async with FakeServer() as server, asyncpg_pool(server) as (pool, execute):
            whole = reset_answer(await query_of_a_followed_reset(server, pool))
            for cut in range(1, len(whole)):
                await pool.settled()
                await execute_unanswered(server, pool)
                server.answer = answered
                caller = None
                if is_pipelined:
                    server.answer = lambda session, query: None
                    caller = asyncio.create_task(execute(f"behind {cut}"))
                    await eventually_async(lambda: server.session.queries[-1] == f"behind {cut}", "its query")  # noqa: B023
                server.session.send(whole[:cut])
                await until_read(client_socket(pool))
                rest = whole[cut:]
                if caller is None:
                    server.session.send(rest)
                    await pool.settled()
                else:
                    server.answer = answered
                    server.session.send(rest + completed(f"behind {cut}") + READY)
                    assert await caller == f"behind {cut}"
                assert await execute(f"then {cut}") == f"then {cut}"
            assert len(server.sessions) == 1

    run(main())


def test_a_resets_answer_that_drips_is_understood(run):
    """Byte by byte, with the answer to the next query behind it."""

    async def main():
        async with FakeServer() as server, asyncpg_pool(server) as (pool, execute):
            whole = reset_answer(await query_of_a_followed_reset(server, pool))
            await execute_unanswered(server, pool)
            server.answer = lambda session, query: None
            caller = asyncio.create_task(execute("behind"))
            await eventually_async(lambda: server.session.queries[-1] == "behind", "its query")
            server.answer = answered
            for byte in whole + completed("behind") + READY:
                server.session.send(bytes([byte]))
                await until_read(client_socket(pool))
            assert await caller == "behind"
            assert len(server.sessions) == 1

    run(main())


@both
def test_what_may_come_unasked_may_come_between_the_messages_of_a_resets_answer(run, open_pool):
    """It reaches the driver, and the connection is used again."""
    between = b"".join(HARMLESS.values())

    def answer(_, query):
        return between.join([b"", *reset_messages(query), b""]) if is_reset(query) else completed(query) + READY

    async def main():
        async with FakeServer(answer) as server, open_pool(server) as (pool, execute):
            for number in range(5):
                assert await execute(f"query {number}") == f"query {number}"
                await pool.settled()
            assert len(server.sessions) == 1
            if open_pool is asyncpg_pool:
                async with pool.acquire() as connection:
                    assert connection.get_settings().TimeZone == "Mars"
            else:
                async with pool.connection() as connection:
                    assert connection.info.parameter_status("TimeZone") == "Mars"

    run(main())


@pytest.mark.parametrize("extra", SAYS.values(), ids=SAYS)
def test_surplus_bytes_behind_a_resets_answer_reach_nobody(run, extra):
    """The connection is given up: the next caller would take them for his answer."""

    def answer(session, query):
        if is_reset(query):
            return reset_answer(query) + (extra if session is server_of[0].sessions[0] else b"")
        return completed(query) + READY

    async def main():
        async with FakeServer(answer) as server, asyncpg_pool(server) as (pool, execute):
            server_of.append(server)
            assert await execute("first") == "first"
            await eventually_async(lambda: not pool.get_size(), "the end of the first connection")
            assert await execute("second") == "second"
            await pool.settled()
            assert await execute("third") == "third"
            assert len(server.sessions) == 2

    server_of: list[FakeServer] = []
    run(main())


# ---- what comes while nobody has the connection ----


@pytest.mark.parametrize("is_parked", [True, False], ids=["parked", "watched"])
@pytest.mark.parametrize("said", SAYS.values(), ids=SAYS)
def test_a_connection_that_speaks_while_idle_is_not_lent(run, said, is_parked):
    """Though it be open: a server that shuts down says so a moment before it hangs up."""

    async def main():
        async with FakeServer() as server, asyncpg_pool(server, max_size=2) as (pool, execute):
            async with pool.acquire() as other:  # while somebody has a connection, others stay watched for a while
                await other.execute("other")
                await execute("first")
                if not is_parked:
                    await eventually_async(lambda: is_settled(pool), "an answer to the reset")
                    server.session.send(said)
                    await asyncio.sleep(0)
                    assert await execute("second") == "second"
                else:
                    await pool.settled()
            if is_parked:
                await pool.settled()
                for session in server.sessions:
                    session.send(said)
                await asyncio.sleep(0)
                assert await execute("second") == "second"
            assert len(server.sessions) >= 3

    def is_settled(pool):
        return all(session.is_settled for session in pool._holders if hasattr(session, "is_settled"))

    run(main())


@pytest.mark.parametrize("said", HARMLESS.values(), ids=HARMLESS)
@both
def test_a_connection_that_says_what_it_may_is_lent(run, open_pool, said):
    """A notification is not a death."""

    async def main():
        async with FakeServer() as server, open_pool(server) as (pool, execute):
            await execute("first")
            await pool.settled()
            for number in range(3):
                server.session.send(said)
                await asyncio.sleep(0)
                assert await execute(f"query {number}") == f"query {number}"
                await pool.settled()
            assert len(server.sessions) == 1

    run(main())


@pytest.mark.parametrize("hangs_up", [True, False])
@both
def test_a_connection_that_is_told_of_a_shutdown_is_not_lent(run, open_pool, hangs_up):
    """57P01, with the end of the connection or before it."""

    async def main():
        async with FakeServer() as server, open_pool(server) as (pool, execute):
            await execute("first")
            await pool.settled()
            server.session.send(error("57P01", "FATAL"))
            if hangs_up:
                server.session.hang_up()
            await asyncio.sleep(0)
            assert await execute("second") == "second"
            assert len(server.sessions) == 2

    run(main())


@both
def test_a_connection_on_which_a_caller_heard_of_a_shutdown_is_not_lent(run, open_pool):
    """57P01 is the answer to his query; the end of the connection has not come yet."""

    async def main():
        async with FakeServer() as server, open_pool(server, max_size=1) as (_, execute):
            server.answer = lambda session, query: error("57P01") + READY
            with pytest.raises((asyncpg.PostgresError, psycopg.Error), match="57P01"):
                await execute("first")
            server.answer = answered
            assert await execute("second") == "second"
            assert len(server.sessions) == 2
            assert server.sessions[0].queries == ["first"]

    run(main())


IDLE_IN_TRANSACTION = error("25P03", "FATAL", "terminating connection due to idle-in-transaction timeout")


async def execute_in_transaction(connection):
    async with connection.transaction():
        await connection.execute("never")


async def begin(connection):
    await connection.transaction().start()


@pytest.mark.parametrize("hangs_up", [True, False])
@pytest.mark.parametrize(
    "use",
    [lambda connection: connection.execute("never"), begin, execute_in_transaction],
    ids=["call", "begin", "block"],
)
@pytest.mark.parametrize("is_behind_reset", [True, False], ids=["behind a reset", "idle"])
def test_a_caller_whose_session_has_ended_unasked_hears_of_that(run, is_behind_reset, use, hangs_up):
    """Between the server's last word and the end of the connection, asyncpg blames the caller for two operations."""

    async def main():
        async with FakeServer() as server, asyncpg_pool(server) as (pool, execute):
            await execute("first")
            await pool.settled()
            last_words = IDLE_IN_TRANSACTION
            if is_behind_reset:
                await execute_unanswered(server, pool)
                last_words = reset_answer(server.session.queries[-1]) + last_words
                server.answer = answered
            async with pool.acquire() as connection:
                asked = len(server.session.queries)
                server.session.send(last_words)
                await until_read(client_socket(pool))
                with pytest.raises(asyncpg.ConnectionDoesNotExistError, match="closed by the server before"):
                    await use(connection)
                if hangs_up:
                    server.session.hang_up()
            assert await execute("next") == "next"
            assert len(server.sessions) == 2
            assert len(server.sessions[0].queries) == asked

    run(main())


@pytest.mark.parametrize("session_reset", ["awaited", "pipelined"])
def test_a_release_that_finds_the_session_ended_says_so(run, session_reset):
    """A reset that has to be awaited is refused as any other operation."""

    async def reset(connection):
        await connection.execute("never")

    async def main():
        options = {"session_reset": session_reset} | ({"reset": reset} if session_reset == "pipelined" else {})
        async with FakeServer() as server, asyncpg_pool(server, **options) as (pool, execute):
            with pytest.raises(asyncpg.ConnectionDoesNotExistError, match="closed by the server before"):
                async with pool.acquire() as connection:
                    await connection.execute("first")
                    server.session.send(IDLE_IN_TRANSACTION)
                    await until_read(client_socket(pool))
            assert await execute("next") == "next"
            assert len(server.sessions) == 2

    run(main())


@both
def test_an_answer_that_drips_is_the_answer(run, open_pool):
    """Byte by byte, welcome included."""

    async def main():
        async with FakeServer(lambda session, query: None) as server, open_pool(server) as (_, execute):
            welcome, server.welcome = server.welcome, None
            caller = asyncio.create_task(execute("first"))
            await eventually_async(lambda: server.sessions, "a client")
            for byte in welcome:
                server.session.send(bytes([byte]))
                await asyncio.sleep(0)
            await eventually_async(lambda: server.session.queries, "a query")
            for byte in NOTICE + completed("first") + READY:
                server.session.send(bytes([byte]))
                await asyncio.sleep(0)
            server.answer = answered
            if is_reset(server.session.queries[-1]):
                server.session.send(reset_answer(server.session.queries[-1]))
            assert await caller == "first"

    run(main())


# ---- a server that answers nothing ----


@both
def test_a_server_that_does_not_welcome_anybody_is_waited_for_until_the_deadline(run, open_pool):
    """And the pool closes all the same."""

    async def main():
        async with FakeServer() as server:
            server.welcome = None
            async with open_pool(server) as (pool, _):
                acquire = pool.acquire if open_pool is asyncpg_pool else pool.connection
                for _ in range(2):
                    with pytest.raises((TimeoutError, psycopg.OperationalError), match="couldn't get a connection"):
                        await acquire(timeout=0.1).__aenter__()
                if open_pool is asyncpg_pool:
                    pool.terminate()
                else:
                    await pool.close(timeout=0.1)

    run(main())


def test_a_reset_that_is_not_answered_costs_the_connection(run, monkeypatch):
    """In time; `RESET_ANSWER_SECONDS` is 30."""
    monkeypatch.setattr(housekeeping, "RESET_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(shard, "RESET_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(shard, "LEAST_ANSWER_SECONDS", 0.1)
    reasons = []

    def listen(event):
        if isinstance(event, ConnectionClosed):
            reasons.append(event.reason)

    async def main():
        async with FakeServer() as server, asyncpg_pool(server, on_event=listen) as (pool, execute):
            await execute_unanswered(server, pool)
            await eventually_async(lambda: reasons == ["reset not answered"], "its end")
            server.answer = answered
            assert await execute("next") == "next"

    run(main())


@both
def test_an_awaited_reset_that_is_not_answered_ends_in_time(run, open_pool, monkeypatch):
    """It is 30 seconds, or what the acquire was given."""
    monkeypatch.setattr(asyncpg_session, "RESET_SECONDS", 0.1)
    monkeypatch.setattr(psycopg_session, "RESET_SECONDS", 0.1)

    async def main():
        def answer(_, query):
            return None if is_reset(query) else completed(query) + READY

        async with FakeServer(answer) as server, open_pool(server, session_reset="awaited") as (pool, execute):
            with pytest.raises(TimeoutError) if open_pool is asyncpg_pool else nullcontext():
                await execute("first")
            async with asyncio.timeout(2):  # a driver's cancellation may take longer
                await eventually_async(lambda: server.session.has_left, "its end")
            monkeypatch.undo()  # the next one is answered, and has all the time
            server.answer = answered
            assert await execute("next") == "next"
            await pool.settled()

    run(main())


@both
def test_a_ping_that_is_not_answered_costs_the_connection(run, open_pool, monkeypatch):
    """In time, though a cancellation be not answered either; `GOODBYE_SECONDS` is 10."""
    monkeypatch.setattr(runner, "GOODBYE_SECONDS", 0.1)

    async def main():
        async with FakeServer() as server, open_pool(server, keepalive=0.05) as (pool, execute):
            await execute("first")
            await pool.settled()
            server.answer = lambda session, query: None
            await eventually_async(lambda: server.session.queries[-1] in ("", "SELECT 1"), "a ping")
            async with asyncio.timeout(2):
                await eventually_async(lambda: server.session.has_left, "its end")
            server.answer = answered
            assert await execute("next") == "next"
            assert sum(loop.counters.found_dead for loop in pool.stats().loops) == 1

    run(main())


def test_the_goodbye_of_a_connection_that_nobody_answers_is_bounded(run, monkeypatch):
    """`close()` waits for it that long, and no longer."""
    monkeypatch.setattr(runner, "GOODBYE_SECONDS", 0.1)

    async def main():
        async with FakeServer() as server:
            async with asyncpg_pool(server) as (pool, execute):
                await execute("first")
                await pool.settled()
                server.session.is_deaf = True
            assert not pool.get_size()

    run(main())
