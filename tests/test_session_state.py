"""No session state crosses a release, and nobody gets another's answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import tracemalloc
import warnings
from collections import Counter
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg
import psycopg
import pytest

import helpers
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.asyncpg.pipelined_reset import LONGEST_ANSWER_BYTES, ResetProtocol
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.testing.embedded_server import EmbeddedServer
from servers import dsn_of_role

pytestmark = pytest.mark.both_drivers

PLAIN_ROLE = "dirt_plain"
ODD_ROLE = 'we;ird "role" --'
ACCENTED_ROLE = "rôle"
# Whichever way a server may read the name, it is to be a name.
TREACHEROUS_ROLES = (
    'x"; RESET ROLE; --',
    'x"; SET SESSION AUTHORIZATION postgres; SET ROLE "postgres',
    "it's; \\' '",
    "\\",
    'ends in \\"',
    "U&\\0041",
    "\\+000041 é",
    'é"; RESET ROLE; --',
    "two\nlines; -- /* ",
    "$$; ?%s{}",
    "NONE",
    "\N{SNOWMAN}\N{PILE OF POO}",
)

SETTINGS = "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> 'transaction_isolation'"
STATE = f"""
SELECT current_user::text AS who, session_user::text AS authenticated,
       nullif(current_setting('app.tenant', true), '') AS tenant,
       (SELECT array_agg(s.name || '=' || s.setting ORDER BY s.name) FROM ({SETTINGS}) s) AS settings,
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
       (SELECT count(*) FROM pg_cursors WHERE is_holdable) AS cursors,
       (SELECT array_agg(c) FROM pg_listening_channels() c) AS channels
"""
REPORTED = ("application_name", "TimeZone", "search_path", "client_encoding", "DateStyle", "session_authorization")


class Dirt(NamedTuple):
    """Statements that leave something behind in a session."""

    name: str
    statements: tuple[str, ...]


def dirt(name, *statements):
    return pytest.param(Dirt(name, statements), id=name)


DIRTS = [
    dirt("set", "SET work_mem = '5MB'"),
    dirt("set-session", "SET SESSION statement_timeout = 54321"),
    dirt("set-custom", "SET app.tenant = '7'"),
    dirt("application-name", "SET application_name = 'somebody'"),
    dirt("time-zone", "SET TIME ZONE 'Asia/Tokyo'"),
    dirt("search-path", "SET search_path = pg_catalog, dirt"),
    dirt("encoding", "SET client_encoding = 'LATIN1'"),
    dirt("date-style", "SET DateStyle = 'German'"),
    dirt("notices", "SET client_min_messages = 'debug5'"),
    dirt("characteristics", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"),
    dirt("set-config", "SELECT set_config('app.tenant', '7', false)"),
    dirt("settings-view", "UPDATE pg_catalog.pg_settings SET setting = '5MB' WHERE name = 'work_mem'"),
    dirt("function", "SELECT dirt.by_function()"),
    dirt("function-like-a-keyword", "SELECT NOT materialized(42)"),
    dirt("trigger", "INSERT INTO dirt.target VALUES (1)"),
    dirt("do-block", "DO $$ BEGIN PERFORM set_config('work_mem', '6MB', false); END $$"),
    dirt("role", f"SET ROLE {PLAIN_ROLE}"),
    dirt("role-by-config", f"SELECT set_config('role', '{PLAIN_ROLE}', false)"),
    dirt("authorization", f"SET SESSION AUTHORIZATION {PLAIN_ROLE}"),
    dirt("authorization-and-role", f"SET SESSION AUTHORIZATION {PLAIN_ROLE}", f"SET ROLE {PLAIN_ROLE}"),
    dirt("lock", "SELECT pg_advisory_lock(1001)"),
    dirt("lock-shared", "SELECT pg_advisory_lock_shared(1002)"),
    dirt("locks", "SELECT pg_advisory_lock(1003)", "SELECT pg_advisory_lock(1003)", "SELECT pg_advisory_lock(10, 4)"),
    dirt("lock-between-comments", "SELECT /* /* */ ' */ pg_advisory_lock(1004) /* ' */"),
    dirt("cursor", "DECLARE held CURSOR WITH HOLD FOR SELECT generate_series(1, 1000)"),
    dirt("listen", "LISTEN dirt_channel"),
    dirt("transaction", "BEGIN", "SET LOCAL app.tenant = '7'"),
    dirt("transaction-with-lock", "BEGIN", "SELECT pg_advisory_lock(1005)", "SET app.tenant = '7'"),
    dirt("failed-transaction", "BEGIN", "SELECT 1 / 0"),
    dirt("failed-transaction-after-commit", "SET app.tenant = '7'", "BEGIN", "SELECT 1 / 0"),
]
RESETS = ["pipelined", "when_dirty", "confirmed", "awaited"]
ALWAYS = ["pipelined", "confirmed", "awaited"]
# What the text of a statement does not tell.
BLIND_SPOTS = [mess for mess in DIRTS if mess.id == "trigger"]


@pytest.fixture(scope="module")
def dirty_server():
    """A server of its own: roles, functions and a reload would disturb others."""
    with EmbeddedServer() as server:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            for role in (PLAIN_ROLE, ODD_ROLE, ACCENTED_ROLE, *TREACHEROUS_ROLES):
                admin.execute(psycopg.sql.SQL("CREATE ROLE {}").format(psycopg.sql.Identifier(role)))
                admin.execute(
                    psycopg.sql.SQL("GRANT {} TO {}").format(
                        psycopg.sql.Identifier(PLAIN_ROLE), psycopg.sql.Identifier(role)
                    )
                    if role != PLAIN_ROLE
                    else "SELECT 1"
                )
            admin.execute("""
                CREATE SCHEMA dirt;
                CREATE FUNCTION dirt.by_function() RETURNS text LANGUAGE sql AS
                    $$ SELECT set_config('app.tenant', '7', false) $$;
                CREATE FUNCTION materialized(int) RETURNS boolean LANGUAGE sql AS
                    $$ SELECT dirt.by_function() IS NULL $$;
                CREATE TABLE dirt.target (n int);
                CREATE TABLE dirt.copied (n int);
                CREATE TABLE dirt.kept (n int);
                CREATE FUNCTION dirt.by_trigger() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN PERFORM set_config('app.tenant', '7', false); RETURN NEW; END $$;
                CREATE TRIGGER dirties BEFORE INSERT ON dirt.target FOR EACH ROW EXECUTE FUNCTION dirt.by_trigger();
            """)
        yield server


@pytest.fixture
def address(dirty_server):
    return dirty_server.dsn


@asynccontextmanager
async def one_connection(address, **options):
    """A pool of one connection: the next lease gets the same backend, or the pool has closed it."""
    async with asyncio.timeout(20), create_pool(address, min_size=0, max_size=1, **options) as pool:
        yield pool


async def state(con):
    """What a session has that a new one has not."""
    row = dict(await con.fetchrow(STATE))
    row["in_transaction"] = con.is_in_transaction()
    row["reported"] = {name: getattr(con.get_settings(), name, None) for name in REPORTED}
    raw = getattr(con, "_con", con)
    kinds = (raw._listeners, raw._log_listeners, raw._query_loggers, raw._termination_listeners)
    row["callbacks"] = [len(callbacks) for callbacks in kinds]
    return row


async def pristine(address, init=None):
    con = await asyncpg.connect(address)
    try:
        if init is not None:
            await init(con)
        return await state(con)
    finally:
        await con.close()


async def leased_state(pool):
    async with pool.acquire() as con:
        return await state(con)


async def by_execute(con, statement):
    await con.execute(statement)


async def by_fetch(con, statement):
    await con.fetch(statement)


async def by_prepared(con, statement):
    await (await con.prepare(statement)).fetch()


async def soil(con, mess, by):
    for statement in mess.statements:
        with contextlib.suppress(asyncpg.DivisionByZeroError):
            await by(con, statement)


@contextlib.contextmanager
def quiet_handler():
    """asyncpg tells the loop's exception handler of a transaction that is left open; that is no failure."""
    loop = asyncio.get_running_loop()
    told = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    yield told
    loop.set_exception_handler(None)
    unexpected = [context for context in told if "active transaction" not in context["message"]]
    assert unexpected == []


