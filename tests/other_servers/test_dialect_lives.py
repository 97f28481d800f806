"""
A pool's life on servers that are not PostgreSQL: what works with the driver's own pool works with ours, and the server
hears the same statements. The servers are scripts, see `dialects.py`.
"""

from __future__ import annotations

import asyncio
import logging

import asyncpg
import psycopg
import psycopg_pool
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine as their_engine

import loopaware_pool.asyncpg
import loopaware_pool.psycopg
from dialects import (
    COCKROACH,
    CRATE,
    DIALECTS,
    POSTGRES,
    RDS_PROXY,
    REDSHIFT,
    SUPAVISOR,
    YUGABYTE_2_0,
    DialectServer,
)
from helpers import eventually as until
from helpers import make_known
from loopaware_pool.sqlalchemy import create_async_engine as our_engine
from loopaware_pool.testing.fake_server import READY, FakeServer, error, is_reset, plain_answer

pytestmark = [pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]

MODES = ["auto", "pipelined", "when_dirty", "confirmed", "awaited", "never"]
# asyncpg knows these by what they report, and sends them no reset, or `RESET ALL` only.
KNOWN = [COCKROACH, CRATE, REDSHIFT]
# These refuse a statement of asyncpg's reset.
REFUSING = [YUGABYTE_2_0, SUPAVISOR]


def of_dialects(dialects):
    return pytest.mark.parametrize("dialect", dialects, ids=lambda dialect: dialect.name)


async def change_nothing(*_):
    """For `init`, `setup` and the like."""


async def connect(*args, **kwargs):
    return await asyncpg.connect(*args, **kwargs)


HOOKS = {
    "none": {},
    "init": {"init": change_nothing},
    "connect": {"connect": connect},
    "setup": {"setup": change_nothing},
}
of_hooks = pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS)


async def live_with_asyncpg(create_pool, dialect, **options):
    """A few leases in a row, with a transaction and an error among them: what came of it, and what the server heard."""
    make_known("SELECT 1", "SELECT 2")
    async with DialectServer(dialect) as server:
        options = {"min_size": 1, "max_size": 1, "timeout": 10} | options
        async with create_pool(server.asyncpg_dsn, **options) as pool:
            found = [await pool.fetchval("SELECT 1") for _ in range(3)]
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("INSERT")
            with pytest.raises(asyncpg.PostgresSyntaxError):
                await pool.execute("RAISE 42601")
            found.append(await pool.fetchval("SELECT 2"))
        return found, len(server.sessions), server.statements


async def live_with_psycopg(kind, dialect, **options):
    """The same."""
    async with DialectServer(dialect) as server:
        async with kind(server.dsn, **{"open": False, "min_size": 1, "max_size": 1, "timeout": 10} | options) as pool:
            found = []
            for query in ("SELECT 1", "SELECT 1", "SELECT 2"):
                async with pool.connection() as connection:
                    found.append(await (await connection.execute(query)).fetchone())
            with pytest.raises(psycopg.errors.SyntaxError):
                async with pool.connection() as connection:
                    await connection.execute("RAISE 42601")
            async with pool.connection() as connection, connection.transaction():
                await connection.execute("INSERT")
        return found, len(server.sessions), server.statements


# ---- asyncpg ----


@of_hooks
@of_dialects(KNOWN)
def test_what_asyncpg_sends_is_what_we_send(run, dialect, hooks):
    """No probe, no role, no other reset: these servers would refuse them."""

    async def main():
        theirs = await live_with_asyncpg(asyncpg.create_pool, dialect, **hooks)
        for mode in ("auto", "pipelined", "confirmed", "awaited"):
            ours = await live_with_asyncpg(loopaware_pool.asyncpg.create_pool, dialect, session_reset=mode, **hooks)
            assert ours == theirs, mode
        assert theirs[:2] == ([1] * 4, 1)
        assert theirs[2].count("RESET ALL") == (6 if dialect is REDSHIFT else 0)

    run(main())


@of_hooks
@pytest.mark.parametrize("mode", MODES)
@of_dialects([POSTGRES, RDS_PROXY, *KNOWN])
def test_every_mode_gives_answers_on_one_connection(run, dialect, mode, hooks):
    """Whatever it sends."""

    async def main():
        create_pool = loopaware_pool.asyncpg.create_pool
        found, sessions, _ = await live_with_asyncpg(create_pool, dialect, session_reset=mode, **hooks)
        assert (found, sessions) == ([1] * 4, 1)

    run(main())


