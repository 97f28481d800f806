"""Servers that say of themselves what is not true, or nothing that can be understood. The servers are scripts."""

from __future__ import annotations

import asyncio

import asyncpg
import psycopg_pool
import pytest

import loopaware_pool.asyncpg
import loopaware_pool.psycopg
from dialects import COCKROACH, CRATE, POSTGRES, REDSHIFT, DialectServer
from helpers import make_known
from loopaware_pool.asyncpg import driver as asyncpg_driver
from loopaware_pool.asyncpg import session as asyncpg_session
from loopaware_pool.psycopg import driver as psycopg_driver
from loopaware_pool.testing.fake_server import READY, message, parameter

pytestmark = pytest.mark.usefixtures("zero_fd_delta")

SECONDS = 0.3
AMPLE_SECONDS = 20.0

# What a server reports behind all that it should.
REPORTS = {
    "a version without a number": parameter("server_version", "nonsense"),
    "no version": parameter("server_version", ""),
    "a negative version": parameter("server_version", "-1"),
    "a version of many digits": parameter("server_version", "9" * 50),
    "an encoding that Python has not": parameter("client_encoding", "EBCDIC"),
    "no encoding": parameter("client_encoding", ""),
    "a name that is no UTF-8": message(b"S", b"\xff\0value\0"),
    "a setting without an end": message(b"S", b"name"),
    "a setting without a name": message(b"S"),
    "three million characters": parameter("application_name", "x" * 3_000_000),
    "one setting 20,000 times": parameter("TimeZone", "UTC") * 20_000,
}
of_reports = pytest.mark.parametrize("report", REPORTS)
# Those behind which a driver waits, for as long as it may.
WAITED_BEHIND = {
    "asyncpg": {"a setting without an end", "a setting without a name"},
    "psycopg": {"a setting without an end", "a setting without a name", "three million characters"},
}


def seconds_of(driver, report):
    return SECONDS if report in WAITED_BEHIND[driver] else AMPLE_SECONDS


async def live_with_asyncpg(create_pool, server, report):
    seconds = seconds_of("asyncpg", report)
    async with create_pool(server.asyncpg_dsn, min_size=0, max_size=1, timeout=seconds) as pool:
        return [await pool.fetchval("SELECT 1") for _ in range(3)]


async def live_with_psycopg(kind, server, report):
    seconds = seconds_of("psycopg", report)
    async with kind(server.dsn, open=False, min_size=0, max_size=1, timeout=seconds) as pool:
        found = []
        for _ in range(3):
            async with pool.connection() as connection:
                found.append(await (await connection.execute("SELECT 1")).fetchone())
        return found


async def outcome(live, pool, report):
    """What comes of it, within the callers' time: the answers, or the kind of the error and its first words."""
    async with DialectServer(POSTGRES) as server:
        assert server.welcome.endswith(READY)
        server.welcome = server.welcome.removesuffix(READY) + REPORTS[report] + READY
        try:
            async with asyncio.timeout(2 * AMPLE_SECONDS):
                return await live(pool, server, report)
        except (psycopg_pool.PoolTimeout, TimeoutError) as error:
            return "no connection in time", isinstance(error, psycopg_pool.PoolTimeout)
        except Exception as error:
            return type(error), str(error)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncpg's half-made connections
@of_reports
def test_what_asyncpg_cannot_read_is_an_error_of_the_connect(run, report):
    """The same as with asyncpg's own pool, and nothing stays open."""

    async def main():
        theirs = await outcome(live_with_asyncpg, asyncpg.create_pool, report)
        assert await outcome(live_with_asyncpg, loopaware_pool.asyncpg.create_pool, report) == theirs

    run(main())


@of_reports
def test_what_psycopg_cannot_read_is_an_error_of_the_connect(run, report):
    """Likewise."""

    async def main():
        theirs = await outcome(live_with_psycopg, psycopg_pool.AsyncConnectionPool, report)
        assert await outcome(live_with_psycopg, loopaware_pool.psycopg.AsyncConnectionPool, report) == theirs

    run(main())