# ---- what a lease leaves behind ----


@pytest.mark.parametrize("mess", DIRTS)
def test_each_of_these_statements_does_dirty_a_session(address, mess):
    """Without a reset, every one of the statements below leaves something that is seen."""

    async def main():
        clean = await pristine(address)
        con = await asyncpg.connect(address)
        try:
            await soil(con, mess, by_execute)
            try:
                assert await state(con) != clean
            except asyncpg.InFailedSQLTransactionError:
                assert con.is_in_transaction()
        finally:
            await con.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("mess", "session_reset"),
    [
        pytest.param(*mess.values, session_reset, id=f"{mess.id}-{session_reset}")
        for mess in DIRTS
        for session_reset in RESETS
        if session_reset in ALWAYS or mess not in BLIND_SPOTS
    ],
)
def test_the_next_lease_sees_nothing_of_it(address, loop_factory, session_reset, mess):
    """Whatever a lease does to its session, however it sends it, the next lease finds a new session's state."""

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset=session_reset) as pool:
            with quiet_handler():
                for by in (by_execute, by_fetch, by_prepared):
                    async with pool.acquire() as con:
                        before = con.get_server_pid()
                        await soil(con, mess, by)
                    async with pool.acquire() as con:
                        assert await state(con) == clean, by.__name__
                        assert con.get_server_pid() == before

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("mess", BLIND_SPOTS)
def test_what_no_text_tells_is_not_reset_where_text_decides(address, mess):
    """The price of `when_dirty`, until the next reset; a statement that tells brings it."""

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset="when_dirty") as pool:
            assert await leased_state(pool)
            helpers.make_known(*mess.statements)
            async with pool.acquire() as con:
                await soil(con, mess, by_execute)
            assert (await leased_state(pool))["tenant"] == "7"
            async with pool.acquire() as con:
                await con.execute("SET work_mem = '5MB'")
            assert await leased_state(pool) == clean

    asyncio.run(main())


async def read(con):
    return await con.fetchval("SELECT 1")


async def read_in_transaction(con):
    async with con.transaction():
        await con.fetch("SELECT 1 WHERE $1", True)


async def read_prepared(con):
    return await (await con.prepare("SELECT 1")).fetchval()


async def read_by_cursor(con):
    async with con.transaction():
        return [record async for record in con.cursor("SELECT 1")]


async def fail(con):
    with contextlib.suppress(asyncpg.DivisionByZeroError):
        await con.fetchval("SELECT 1 / 0")


async def be_cancelled(con):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await con.fetchval("SELECT pg_sleep(1)")  # a request to cancel may come too early for it


async def listen(con):
    await con.add_listener("dirt_channel", print)
    await con.remove_listener("dirt_channel", print)


async def copy(con):
    await con.copy_records_to_table("kept", schema_name="dirt", records=[(1,)])


async def ask_by_name(con):
    await con.execute(query="SET work_mem = '5MB'")


@pytest.mark.parametrize(
    ("work", "resets"),
    [
        (asyncio.sleep, 0),
        (read, 0),
        (read_in_transaction, 0),
        (read_prepared, 0),
        (read_by_cursor, 1),
        (fail, 1),
        (be_cancelled, 0),  # in passing; it is awaited
        (listen, 1),
        (copy, 1),
        (ask_by_name, 1),
    ],
)
def test_a_lease_is_reset_when_it_may_have_to_be(address, loop_factory, work, resets):
    """Not for leases that only read, whatever they read by."""

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset="when_dirty") as pool:
            helpers.make_known("SELECT 1", "SELECT 1 WHERE $1", "SELECT pg_sleep(1)")
            assert await pool.fetchval("SELECT 1") == 1
            session = pool._holders[0]
            before = session._uncounted_queries
            assert before == 0
            for _ in range(3):
                async with pool.acquire() as con:
                    await work(0 if work is asyncio.sleep else con)
            assert pool._holders[0] is session
            assert session._uncounted_queries - before == 3 * resets
            assert await leased_state(pool) == clean

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
@pytest.mark.parametrize("mess", DIRTS)
def test_the_next_lease_sees_nothing_of_it_when_a_query_was_cancelled(address, session_reset, mess):
    """A lease that is cancelled while its query runs leaves nothing behind either."""

    async def lease(pool, running):
        async with pool.acquire() as con:
            await soil(con, mess, by_execute)
            running.set()
            await con.execute("SELECT pg_sleep(1)")  # a request to cancel may come too early for it

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset=session_reset) as pool:
            with quiet_handler():
                for iterations in (1, 30):
                    running = asyncio.Event()
                    task = asyncio.create_task(lease(pool, running))
                    await running.wait()
                    await helpers.spin(iterations)
                    if not task.done():  # in a failed transaction nothing sleeps
                        task.cancel()
                    await asyncio.wait([task])
                    assert await leased_state(pool) == clean

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
def test_a_cancelled_query_costs_no_connection(address, loop_factory, session_reset):
    """When the server has stopped a cancelled query, the next lease has the same backend, and nobody else's error."""

    async def main():
        monitor = await asyncpg.connect(address)
        sleeps = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $1"
        async with one_connection(address, session_reset=session_reset) as pool:
            for number in range(5):
                con = await pool.acquire()
                pid = con.get_server_pid()
                query = asyncio.create_task(con.execute("SELECT pg_sleep(60)"))
                await helpers.eventually(lambda pid=pid: monitor.fetchval(sleeps, pid))
                query.cancel()
                await asyncio.wait([query])
                await pool.release(con)
                async with pool.acquire() as con:
                    assert await con.fetchval("SELECT $1::int", number) == number
                    assert con.get_server_pid() == pid
        await monitor.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_lease_that_is_cancelled_at_any_moment_leaves_nothing(address, session_reset):
    """Cancelled after any number of loop iterations, a lease that takes locks and sets things leaves none of it."""

    async def lease(pool):
        async with pool.acquire() as con:
            await con.fetchval("SELECT pg_advisory_lock(77)")
            await con.execute("SET app.tenant = '7'")
            async with con.transaction():
                await con.execute(f"SET ROLE {PLAIN_ROLE}")

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset=session_reset) as pool:
            with quiet_handler():
                for iterations in range(0, 120, 3):
                    task = asyncio.create_task(lease(pool))
                    await helpers.spin(iterations)
                    task.cancel()
                    await asyncio.wait([task])
                    assert await leased_state(pool) == clean, iterations

    asyncio.run(main())