@of_hooks
@pytest.mark.parametrize("mode", ["auto", "pipelined", "confirmed"])
@of_dialects(REFUSING)
def test_a_refused_reset_costs_connections_and_no_caller_an_answer(run, caplog, dialect, mode, hooks):
    """With asyncpg's pool, each release raises. The log says once what was refused, and what to do."""

    async def main():
        with pytest.raises((asyncpg.FeatureNotSupportedError, asyncpg.ConnectionDoesNotExistError)):
            await live_with_asyncpg(asyncpg.create_pool, dialect, **hooks)
        create_pool = loopaware_pool.asyncpg.create_pool
        found, sessions, _ = await live_with_asyncpg(create_pool, dialect, session_reset=mode, **hooks)
        assert found == [1] * 4
        assert sessions > 4

    run(main())
    (said,) = [record.getMessage() for record in caplog.records if record.pool_event == "session_reset_refused"]
    assert dialect.refusals[0].text in said
    assert f"({dialect.refusals[0].sqlstate})" in said
    assert 'Set reset_query to what this server knows, such as "RESET ALL"' in said


def test_a_pool_that_is_sent_to_another_server_does_not_believe_in_its_resets_yet(run, caplog):
    """One that looks like the first, and refuses the reset: no caller loses a query, and the log says what to do."""
    make_known("SELECT 1")

    async def main():
        async with DialectServer(POSTGRES) as first, DialectServer(YUGABYTE_2_0) as second:
            async with loopaware_pool.asyncpg.create_pool(first.asyncpg_dsn, min_size=0, max_size=1) as pool:
                for _ in range(3):
                    assert await pool.fetchval("SELECT 1") == 1
                await pool.settled()
                pool.set_connect_args(second.asyncpg_dsn)
                await pool.expire_connections()
                assert await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(10))) == [1] * 10
            assert second.statements.count("SELECT 1") == 10

    run(main())
    (said,) = [record for record in caplog.records if getattr(record, "pool_event", "") == "session_reset_refused"]
    assert YUGABYTE_2_0.refusals[0].text in said.getMessage()


