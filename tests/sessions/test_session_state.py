"""No session state crosses a release: what a lease leaves behind is gone before the next."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from typing import NamedTuple

import asyncpg
import pytest

import helpers
from session_state import ALWAYS, PLAIN_ROLE, RESETS, leased_state, one_connection, pristine, quiet_handler, state

pytestmark = pytest.mark.both_drivers


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
# What the text of a statement does not tell.
BLIND_SPOTS = [mess for mess in DIRTS if mess.id == "trigger"]


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
def test_the_next_lease_sees_nothing_of_it(address, run, session_reset, mess):
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

    run(main())


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
def test_a_lease_is_reset_when_it_may_have_to_be(address, run, work, resets):
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

    run(main())


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
def test_a_cancelled_query_costs_no_connection(address, run, session_reset):
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

    run(main())


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
def test_callbacks_do_not_outlive_the_lease(address, run, session_reset):
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

    run(main())


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