@pytest.mark.parametrize("mess", DIRTS)
def test_without_a_reset_only_transactions_end(address, mess):
    """With session_reset="never" a transaction is rolled back, and what was set stays."""

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset="never") as pool:
            with quiet_handler():
                async with pool.acquire() as con:
                    before = con.get_server_pid()
                    await soil(con, mess, by_execute)
                async with pool.acquire() as con:
                    found = await state(con)
                    assert con.get_server_pid() == before
        assert not found["in_transaction"]
        outlives_rollback = mess.name not in ("transaction", "failed-transaction")
        assert (found != clean) is outlives_rollback

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
def test_callbacks_do_not_outlive_the_lease(address, loop_factory, session_reset):
    """A listener, a log listener, a query logger and a termination listener of one lease are not called in the next."""
    heard = []

    def hear(*what):
        heard.append(what)

    async def main():
        async with one_connection(address, session_reset=session_reset) as pool:
            con = await pool.acquire()
            await con.add_listener("dirt_channel", hear)
            con.add_log_listener(hear)
            con.add_query_logger(hear)
            con.add_termination_listener(hear)
            with pytest.warns(asyncpg.InterfaceWarning, match="active") as warned:
                await pool.release(con)
            assert len(warned) == 2
            heard.clear()  # asyncpg's own reset is a query like others to the logger of that lease
            async with pool.acquire() as con:
                await con.execute("SELECT pg_notify('dirt_channel', 'x')")
                await con.execute("DO $$ BEGIN RAISE WARNING 'x'; END $$")
                assert (await state(con))["callbacks"] == [0, 0, 0, 0]
        await helpers.spin(5)
        assert heard == []

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
def test_a_warning_of_listeners_that_is_an_error_loses_no_connection(address, session_reset):
    """Where warnings are errors, a release that warns of listeners raises, and the connection is back all the same."""

    async def main():
        async with one_connection(address, session_reset=session_reset) as pool:
            con = await pool.acquire()
            con.add_log_listener(print)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(asyncpg.InterfaceWarning):
                    await pool.release(con)
            assert (await leased_state(pool))["callbacks"] == [0, 0, 0, 0]

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_function_that_stands_in_the_way_of_the_reset_is_passed_by(address, session_reset):
    """A search_path that puts somebody's own functions first keeps no lock, and does not have them called."""

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset=session_reset) as pool:
            async with pool.acquire() as con:
                before = con.get_server_pid()
                await con.execute("""
                    CREATE SCHEMA IF NOT EXISTS trap;
                    CREATE OR REPLACE FUNCTION trap.pg_advisory_unlock_all() RETURNS void LANGUAGE sql AS
                        $$ SELECT set_config('app.tenant', 'trapped', false) $$;
                    SELECT pg_advisory_lock(1006);
                    SET search_path = trap, pg_catalog;
                """)
            async with pool.acquire() as con:
                assert con.get_server_pid() == before
                assert await state(con) == clean

    asyncio.run(main())


# ---- the role ----


def quoted(role):
    return '"' + role.replace('"', '""') + '"'


@pytest.mark.parametrize("session_reset", RESETS)
@pytest.mark.parametrize("role", [PLAIN_ROLE, ODD_ROLE, ACCENTED_ROLE])
@pytest.mark.parametrize(
    "statement",
    ["SELECT 1", "RESET ROLE", "SET ROLE NONE", "SET ROLE postgres", "SET SESSION AUTHORIZATION " + PLAIN_ROLE],
)
def test_the_role_that_init_set_is_restored(address, session_reset, role, statement):
    """Whatever role a lease takes on, the next lease has the one that `init` set, on the same backend."""

    async def init(con):
        await con.execute(f"SET ROLE {quoted(role)}")

    async def main():
        clean = await pristine(address, init)
        assert clean["who"] == role
        async with one_connection(address, session_reset=session_reset, init=init) as pool:
            for _ in range(3):
                async with pool.acquire() as con:
                    before = con.get_server_pid()
                    assert await con.fetchval("SELECT current_user::text") == role
                    await con.execute("RESET ROLE")
                    await con.execute(statement)
                async with pool.acquire() as con:
                    assert con.get_server_pid() == before
                    assert await state(con) == clean

    asyncio.run(main())


@pytest.mark.parametrize("conforming", ["on", "off"])
@pytest.mark.parametrize("session_reset", RESETS)
def test_a_treacherous_role_is_a_name(address, session_reset, conforming):
    """No name of the role that `init` sets ends what the pool quotes it with, however strings are read."""

    async def main(role):
        async def init(con):
            await con.execute(f"SET ROLE {quoted(role)}")

        clean = await pristine(address, init)
        assert clean["who"] == role
        async with one_connection(address, session_reset=session_reset, init=init) as pool:
            async with pool.acquire() as con:
                before = con.get_server_pid()
                await con.execute(
                    f"RESET ROLE; SET backslash_quote = on; SET escape_string_warning = off; "
                    f"SET standard_conforming_strings = {conforming}"
                )
            async with pool.acquire() as con:
                assert con.get_server_pid() == before
                assert await state(con) == clean

    for role in TREACHEROUS_ROLES:
        asyncio.run(main(role))