@pytest.mark.parametrize("flavour", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("sqlstate", ["57P01", "57014", "53200"])
def test_a_reset_that_fails_for_the_moment_is_no_reason_to_advise_less(run, caplog, flavour, sqlstate):
    """A server that shuts down, a late cancellation, memory: a pool's first reset may meet one, and the next not."""

    async def main():
        failures = [sqlstate]

        def answer(client, query):
            if is_reset(query) and failures:
                return error(failures.pop(), "ERROR", "not now") + READY
            return plain_answer(client, query)

        async with FakeServer(answer) as server:
            if flavour == "asyncpg":
                pool = loopaware_pool.asyncpg.create_pool(server.asyncpg_dsn, min_size=0, max_size=1)
            else:
                options = {"session_reset": "awaited", "min_size": 0, "max_size": 1, "open": False}
                pool = loopaware_pool.psycopg.AsyncConnectionPool(server.dsn, **options)
            async with pool:
                for _ in range(3):
                    async with pool.acquire() if flavour == "asyncpg" else pool.connection() as connection:
                        await connection.execute("SET x = 1")
                    await pool.settled()
            assert (failures, len(server.sessions)) == ([], 2)

    run(main())
    assert [record for record in caplog.records if getattr(record, "pool_event", "") == "session_reset_refused"] == []


@of_hooks
@pytest.mark.parametrize("mode", ["auto", "awaited"])
@pytest.mark.parametrize(
    ("dialect", "query"), [(YUGABYTE_2_0, "RESET ALL"), (SUPAVISOR, "")], ids=["yugabyte", "supavisor"]
)
def test_the_users_reset_query_keeps_the_connection(run, caplog, dialect, query, mode, hooks):
    """And nothing else is asked that the server might not know."""

    async def main():
        options = {"session_reset": mode, "reset_query": query} | hooks
        found, sessions, heard = await live_with_asyncpg(loopaware_pool.asyncpg.create_pool, dialect, **options)
        assert (found, sessions) == ([1] * 4, 1)
        assert set(heard) <= {"SELECT 1", "SELECT 2", "INSERT", "BEGIN", "COMMIT", "RAISE 42601", "RESET ALL"}
        assert ("RESET ALL" in heard) == bool(query)

    run(main())
    assert caplog.messages == []


@pytest.mark.parametrize("options", [{"session_reset": "never"}, {"reset_query": ""}], ids=["never", "nothing"])
def test_a_session_of_rds_proxys_is_not_pinned_by_a_pool_that_sends_no_reset(run, options):
    """The resets of asyncpg's pool, and ours, do pin it: the proxy then has a connection for each of the pool's."""

    async def pins(create_pool, **options):
        async with DialectServer(RDS_PROXY) as server:
            async with create_pool(server.asyncpg_dsn, min_size=1, init=change_nothing, **options) as pool:
                for _ in range(3):
                    await pool.fetchval("SELECT 1")
            return server.pins

    async def main():
        assert await pins(asyncpg.create_pool)
        assert await pins(loopaware_pool.asyncpg.create_pool)
        assert await pins(loopaware_pool.asyncpg.create_pool, **options) == []

    run(main())


# ---- psycopg ----


@pytest.mark.parametrize(
    "options", [{}, {"configure": change_nothing}, {"check": change_nothing}], ids=["plain", "configure", "check"]
)
@of_dialects([POSTGRES, *DIALECTS])
def test_what_psycopg_sends_is_what_we_send(run, dialect, options):
    """By default no session is reset there."""

    async def main():
        theirs = await live_with_psycopg(psycopg_pool.AsyncConnectionPool, dialect, **options)
        ours = await live_with_psycopg(loopaware_pool.psycopg.AsyncConnectionPool, dialect, **options)
        assert ours == theirs
        assert theirs[:2] == ([(1,)] * 3, 1)

    run(main())


@pytest.mark.parametrize("options", [{}, {"configure": change_nothing}], ids=["plain", "configure"])
@pytest.mark.parametrize("query", ["RESET ALL", ""])
@of_dialects([POSTGRES, *DIALECTS])
def test_psycopgs_sessions_are_reset_by_the_users_query(run, caplog, dialect, query, options):
    """Nothing else is asked. What a server refuses, a user would not have it sent."""
    if query and dialect in (CRATE, SUPAVISOR):
        pytest.skip("knows no RESET ALL")

    async def main():
        resets = {"session_reset": "awaited", "reset_query": query}
        found, sessions, heard = await live_with_psycopg(
            loopaware_pool.psycopg.AsyncConnectionPool, dialect, **resets, **options
        )
        assert (found, sessions) == ([(1,)] * 3, 1)
        assert heard.count("RESET ALL") == (5 if query else 0)

    run(main())
    assert [message for message in caplog.messages if "rolling back" not in message] == []


@of_dialects([COCKROACH, CRATE, REDSHIFT, *REFUSING])
def test_psycopgs_log_says_once_that_a_session_reset_is_refused(run, caplog, dialect):
    """Each lease costs its connection, as no session may be lent that was not reset."""

    async def main():
        kind = loopaware_pool.psycopg.AsyncConnectionPool
        found, sessions, _ = await live_with_psycopg(kind, dialect, session_reset="awaited")
        assert (found, sessions) == ([(1,)] * 3, 5 + 1)

    caplog.set_level(logging.WARNING)
    run(main())
    (said,) = [message for message in caplog.messages if "Set reset_query to what this server knows" in message]
    assert any(refusal.text in said for refusal in dialect.refusals)


# ---- both ----


@of_dialects([CRATE, REDSHIFT])
def test_a_server_that_knows_no_role_is_asked_for_none_in_vain(run, dialect):
    """If it does not say what it is, or psycopg's sessions are to be reset, the error says at once what to set."""
    liar = POSTGRES.but(**{name: value for name, value in dialect.reports.items() if name.lower() in ("timezone",)})
    liar = liar.__class__("liar", liar.reports, dialect.refusals)

    async def main():
        says = "a reset restores the role that {} has set, but this server refuses to tell it: .*role.* Set reset_query"
        async with DialectServer(liar) as server:
            for options in ({"init": change_nothing}, {"connect": connect}):
                pool = loopaware_pool.asyncpg.create_pool(server.asyncpg_dsn, min_size=0, **options)
                async with asyncio.timeout(20), pool:
                    with pytest.raises(asyncpg.InterfaceError, match=says.format(next(iter(options)))):
                        await pool.fetchval("SELECT 1")
            options = {"session_reset": "awaited", "configure": change_nothing, "min_size": 0, "max_size": 1}
            pool = loopaware_pool.psycopg.AsyncConnectionPool(server.dsn, open=False, **options)
            async with asyncio.timeout(20), pool:
                with pytest.raises(psycopg.ProgrammingError, match=says.format("configure")):
                    async with pool.connection():
                        pytest.fail("a connection whose role is unknown")

    run(main())


DOUBTS = {
    "goodbye": (asyncpg.AdminShutdownError, psycopg.errors.AdminShutdown),
    "read only": (asyncpg.ReadOnlySQLTransactionError, psycopg.errors.ReadOnlySqlTransaction),
}


@pytest.mark.parametrize("errors", DOUBTS.values(), ids=DOUBTS)
@of_dialects([POSTGRES, COCKROACH, CRATE, REDSHIFT])
def test_an_error_that_puts_the_server_in_doubt_does_not_cost_the_connection(run, caplog, dialect, errors):
    """
    One raised in a block may be another server's. The pool asks the server, in words that it knows. Servers that have
    not said at the connect whether they take writes are not asked for that.
    """

    async def main():
        async with DialectServer(dialect) as server:
            options = {"min_size": 1, "max_size": 1}
            async with loopaware_pool.asyncpg.create_pool(server.asyncpg_dsn, **options) as pool:
                with pytest.raises(errors[0]):
                    async with pool.acquire():
                        raise errors[0]("of another server")
                assert await pool.fetchval("SELECT 1") == 1
            kind = loopaware_pool.psycopg.AsyncConnectionPool
            async with kind(server.dsn, open=False, **options) as pool:
                with pytest.raises(errors[1]):
                    async with pool.connection():
                        raise errors[1]("of another server")
                async with pool.connection() as connection:
                    assert await (await connection.execute("SELECT 1")).fetchone() == (1,)
            assert len(server.sessions) == 2
            asked = [statement for statement in server.statements if "pg_is_in_recovery" in statement]
            assert len(asked) == (2 if "in_hot_standby" in dialect.reports else 0)

    run(main())
    assert [message for message in caplog.messages if "refuse" in message or "error" in message] == []


@of_dialects([POSTGRES, *DIALECTS])
def test_an_idle_connection_is_pinged_by_words_that_every_server_knows(run, dialect):
    """`SELECT 1` with asyncpg, nothing at all with psycopg."""

    async def main():
        async with DialectServer(dialect) as server:
            options = {"min_size": 1, "max_size": 1, "keepalive": 0.05}
            async with loopaware_pool.asyncpg.create_pool(server.asyncpg_dsn, session_reset="never", **options) as pool:
                await until(
                    lambda: server.session.queries.count("SELECT 1;") + server.session.queries.count("SELECT 1") > 2
                )
                assert pool.stats().size == 1
            kind = loopaware_pool.psycopg.AsyncConnectionPool
            async with kind(server.dsn, open=False, **options) as pool:
                await until(lambda: server.session.queries.count("") > 2)
                assert pool.stats().size == 1
            assert len(server.sessions) == 2

    run(main())


# ---- SQLAlchemy ----


async def live_with_engine(create, dialect):
    async with DialectServer(dialect) as server:
        url = server.dsn.replace("postgresql", "postgresql+psycopg", 1)
        engine = create(url, pool_size=1, max_overflow=0, use_native_hstore=False)
        try:
            found = []
            for _ in range(3):
                async with engine.connect() as connection:
                    found.append((await connection.execute(text("SELECT 1"))).scalar())
            return found, len(server.sessions), server.statements
        finally:
            await engine.dispose()


@of_dialects([YUGABYTE_2_0, RDS_PROXY, SUPAVISOR])
def test_what_an_engine_sends_is_what_it_sends_through_our_pool(run, dialect):
    """Its own pool rolls back, and ours resets nothing else. Its dialects for other servers are other packages."""

    async def main():
        theirs = await live_with_engine(their_engine, dialect)
        ours = await live_with_engine(our_engine, dialect)
        assert ours == theirs
        assert theirs[:2] == ([1] * 3, 1)

    run(main())