@pytest.mark.parametrize(
    ("name", "own"), [("crdb_version", ""), ("crate_version", ""), ("padb_revision", "RESET ALL;")]
)
def test_a_postgresql_that_says_it_is_another_server_is_taken_for_that(run, name, own):
    """By asyncpg, and so by us: its sessions are not reset, or only by `RESET ALL`. A `reset_query` resets them."""

    async def main():
        async with DialectServer(POSTGRES.but(**{name: "1"})) as server:
            create_pool, dsn = loopaware_pool.asyncpg.create_pool, server.asyncpg_dsn
            for options, resets in (
                ({}, {"padb_revision": ["RESET ALL"]}.get(name, [])),
                ({"reset_query": "R"}, ["R"]),
            ):
                async with create_pool(dsn, min_size=1, **options) as pool:
                    await pool.fetchval("SELECT 1")
                    await pool.settled()
                assert server.session.queries == [
                    "SELECT 1",
                    *(f"{reset};".removesuffix("R;") or reset for reset in resets),
                ]

    run(main())


@pytest.mark.parametrize("refusals", [REDSHIFT.refusals, COCKROACH.refusals, CRATE.refusals], ids=["old", "new", "few"])
@pytest.mark.parametrize("mode", ["auto", "pipelined", "when_dirty", "confirmed", "never"])
def test_a_postgresql_that_refuses_what_postgresql_knows_answers_every_caller(run, mode, refusals):
    """A caller's query is not sent behind a reset that may be refused, and no connection is lent that was not reset."""

    async def main():
        make_known("SELECT 1")
        async with DialectServer(POSTGRES.__class__("liar", refusals=refusals)) as server:
            options = {"min_size": 1, "max_size": 2, "session_reset": mode}
            async with loopaware_pool.asyncpg.create_pool(server.asyncpg_dsn, **options) as pool:
                assert [await pool.fetchval("SELECT 1", timeout=AMPLE_SECONDS) for _ in range(5)] == [1] * 5
                answers = await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(10)))
                assert answers == [1] * 10
                assert pool.get_size() <= 2
            is_reset_each_time = mode not in ("when_dirty", "never")
            assert (len(server.sessions) > 10) == is_reset_each_time

    run(main())


@pytest.mark.parametrize("question", ["pg_backend_pid", "current_setting"])
def test_a_server_that_does_not_answer_what_the_pool_asks_costs_a_caller_its_time_only(run, monkeypatch, question):
    """Neither the probe, nor the question for the role, lasts longer than the caller waits, nor for ever."""

    def answer_within(seconds):
        for module in (asyncpg_driver, asyncpg_session, psycopg_driver):
            monkeypatch.setattr(module, "RESET_SECONDS", seconds)

    async def main():
        answer_within(2 * SECONDS)
        async with DialectServer(POSTGRES) as server, asyncio.timeout(AMPLE_SECONDS):
            answer = server.answer

            def silent(client, query):
                return None if question in query else answer(client, query)

            server.answer = silent
            dsn = server.asyncpg_dsn
            async with loopaware_pool.asyncpg.create_pool(dsn, min_size=0, init=change_nothing) as pool:
                with pytest.raises(TimeoutError):
                    await pool.acquire(timeout=SECONDS)
                server.answer = answer
                answer_within(AMPLE_SECONDS)
                assert await pool.fetchval("SELECT 1") == 1
            server.answer = silent
            answer_within(2 * SECONDS)
            options = {"session_reset": "awaited", "configure": change_nothing, "min_size": 0, "max_size": 1}
            async with loopaware_pool.psycopg.AsyncConnectionPool(server.dsn, open=False, **options) as pool:
                if question == "current_setting":
                    with pytest.raises(psycopg_pool.PoolTimeout):
                        await pool.getconn(timeout=SECONDS)
                server.answer = answer
                answer_within(AMPLE_SECONDS)
                async with pool.connection() as connection:
                    assert await (await connection.execute("SELECT 1")).fetchone() == (1,)

    run(main())


async def change_nothing(_):
    """For `init` and `configure`."""