@pytest.mark.parametrize("conforming", ["on", "off"])
def test_a_treacherous_role_is_a_name_to_psycopg(address, conforming):
    """The flavour for psycopg restores it as a parameter of a function."""

    async def main(role):
        async def configure(con):
            await con.execute(psycopg.sql.SQL("SET ROLE {}").format(psycopg.sql.Identifier(role)))
            await con.commit()

        options = {"min_size": 1, "max_size": 1, "session_reset": "awaited", "configure": configure}
        async with asyncio.timeout(20), AsyncConnectionPool(address, **options) as pool:
            for statement in ("SELECT 1", "RESET ROLE", f"SET standard_conforming_strings = {conforming}"):
                async with pool.connection() as con:
                    assert (await (await con.execute("SELECT current_user")).fetchone())[0] == role
                    await con.execute("SET backslash_quote = on")
                    await con.execute(statement)

    for role in TREACHEROUS_ROLES:
        asyncio.run(main(role))


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_role_outside_ascii_survives_a_change_of_encoding(address, session_reset):
    """A lease that changes the client's encoding cannot make the next one run under another role."""

    async def init(con):
        await con.execute(f"SET ROLE {quoted(ACCENTED_ROLE)}")

    async def main():
        clean = await pristine(address, init)
        async with one_connection(address, session_reset=session_reset, init=init) as pool:
            # The name is sent in UTF-8, so the server may refuse the reset; then the connection is closed.
            with contextlib.suppress(asyncpg.InvalidParameterValueError):
                async with pool.acquire() as con:
                    await con.execute("RESET ROLE; SET client_encoding = 'LATIN1'")
            with contextlib.suppress(asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
                assert await leased_state(pool) == clean
            assert await leased_state(pool) == clean

    asyncio.run(main())


AFTERWARDS = ["SELECT 1", "RESET SESSION AUTHORIZATION", "SET SESSION AUTHORIZATION postgres", "SET ROLE NONE"]


@pytest.mark.parametrize("session_reset", RESETS)
@pytest.mark.parametrize("user", [PLAIN_ROLE, ODD_ROLE, ACCENTED_ROLE])
@pytest.mark.parametrize("role", [None, PLAIN_ROLE])
def test_the_session_authorization_that_init_set_is_restored(address, session_reset, user, role):
    """And the role with it: whatever a lease has changed, on the same backend. With asyncpg's own pool they stay."""

    async def init(con):
        await con.execute(f"SET SESSION AUTHORIZATION {quoted(user)}")
        if role is not None:
            await con.execute(f"SET ROLE {role}")

    async def main():
        clean = await pristine(address, init)
        assert (clean["authenticated"], clean["who"]) == (user, role or user)
        async with one_connection(address, session_reset=session_reset, init=init) as pool:
            for statement in AFTERWARDS:
                async with pool.acquire() as con:
                    before = con.get_server_pid()
                    assert await state(con) == clean
                    await con.execute(statement)
                async with pool.acquire() as con:
                    assert con.get_server_pid() == before
                    assert await state(con) == clean

    asyncio.run(main())


@pytest.mark.parametrize("user", [PLAIN_ROLE, ODD_ROLE, ACCENTED_ROLE])
@pytest.mark.parametrize("role", [None, PLAIN_ROLE])
def test_the_session_authorization_that_configure_set_is_restored(address, user, role):
    """The same in the flavour for psycopg."""

    async def configure(con):
        await con.execute(psycopg.sql.SQL("SET SESSION AUTHORIZATION {}").format(psycopg.sql.Identifier(user)))
        if role is not None:
            await con.execute(f"SET ROLE {role}")
        await con.commit()

    async def main():
        options = {"min_size": 1, "max_size": 1, "session_reset": "awaited", "configure": configure}
        async with asyncio.timeout(20), AsyncConnectionPool(address, **options) as pool:
            pids = set()
            for statement in [*AFTERWARDS, "SELECT 1"]:
                async with pool.connection() as con:
                    pids.add(con.info.backend_pid)
                    found = await (await con.execute("SELECT session_user, current_user")).fetchone()
                    assert found == (user, role or user)
                    await con.execute(statement)
            assert len(pids) == 1

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_session_authorization_given_by_connect_is_restored(address, session_reset):
    """One that the `connect` callback set counts as one that `init` set."""

    async def connect(*args, **kwargs):
        con = await asyncpg.connect(*args, **kwargs)
        await con.execute(f"SET SESSION AUTHORIZATION {PLAIN_ROLE}")
        return con

    async def main():
        async with one_connection(address, connect=connect, session_reset=session_reset) as pool:
            async with pool.acquire() as con:
                await con.execute("RESET SESSION AUTHORIZATION")
            assert (await leased_state(pool))["authenticated"] == PLAIN_ROLE

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_role_that_init_gave_up_does_not_come_back(address, session_reset):
    """Where the connection began with a role, and `init` has set none."""

    async def init(con):
        await con.execute("SET ROLE NONE")

    async def main():
        options = {"server_settings": {"role": PLAIN_ROLE}, "init": init, "session_reset": session_reset}
        async with one_connection(address, **options) as pool:
            for _ in range(3):
                async with pool.acquire() as con:
                    assert await con.fetchval("SELECT current_user::text") == "postgres"
                    await con.execute(f"SET ROLE {PLAIN_ROLE}")

    asyncio.run(main())


def test_a_role_that_configure_gave_up_does_not_come_back(address):
    """The same in the flavour for psycopg."""

    async def configure(con):
        await con.execute("SET ROLE NONE")
        await con.commit()

    async def main():
        kwargs = {"options": f"-c role={PLAIN_ROLE}"}
        options = {"min_size": 1, "max_size": 1, "session_reset": "awaited", "configure": configure, "kwargs": kwargs}
        async with asyncio.timeout(20), AsyncConnectionPool(address, **options) as pool:
            for _ in range(3):
                async with pool.connection() as con:
                    assert await (await con.execute("SELECT current_user")).fetchone() == ("postgres",)
                    await con.execute(f"SET ROLE {PLAIN_ROLE}")

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_session_authorization_that_may_not_be_restored_costs_the_connection(dirty_server, session_reset):
    """
    Where the right to it was taken away meanwhile, nobody gets the session of the last lease; the next caller is told.

    Up to PostgreSQL 16 the right is that of the login.
    """
    name = f"fallen_{session_reset}"

    async def init(con):
        await con.execute(f"SET SESSION AUTHORIZATION {PLAIN_ROLE}")

    async def main():
        dsn = dsn_of_role(dirty_server.dsn, name, name)
        async with one_connection(dsn, init=init, session_reset=session_reset) as pool:
            con = await pool.acquire()
            is_looked_at_once = con.get_server_version() < (17,)
            with psycopg.connect(dirty_server.dsn, autocommit=True) as admin:
                admin.execute(f"ALTER ROLE {name} NOSUPERUSER")
            await con.execute("RESET SESSION AUTHORIZATION")
            with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
                await pool.release(con)
            if is_looked_at_once:
                assert (await leased_state(pool))["authenticated"] == PLAIN_ROLE
            else:
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
                    await pool.acquire()

    with psycopg.connect(dirty_server.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{name}'")
    asyncio.run(main())


def test_a_role_given_by_connect_is_restored(address):
    """A role that the `connect` callback set counts as one that `init` set."""

    async def connect(*args, **kwargs):
        con = await asyncpg.connect(*args, **kwargs)
        await con.execute(f"SET ROLE {PLAIN_ROLE}")
        return con

    async def main():
        async with one_connection(address, connect=connect) as pool:
            async with pool.acquire() as con:
                await con.execute("RESET ROLE")
            assert (await leased_state(pool))["who"] == PLAIN_ROLE

    asyncio.run(main())


def test_a_role_given_in_server_settings_is_restored(address):
    """A role that the connection began with is the one it goes back to."""

    async def main():
        async with one_connection(address, server_settings={"role": PLAIN_ROLE}) as pool:
            async with pool.acquire() as con:
                assert await con.fetchval("SELECT current_user::text") == PLAIN_ROLE
                await con.execute("SET ROLE NONE")
            assert (await leased_state(pool))["who"] == PLAIN_ROLE

    asyncio.run(main())


def test_settings_given_to_connect_stay(address):
    """What `server_settings` gave a connection is its own, not a lease's."""

    async def main():
        options = {"server_settings": {"application_name": "mine", "work_mem": "7MB", "app.tenant": "9"}}
        async with one_connection(address, **options) as pool:
            async with pool.acquire() as con:
                await con.execute("SET application_name = 'x'; SET work_mem = '8MB'; SET app.tenant = '10'")
            async with pool.acquire() as con:
                query = "SELECT current_setting('application_name'), current_setting('work_mem'), app"
                row = await con.fetchrow(query + " FROM current_setting('app.tenant') app")
                assert tuple(row) == ("mine", "7MB", "9")
                assert con.get_settings().application_name == "mine"

    asyncio.run(main())


# ---- when the reset happens ----


@pytest.mark.parametrize("session_reset", RESETS)
def test_an_advisory_lock_is_free_before_anybody_uses_the_connection_again(address, loop_factory, session_reset):
    """The server has run the reset soon after the release, although nobody has acquired since."""

    async def main():
        monitor = await asyncpg.connect(address)
        async with one_connection(address, session_reset=session_reset) as pool:
            async with pool.acquire() as con:
                pid = con.get_server_pid()
                await con.execute("SELECT pg_advisory_lock(4711), pg_advisory_lock_shared(4712)")
            query = "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = $1"
            await helpers.eventually(lambda: monitor.fetchval(query, pid))
            alive = await monitor.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid)
            assert alive == 1
        await monitor.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_settled_waits_for_the_resets(address, loop_factory):
    """After `settled()` the server has answered every reset."""

    async def main():
        monitor = await asyncpg.connect(address)
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        async with one_connection(address) as pool:
            for key in range(20):
                async with pool.acquire() as con:
                    await con.execute(f"SELECT pg_advisory_lock({key})")
                await pool.settled()
                assert await monitor.fetchval(query) == 0
        await monitor.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


# ---- whose answer is whose ----


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
def test_interleaved_leases_get_their_own_answers(address, loop_factory, session_reset):
    """Forty tasks on three connections each get the value they asked for, and no setting of another."""

    async def worker(pool, number):
        for turn in range(15):
            async with pool.acquire() as con:
                value = number * 1000 + turn
                if turn % 5 == 4:
                    await pool.release(con)  # unused: the resets of two leases follow each other
                    continue
                if session_reset != "never":
                    assert await con.fetchval("SELECT nullif(current_setting('app.tenant', true), '')") is None
                assert await con.fetchval("SELECT $1::int", value) == value
                if turn % 3 == 0:
                    assert await con.execute(f"SET app.tenant = '{value}'") == "SET"
                if turn % 4 == 0:
                    rows = await con.fetch("SELECT n + $1::int FROM generate_series(1, 500) n", value)
                    assert [row[0] for row in rows] == list(range(value + 1, value + 501))

    async def main():
        async with (
            asyncio.timeout(60),
            create_pool(address, min_size=0, max_size=3, session_reset=session_reset) as pool,
            asyncio.TaskGroup() as group,
        ):
            for number in range(40):
                group.create_task(worker(pool, number))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
def test_leases_without_a_query_follow_each_other(address, loop_factory, session_reset):
    """Acquiring and releasing over and over without a query leaves a connection that answers."""

    async def main():
        async with one_connection(address, session_reset=session_reset) as pool:
            pids = set()
            for turn in range(300):
                con = await pool.acquire()
                pids.add(con.get_server_pid())
                if turn % 50 == 49:
                    assert await con.fetchval("SELECT $1::int", turn) == turn
                await pool.release(con)
            assert len(pids) == 1

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_dirt_behind_a_reset_in_flight_is_reset_too(address, loop_factory, session_reset):
    """A lease that begins before the last reset is answered, and dirties the session, is reset itself."""

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset=session_reset) as pool:
            for _ in range(20):
                await pool.release(await pool.acquire())
                async with pool.acquire() as con:
                    await con.execute("SET app.tenant = '7'")
                await pool.release(await pool.acquire())
                assert await leased_state(pool) == clean

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_query_sent_behind_a_reset_in_flight_can_be_cancelled(address, loop_factory, session_reset):
    """A query cancelled while the reset before it is unanswered harms nobody; what it set is gone."""

    async def lease(pool):
        async with pool.acquire() as con:
            await con.execute("SELECT set_config('app.tenant', '7', false), pg_sleep(1)")

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset=session_reset) as pool:
            for iterations in range(12):
                async with pool.acquire() as con:
                    await con.execute("SET app.tenant = '8'")
                task = asyncio.create_task(lease(pool))
                await helpers.spin(iterations)
                task.cancel()
                await asyncio.wait([task])
                assert await leased_state(pool) == clean

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


async def by_proxy(con, query):
    await con.execute(query)


async def by_prepared_statement(con, query):
    await (await con.prepare(query)).fetch()


async def by_connection(con, query):
    await con._con.execute(query)


async def by_method_of_the_class(con, query):
    await con.slowly(query)


async def until_asleep(address, pid):
    """Wait until the server is in the middle of that session's `pg_sleep`."""
    con = await asyncpg.connect(address)
    while await con.fetchval("SELECT wait_event FROM pg_stat_activity WHERE pid = $1", pid) != "PgSleep":
        await asyncio.sleep(0.005)
    await con.close()


class WithMethod(asyncpg.Connection):
    async def slowly(self, query):
        await self.execute(query)


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
@pytest.mark.parametrize("ask", [by_proxy, by_prepared_statement, by_connection, by_method_of_the_class])
def test_a_connection_released_under_a_running_query_is_closed(address, loop_factory, session_reset, ask):
    """A release while another task still queries ends the connection and that query; the next lease is unharmed."""

    async def main():
        kind = WithMethod if ask is by_method_of_the_class else asyncpg.Connection
        async with one_connection(address, session_reset=session_reset, connection_class=kind) as pool:
            con = await pool.acquire()
            pid = await con.fetchval("SELECT pg_backend_pid()")  # asks nothing of the connection past the proxy
            query = asyncio.create_task(ask(con, "SELECT pg_sleep(60)"))
            await until_asleep(address, pid)
            with contextlib.suppress(asyncpg.InterfaceError, asyncpg.InternalClientError):
                await pool.release(con)
            await asyncio.wait([query])
            assert isinstance(query.exception(), asyncpg.PostgresError | asyncpg.InterfaceError | OSError)
            async with pool.acquire() as con:
                assert await con.fetchval("SELECT 5") == 5
                assert con.get_server_pid() != pid

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "abandoned"])
def test_a_lease_that_ends_in_the_middle_of_a_copy_out_harms_nobody(address, loop_factory, session_reset, is_cancelled):
    """Rows that a slow sink has not taken yet do not reach the next lease."""

    async def main():
        flowing = asyncio.Event()

        async def sink(data):
            flowing.set()
            await asyncio.Event().wait()

        async with one_connection(address, session_reset=session_reset) as pool:
            con = await pool.acquire()
            query = "SELECT repeat('x', 100) FROM generate_series(1, 200000)"
            copying = asyncio.create_task(con.copy_from_query(query, output=sink))
            await flowing.wait()
            if is_cancelled:
                copying.cancel()
                await asyncio.wait([copying])
            with contextlib.suppress(asyncpg.InterfaceError, asyncpg.InternalClientError):
                await pool.release(con)
            for number in range(3):
                assert await pool.fetchval("SELECT $1::int", number) == number
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            assert await pool.fetchval("SELECT 7") == 7

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "abandoned"])
def test_a_lease_that_ends_in_the_middle_of_a_copy_in_harms_nobody(address, loop_factory, session_reset, is_cancelled):
    """Rows of a copy that was not finished are not in the table, and the next lease is unharmed."""

    async def main():
        flowing = asyncio.Event()

        async def source():
            yield b"1\n2\n"
            flowing.set()
            await asyncio.Event().wait()

        async with one_connection(address, session_reset=session_reset) as pool:
            con = await pool.acquire()
            copying = asyncio.create_task(con.copy_to_table("copied", schema_name="dirt", source=source()))
            await flowing.wait()
            if is_cancelled:
                copying.cancel()
                await asyncio.wait([copying])
            with contextlib.suppress(asyncpg.InterfaceError, asyncpg.InternalClientError):
                await pool.release(con)
            assert await pool.fetchval("SELECT count(*) FROM dirt.copied") == 0
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            assert await pool.fetchval("SELECT count(*) FROM dirt.copied") == 0

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_cursor_and_a_transaction_of_an_ended_lease_are_dead(address, session_reset):
    """Objects of a lease that has ended refuse to work on the connection of the next."""

    async def main():
        async with one_connection(address, session_reset=session_reset) as pool:
            with quiet_handler():
                con = await pool.acquire()
                statement = await con.prepare("SELECT 1")
                transaction = con.transaction()
                await transaction.start()
                await pool.release(con)
                async with pool.acquire() as other:
                    with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                        await statement.fetch()
                    with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                        await transaction.commit()
                    with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                        con.execute("SELECT 1")
                    assert not other.is_in_transaction()

    asyncio.run(main())


# ---- what the server says by itself ----


@pytest.mark.parametrize("session_reset", RESETS)
def test_notices_in_the_answer_to_a_reset_do_no_harm(address, loop_factory, session_reset):
    """A session that reports every debug message does so during its reset too, and stays in use."""

    async def main():
        async with one_connection(address, session_reset=session_reset) as pool:
            for number in range(10):
                async with pool.acquire() as con:
                    pid = con.get_server_pid()
                    await con.execute("SET client_min_messages = 'debug5'")
                async with pool.acquire() as con:
                    assert await con.fetchval("SELECT $1::int", number) == number
                    assert con.get_server_pid() == pid

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("session_reset", [*ALWAYS, "never"])
def test_a_parameter_that_the_server_changes_reaches_the_driver(dirty_server, loop_factory, session_reset):
    """A reload of the server's configuration is told with a reset's answer or a query's, and no connection is lost."""

    def reload(value):
        with psycopg.connect(dirty_server.dsn, autocommit=True) as admin:
            admin.execute(f"ALTER SYSTEM SET DateStyle = '{value}'")
            admin.execute("SELECT pg_reload_conf()")

    async def main():
        async with one_connection(dirty_server.dsn, session_reset=session_reset) as pool:
            async with pool.acquire() as con:
                pid = con.get_server_pid()
            await pool.settled()
            reload("SQL, DMY")
            await helpers.eventually(lambda: is_told(pool, pid, "SQL, DMY"))
            async with pool.acquire() as con:
                reload("ISO, MDY")
            await helpers.eventually(lambda: is_told(pool, pid, "ISO, MDY"))

    async def is_told(pool, pid, style):
        """Without a query, where there is a reset: its answer tells."""
        async with pool.acquire() as con:
            assert con.get_server_pid() == pid
            if session_reset == "never":
                await con.execute("SELECT 1")
            return con.get_settings().DateStyle == style

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
    finally:
        reload("ISO, MDY")


def test_a_notification_to_an_idle_connection_is_not_its_death(address, loop_factory):
    """A connection that listens since `init` and is notified while idle is lent all the same."""

    async def init(con):
        await con.execute("LISTEN dirt_channel")

    async def main():
        monitor = await asyncpg.connect(address)
        async with create_pool(address, min_size=1, max_size=1, init=init, session_reset="never") as pool:
            async with pool.acquire() as con:
                pid = con.get_server_pid()
            for turn in range(5):
                await pool.settled()
                for _ in range(turn):
                    await monitor.execute("NOTIFY dirt_channel, 'x'")
                async with pool.acquire(timeout=10) as con:
                    assert con.get_server_pid() == pid
                    assert await con.fetchval("SELECT $1::int", turn) == turn
            assert pool.stats().loops[0].counters.found_dead == 0
        await monitor.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


# ---- what the user decides ----


@pytest.mark.parametrize("max_queries", [1, 2, 5, 10])
def test_queries_are_counted_as_asyncpg_counts_them(address, max_queries):
    """A connection is replaced after the same lease as in asyncpg's own pool, whose resets count too."""

    async def replaced_at(pool):
        changes, last = [], None
        for turn in range(12):
            async with pool.acquire() as con:
                await con.execute("SELECT 1")
                pid = con.get_server_pid()
            if last is not None and pid != last:
                changes.append(turn)
            last = pid
        return changes

    async def main():
        options = {"min_size": 1, "max_size": 1, "max_queries": max_queries}
        async with asyncpg.create_pool(address, **options) as theirs:
            expected = await replaced_at(theirs)
        assert expected
        for session_reset in ALWAYS:
            async with create_pool(address, session_reset=session_reset, **options) as ours:
                assert await replaced_at(ours) == expected

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
def test_the_reset_callback_replaces_the_reset_and_is_awaited(address, loop_factory, session_reset):
    """A `reset` callback runs at each release, on the bare connection; the release waits for it, and for it alone."""

    async def main():
        entered, let_go = asyncio.Event(), asyncio.Event()
        seen = []

        async def reset(con):
            seen.append(type(con))
            entered.set()
            await let_go.wait()
            await con.execute("RESET work_mem")

        async with one_connection(address, session_reset=session_reset, reset=reset) as pool:
            con = await pool.acquire()
            await con.execute("SET work_mem = '5MB'; SET app.tenant = '7'")
            release = asyncio.create_task(pool.release(con))
            await entered.wait()
            await helpers.spin(20)
            assert not release.done()
            let_go.set()
            await release
            row = await leased_state(pool)
            assert row["tenant"] == "7"
            assert row["settings"] is None
            assert seen[0] is asyncpg.Connection

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


class NoReset(asyncpg.Connection):
    def get_reset_query(self):
        return ""


class OwnQuery(asyncpg.Connection):
    def get_reset_query(self):
        return "RESET ALL; SELECT set_config('app.tenant', 'mine', false);"


class OwnReset(asyncpg.Connection):
    async def reset(self, *, timeout=None):
        await super().reset(timeout=timeout)
        await self.execute("SET app.tenant = 'mine'")


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
@pytest.mark.parametrize(("kind", "left"), [(NoReset, "7"), (OwnQuery, "mine"), (OwnReset, "mine")])
def test_a_reset_of_the_connection_class_is_honoured(address, session_reset, kind, left):
    """A class that overrides its reset, or the query of it, is reset that way before the release returns."""

    async def main():
        async with one_connection(address, session_reset=session_reset, connection_class=kind) as pool:
            with quiet_handler():
                for _ in range(3):
                    con = await pool.acquire()
                    await con.execute("SET app.tenant = '7'")
                    await con.execute("BEGIN")
                    await pool.release(con)
                    async with pool.acquire() as con:
                        assert type(con._con) is kind
                        assert not con.is_in_transaction()
                        assert await con.fetchval("SELECT current_setting('app.tenant')") == left

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
def test_type_codecs_set_in_init_stay(address, session_reset):
    """A codec belongs to the connection, not to a lease."""

    async def init(con):
        await con.set_type_codec("json", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    async def main():
        async with one_connection(address, session_reset=session_reset, init=init) as pool:
            for number in range(4):
                assert await pool.fetchval("SELECT $1::json", {"a": number}) == {"a": number}

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_temporary_tables_and_prepared_statements_stay(address, session_reset):
    """What asyncpg's reset leaves standing by design stands here too."""

    async def main():
        async with one_connection(address, session_reset=session_reset) as pool:
            await pool.execute("CREATE TEMPORARY TABLE left_over (n int); PREPARE mine AS SELECT 5")
            assert await pool.fetchval("SELECT count(*) FROM left_over") == 0
            assert await pool.fetchval("EXECUTE mine") == 5

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", ALWAYS)
def test_what_a_reset_leaves_can_mislead_the_next_lease(address, session_reset):
    """As with asyncpg: temporary tables and types come before all of the same name; random numbers can be foretold."""

    async def make_temporary(pool):
        await pool.execute("CREATE TEMP TABLE misleading AS SELECT 'false' AS word")
        await pool.execute("CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (public.listening(value))")

    async def main():
        async with one_connection(address, session_reset=session_reset) as pool:
            await pool.execute("CREATE TABLE IF NOT EXISTS public.misleading AS SELECT 'true' AS word")
            await pool.execute(
                "CREATE OR REPLACE FUNCTION public.listening(pg_catalog.text) RETURNS bool LANGUAGE plpgsql "
                "AS $$BEGIN RAISE check_violation USING MESSAGE = 'heard ' || $1; END$$"
            )
            foretold = []
            for _ in range(2):
                await pool.execute("SELECT setseed(0.25)")
                foretold.append(await pool.fetchval("SELECT random()"))
            assert foretold[0] == foretold[1]
            await make_temporary(pool)
            assert await pool.fetchval("SELECT word FROM misleading") == "false"
            with pytest.raises(asyncpg.CheckViolationError, match="heard a secret"):
                await pool.fetchval("SELECT 'a secret'::text")
        everything = {"session_reset": session_reset, "reset": lambda con: con.execute("DISCARD ALL")}
        async with one_connection(address, statement_cache_size=0, **everything) as pool:
            await make_temporary(pool)
            assert await pool.fetchval("SELECT word FROM misleading") == "true"
            assert await pool.fetchval("SELECT 'a secret'::text") == "a secret"

    asyncio.run(main())


class Tenant(asyncpg.Connection):
    """A class whose methods do more than their arguments tell."""

    async def become(self, tenant):
        await self.execute(f"SET app.tenant = '{tenant}'")

    async def fetchval(self, query, *args, **kwargs):
        await self.execute("SET work_mem = '5MB'")
        return await super().fetchval(query, *args, **kwargs)


@pytest.mark.parametrize("session_reset", RESETS)
def test_what_a_users_connection_class_does_is_reset(address, session_reset):
    """By a method that asyncpg's has not, or by one that asyncpg's has."""

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset=session_reset, connection_class=Tenant) as pool:
            for _ in range(2):
                async with pool.acquire() as con:
                    await con.become("7")
                assert await leased_state(pool) == clean
                assert await pool.fetchval("SELECT 1") == 1
                assert await leased_state(pool) == clean

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_statement_that_was_begun_and_not_awaited_does_not_reach_the_next_lease(address, loop_factory, session_reset):
    """A task that takes its first step when the lease is over gets an error; nobody else notices it."""

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset=session_reset) as pool:
            for waits in (True, False):
                with contextlib.suppress(asyncpg.InterfaceError):  # an awaited reset may meet it
                    async with pool.acquire() as con:
                        await con.fetchval("SELECT 1")
                        stray = asyncio.ensure_future(con.execute("SET app.tenant = '7'"))
                if not waits:
                    await asyncio.wait([stray])
                assert await leased_state(pool) == clean
                await asyncio.wait([stray])
                assert isinstance(stray.exception(), asyncpg.InterfaceError)
                assert await leased_state(pool) == clean

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


# ---- the answer to a reset, byte by byte ----

STATEMENTS = 3


def message(kind, body=b""):
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def completed(tag=b"RESET"):
    return message(b"C", tag + b"\0")


READY = message(b"Z", b"I")
PARAMETER = message(b"S", b"TimeZone\0UTC\0")
NOTICE = message(b"N", b"SNOTICE\0\0")
NOTIFICATION = message(b"A", b"\0\0\0\1channel\0payload\0")
ROWS = message(b"T", b"\0\0") + message(b"D", b"\0\0")
CLEAN = ROWS + completed(b"SELECT 1") + completed() + message(b"I") + completed() + READY
MIXED = NOTICE + ROWS + completed(b"SELECT 1") + PARAMETER + completed() + NOTIFICATION + completed() + READY
SURPLUS = message(b"1") + message(b"2") + completed(b"SELECT 9")


class Recorder:
    """Stands for the driver's protocol, the transport and the session at once, and remembers the order of things."""

    def __init__(self):
        self.clean_answer = None
        self.calls = []
        self.current = "driver"
        self.forwarded = b""
        self.failures = []

    def set_protocol(self, protocol):
        self.current = "driver" if protocol is self else "answer"
        self.calls.append(f"transport to {self.current}")

    def data_received(self, data):
        self.forwarded += bytes(data)
        self.calls.append(f"data while transport is with {self.current}")

    def connection_lost(self, exc):
        self.calls.append(("lost", exc))

    def connection_gone(self, reason):
        self.calls.append(f"session lost: {reason}")

    def pause_writing(self):
        self.calls.append("pause")

    def resume_writing(self):
        self.calls.append("resume")

    def keep_clean_answer(self, answer):
        self.clean_answer = answer

    def setting_reported(self):
        pass

    def answer_complete(self):
        self.calls.append("answered")

    def answer_failed(self, reason):
        self.failures.append(reason)
        self.calls.append("failed")


def expecting(clean=None, *, is_wanted=True):
    recorder = Recorder()
    recorder.clean_answer = clean
    answer = ResetProtocol(recorder, recorder, recorder, STATEMENTS)
    answer.expect()
    answer.is_wanted = is_wanted
    assert answer.is_due
    assert recorder.current == "answer"
    return answer, recorder


def assert_finished(answer, recorder, forwarded=b""):
    assert recorder.failures == []
    assert not answer.is_due
    assert recorder.current == "driver"
    assert recorder.calls.count("answered") == 1
    assert recorder.forwarded == forwarded


def assert_failed(answer, recorder):
    assert len(recorder.failures) == 1
    assert not answer.is_due
    assert recorder.current == "driver"
    assert "answered" not in recorder.calls


@pytest.mark.parametrize("clean", [None, CLEAN, CLEAN[:-6] + completed() + READY], ids=["first", "known", "other"])
@pytest.mark.parametrize("reply", [CLEAN, MIXED], ids=["clean", "mixed"])
@pytest.mark.parametrize("surplus", [b"", SURPLUS], ids=["alone", "surplus"])
def test_an_answer_cut_anywhere_is_understood(clean, reply, surplus):
    """An answer in any two pieces, or byte by byte, is taken out, with its notices; all else reaches the driver."""
    forwarded = (PARAMETER + NOTIFICATION if reply is MIXED else b"") + surplus
    stream = reply + surplus
    cuts = [[cut] for cut in range(1, len(stream))] + [[], list(range(1, len(reply)))]
    for cut in cuts:
        answer, recorder = expecting(clean)
        for begin, end in zip([0, *cut], [*cut, len(stream)], strict=True):
            (answer if recorder.current == "answer" else recorder).data_received(stream[begin:end])
        assert_finished(answer, recorder, forwarded)


def test_the_clean_answer_is_learned_once_and_for_each_answer_alike():
    """The first answer in one piece and with nothing else in it becomes the one that later answers are compared to."""
    answer, recorder = expecting()
    answer.data_received(CLEAN + SURPLUS)
    assert recorder.clean_answer == CLEAN
    for _ in range(3):
        answer.expect()
        answer.data_received(CLEAN)
        assert not answer.is_due
    assert recorder.clean_answer == CLEAN


@pytest.mark.parametrize("pieces", [[MIXED], [CLEAN[:30], CLEAN[30:]], [NOTICE, CLEAN], [PARAMETER + CLEAN]])
def test_an_answer_with_something_else_in_it_is_not_learned(pieces):
    """What came in pieces, or had a notice or a parameter in it, is no model for later answers."""
    answer, recorder = expecting()
    for piece in pieces:
        answer.data_received(piece)
    assert not answer.is_due
    assert recorder.clean_answer is None


def test_what_comes_with_the_answer_is_forwarded_at_once_and_surplus_after_the_hand_back():
    """The driver hears of a setting while the answer is due, and of its own data when it has the transport again."""
    answer, recorder = expecting()
    answer.data_received(PARAMETER + CLEAN + SURPLUS)
    assert recorder.calls == [
        "transport to answer",
        "data while transport is with answer",
        "transport to driver",
        "data while transport is with driver",
        "answered",
    ]


def test_an_error_after_the_last_statement_comes_too_late_to_matter():
    """As a time limit that is noticed while the server logs the commit: the session is reset, and that is no model."""
    answer, recorder = expecting()
    late = message(b"E", b"SERROR\0C57014\0\0")
    answer.data_received(completed() * STATEMENTS + late + READY)
    assert_finished(answer, recorder)
    assert recorder.clean_answer is None


BAD = {
    "error": completed() + message(b"E", b"SERROR\0C42501\0\0") + READY,
    "error at once": message(b"E", b"SFATAL\0C57P01\0\0"),
    "in a transaction": CLEAN[:-1] + b"T",
    "in a failed one": CLEAN[:-1] + b"E",
    "too few": completed() + READY,
    "too many": completed() * (STATEMENTS + 1) + READY,
    "none": READY,
    "copy": message(b"H", b"\0\0\0"),
    "extended": message(b"1"),
    "authentication": message(b"R", b"\0\0\0\0"),
    "zero byte": b"\0\0\0\0\4",
    "too short": b"C\0\0\0\3",
    "no length": b"C\0\0\0\0",
    "too long": b"C" + (LONGEST_ANSWER_BYTES + 1).to_bytes(4, "big"),
    "absurd": b"C\xff\xff\xff\xff",
    "ready without status": b"Z\0\0\0\4",
}


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD)
@pytest.mark.parametrize("clean", [None, CLEAN], ids=["first", "known"])
def test_an_answer_that_is_not_one_fails_the_reset(reply, clean):
    """Anything but the clean end of all statements is a failure, however it is cut, and gives the transport back."""
    for cut in range(len(reply)):
        answer, recorder = expecting(clean)
        answer.data_received(reply[:cut]) if cut else None
        if recorder.current == "answer":
            answer.data_received(reply[cut:])
        assert_failed(answer, recorder)
        assert recorder.clean_answer == clean


ENDLESS = {
    "notices": NOTICE,
    "parameters": PARAMETER,
    "notifications": NOTIFICATION,
    "rows": message(b"D", b"\0\0"),
    "statements": completed(),
    "empty messages": message(b"I"),
    "large notices": message(b"N", bytes(60_000)),
    "one message, byte by byte": b"D" + (LONGEST_ANSWER_BYTES).to_bytes(4, "big") + bytes(LONGEST_ANSWER_BYTES),
}


@pytest.mark.parametrize("piece", [61, 4096, 1 << 18])
@pytest.mark.parametrize("flood", ENDLESS.values(), ids=ENDLESS)
def test_an_answer_without_an_end_is_given_up(flood, piece):
    """Whatever a server sends in place of the end, it is read for a mebibyte and a piece at most."""
    answer, recorder = expecting(CLEAN)
    recorder.data_received = lambda data: None  # nothing is kept here
    flood *= -(-4 * piece // len(flood))
    stream = memoryview(flood)[: len(flood) // piece * piece]
    sent = 0
    while recorder.current == "answer" and sent < 2 * LONGEST_ANSWER_BYTES:
        answer.data_received(bytes(stream[sent % len(stream) :][:piece]))
        sent += piece
    assert_failed(answer, recorder)
    assert sent <= LONGEST_ANSWER_BYTES + piece


@pytest.mark.parametrize("piece", [61, 4096, 1 << 18])
@pytest.mark.parametrize("comes_with_the_answer", [True, False])
def test_settings_without_an_end_are_given_up_when_nobody_has_the_connection(comes_with_the_answer, piece):
    """asyncpg keeps each, under whatever name. What is not kept, and may come for years, does not count."""
    kept, numbers = bytearray(), iter(range(10_000_000))

    def parameters():
        flood = b""
        while len(flood) < piece:
            flood += message(b"S", b"my.setting%d\0on\0" % next(numbers))
        return flood

    answer, recorder = expecting(CLEAN)
    recorder.data_received = kept.extend
    answer.data_received(CLEAN + (parameters() if comes_with_the_answer else b""))
    answer.stand_guard()
    for _ in range(3 * LONGEST_ANSWER_BYTES // (100 * len(NOTICE + NOTIFICATION))):
        answer.data_received((NOTICE + NOTIFICATION) * 100)
    assert recorder.current == "answer"
    kept.clear()
    for _ in range(2 * LONGEST_ANSWER_BYTES // piece):
        if recorder.current == "answer":
            answer.data_received(parameters())
    assert recorder.current == "driver"
    assert len(kept) <= LONGEST_ANSWER_BYTES
    assert not recorder.failures
    assert "bytes of reported settings, without an end" in recorder.calls[-1]


def test_settings_that_each_reset_reports_are_no_flood():
    """However many leases a connection sees."""
    answer, recorder = expecting(CLEAN)
    recorder.data_received = lambda data: None
    half = PARAMETER * (LONGEST_ANSWER_BYTES // len(PARAMETER) // 2)
    for _ in range(5):
        answer.data_received(half + CLEAN)
        answer.give_back()
        answer.expect()
    assert not recorder.failures


def test_an_answer_that_is_given_up_has_not_cost_much_memory():
    """The largest message that is waited for is kept once, and copied at most twice for a moment."""
    answer, recorder = expecting(CLEAN)
    tracemalloc.start()
    answer.data_received(b"D" + LONGEST_ANSWER_BYTES.to_bytes(4, "big"))
    while recorder.current == "answer":
        answer.data_received(bytes(4096))
    left_bytes, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_failed(answer, recorder)
    assert most_bytes < 4 * LONGEST_ANSWER_BYTES
    assert left_bytes < 100_000


def test_what_drips_in_is_not_copied_with_each_drop():
    """Half a message that comes byte by byte takes as long as it is, not as its square."""

    def seconds(size):
        answer, recorder = expecting()
        answer.data_received(b"D" + LONGEST_ANSWER_BYTES.to_bytes(4, "big"))
        began = time.process_time()
        for _ in range(size):
            answer.data_received(b"x")
        assert recorder.failures == []
        return time.process_time() - began

    short = min(seconds(50_000) for _ in range(3))
    assert min(seconds(200_000) for _ in range(2)) < 10 * short


def test_much_that_follows_the_answer_is_the_next_querys():
    """Only what comes before the answer's end counts towards its length."""
    answer, recorder = expecting()
    large = message(b"D", bytes(LONGEST_ANSWER_BYTES + 1))
    answer.data_received(NOTICE + CLEAN + large)
    assert_finished(answer, recorder, large)


def test_an_answer_that_was_given_up_leaves_nothing_for_the_next():
    """What a reset has counted, or kept of an unfinished message, is forgotten when the transport is given back."""
    answer, recorder = expecting()
    answer.data_received(completed() + completed() + b"C\0")
    answer.give_back()
    answer.expect()
    answer.is_wanted = True
    answer.data_received(CLEAN)
    assert_finished(answer, recorder)


def on_guard():
    answer, recorder = expecting(is_wanted=False)
    answer.data_received(CLEAN)
    assert answer.is_on_guard
    assert not answer.is_due
    assert recorder.calls == ["transport to answer", "answered"]
    recorder.calls.clear()
    return answer, recorder


def test_on_guard_what_may_come_unasked_reaches_the_driver():
    """Cut anywhere, and also if somebody wants the connection in the middle of it."""
    unasked = NOTICE + PARAMETER + NOTIFICATION
    for cut in range(len(unasked) + 1):
        answer, recorder = on_guard()
        answer.data_received(unasked[:cut])
        answer.relieve()
        assert recorder.current == "driver"
        recorder.data_received(unasked[cut:])
        assert recorder.forwarded == unasked
        assert "session lost" not in str(recorder.calls)


@pytest.mark.parametrize("said", [SURPLUS, *BAD.values()], ids=["surplus", *BAD])
def test_on_guard_anything_else_is_the_end(said):
    """The driver would take it for the beginning of the next answer."""
    if said == b"\0\0\0\0\4":
        said += b"\0"
    for cut in range(len(said)):
        answer, recorder = on_guard()
        for piece in (said[:cut], said[cut:]):
            if recorder.current == "answer":
                answer.data_received(piece)
        assert "session lost" in str(recorder.calls)
        assert recorder.forwarded == b""
        assert recorder.failures == []
        assert not answer.is_on_guard


def test_a_surplus_that_nobody_has_asked_for_is_the_end():
    """It comes together with the reset's answer; if somebody has the connection by then, it may be his."""
    answer, recorder = expecting(is_wanted=False)
    answer.data_received(CLEAN + SURPLUS)
    assert "session lost" in str(recorder.calls)
    assert recorder.forwarded == b""


def test_a_lost_connection_is_the_drivers_to_hear():
    """The loss of the connection, and the transport's flow control, reach the driver while an answer is due."""
    answer, recorder = expecting()
    reason = OSError("gone")
    answer.pause_writing()
    answer.resume_writing()
    answer.connection_lost(reason)
    assert recorder.calls[1:] == [
        "pause",
        "resume",
        "transport to driver",
        ("lost", reason),
        "session lost: closed by the server",
    ]
    assert not answer.is_due


def test_giving_back_twice_is_once():
    """The transport is set to the driver's protocol once, however often it is given back."""
    answer, recorder = expecting()
    answer.give_back()
    answer.give_back()
    assert Counter(recorder.calls) == {"transport to answer": 1, "transport to driver": 1}
