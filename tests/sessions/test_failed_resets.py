"""A reset that fails, or is late, lets nobody act as the last tenant."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import asyncpg
import psycopg
import pytest

import helpers
from failed_resets import (
    MODES,
    OPEN_THE_DOOR,
    RESET_AND_WAY,
    SETTINGS,
    UNCONDITIONAL,
    both_ways,
    by_trigger,
    client_side,
    driver_errors,
    one_connection,
    openly,
    server_side,
    succeed,
    with_and_without_a_waiter,
)
from loopaware_pool._core import shard
from loopaware_pool.asyncpg import TooManyWaiting, create_pool
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.testing import FaultProxy
from servers import dsn_of_role

pytestmark = pytest.mark.both_drivers
MANY_LOCKS = "SELECT count(pg_advisory_lock(n)) FROM generate_series(1, 9000) n"
LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
INSERT = "INSERT INTO inbox SELECT current_user, nullif(current_setting('app.tenant', true), '')"
CACHED_INSERT = INSERT + " WHERE $1"


def inboxes(admin):
    """Who has written what in whose name; and what was written where nobody should."""
    right = admin.execute("SELECT who, tenant FROM public.inbox").fetchall()
    wrong = admin.execute("SELECT who, tenant FROM evil.inbox").fetchall()
    return set(right), wrong


async def insert(con, *, is_cached):
    with driver_errors():
        if is_cached:
            await con.execute(CACHED_INSERT, True)
        else:
            await con.execute(INSERT)


# ---- a reset that fails ----


@with_and_without_a_waiter
@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "simple"])
@pytest.mark.parametrize(("session_reset", "leave"), RESET_AND_WAY)
def test_a_reset_that_times_out_lends_nobody_the_last_tenants_session(
    bank, admin, run, session_reset, is_cached, waits, leave
):
    """Locks that take long to release, and a timeout left behind: the next insert is not run as the last tenant."""
    dirt = [MANY_LOCKS, "SET app.tenant = 'attacker'", "SET search_path = evil", "SET ROLE low"]
    if leave is by_trigger:  # what the server would report gives the lease away
        dirt = dirt[:2]

    async def attack(con):
        if is_cached:
            await con.execute(CACHED_INSERT, False)  # so that the next lease's is one message that runs
        await leave(con, *dirt, "SET statement_timeout = '1ms'")

    async def main():
        helpers.make_known(INSERT, CACHED_INSERT, OPEN_THE_DOOR)
        async with one_connection(bank.dsn, session_reset) as pool:
            for _ in range(10):
                await succeed(pool, attack, lambda con: insert(con, is_cached=is_cached), waits=waits)

    run(main())
    right, wrong = inboxes(admin)
    assert wrong == []
    assert right <= {("postgres", None)}


@both_ways
@pytest.mark.parametrize("session_reset", UNCONDITIONAL)
def test_a_caller_whose_timeout_cancels_the_reset_does_not_act_as_the_last_tenant(
    bank, admin, run, session_reset, leave
):
    """The request to cancel meets the reset in place of the caller's query, which then is not run."""
    rng = random.Random(1)

    async def tenant(con):
        await leave(con, MANY_LOCKS, "SET app.tenant = 'attacker'")

    async def hurried(con):
        with driver_errors():
            await con.execute(CACHED_INSERT, True, timeout=rng.uniform(0.0003, 0.003))

    async def main():
        helpers.make_known(CACHED_INSERT, OPEN_THE_DOOR)
        async with one_connection(bank.dsn, session_reset) as pool:
            for turn in range(40):
                await succeed(pool, tenant, hurried, waits=turn % 2 == 0)

    run(main())
    right, _ = inboxes(admin)
    assert right <= {("postgres", None)}


@both_ways
@with_and_without_a_waiter
@pytest.mark.parametrize("session_reset", UNCONDITIONAL)
def test_a_role_that_was_revoked_lends_nobody_the_last_tenants_session(bank, admin, run, session_reset, waits, leave):
    """The reset cannot take on the role of `init` any more: nothing runs with the last lease's settings."""

    async def init(con):
        await con.execute("SET ROLE duty")

    async def main():
        helpers.make_known(INSERT, OPEN_THE_DOOR)
        dsn = dsn_of_role(bank.dsn, "svc", "svc")
        for _ in range(5):
            admin.execute("GRANT duty TO svc")
            async with one_connection(dsn, session_reset, init=init) as pool:

                async def tenant(con):
                    await leave(con, "SET app.tenant = 'attacker'")
                    admin.execute("REVOKE duty FROM svc")

                with driver_errors():
                    await succeed(pool, tenant, lambda con: insert(con, is_cached=False), waits=waits)

    run(main())
    right, wrong = inboxes(admin)
    assert wrong == []
    assert right <= {("duty", None)}


async def time_out(con, _):
    await con.execute("SET statement_timeout = '1ms'")


async def be_cancelled(con, admin):
    """By requests that reach the server before the reset, while it runs, and after it. Returns what ends with them."""
    pid = con.get_server_pid()
    cancel = "SELECT count(pg_cancel_backend(%s)) FROM generate_series(1, 20), LATERAL pg_sleep(0.0005)"
    return asyncio.get_running_loop().run_in_executor(None, admin.execute, cancel, [pid])


async def find_a_function_in_the_way(con, _):
    await con.execute("RESET ROLE; SET default_transaction_read_only = off")
    await con.execute("""
        CREATE SCHEMA IF NOT EXISTS trap;
        CREATE OR REPLACE FUNCTION trap.pg_advisory_unlock_all() RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
        SET search_path = trap, pg_catalog;
    """)


async def run_out_of_memory_for_locks(con, _):
    with contextlib.suppress(asyncpg.OutOfMemoryError):
        await con.execute("SELECT count(pg_advisory_lock(n)) FROM generate_series(1, 1000000) n")


FAILURES = {
    "timeout": time_out,
    "cancel": be_cancelled,
    "function": find_a_function_in_the_way,
    "memory": run_out_of_memory_for_locks,
}


@with_and_without_a_waiter
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("session_reset", MODES)
def test_whatever_becomes_of_the_reset_the_next_lease_is_a_new_one(bank, admin, run, session_reset, failure, waits):
    """Its server's side and its client's, at its first instruction, are those of a connection that was just made."""

    failures = []

    async def lease(con):
        await con.set_type_codec("json", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        await con.execute("LISTEN somewhere; DECLARE held CURSOR WITH HOLD FOR SELECT 1")
        await con.execute(MANY_LOCKS)
        for name, value in SETTINGS.items():
            await con.execute(f"SET {name} = {value!r}" if name != "role" else "SET ROLE low")
        failures.append(await FAILURES[failure](con, admin))

    async def main():
        helpers.make_known("SELECT 1")
        bare = await asyncpg.connect(bank.dsn)
        expected = client_side(bare), await server_side(bare)
        await bare.close()

        async def look(con):
            client = client_side(con)
            while True:
                with contextlib.suppress(asyncpg.QueryCanceledError):  # by a request that was meant for the reset
                    return client, await server_side(con)

        async with one_connection(bank.dsn, session_reset) as pool:
            for _ in range(3):
                assert await succeed(pool, lease, look, waits=waits) == expected
                if failures[-1] is not None:
                    await failures[-1]
                await helpers.eventually(lambda: admin.execute(LOCKS).fetchone() == (0,))  # a closed session's, too
        assert len(failures) == 3

    run(main())


@pytest.fixture
def talkative(bank):
    """A role whose sessions log at such length that the server looks for interrupts at every step."""
    with psycopg.connect(bank.dsn, autocommit=True) as admin:
        admin.execute("CREATE ROLE talkative LOGIN PASSWORD 'talkative'")
        admin.execute("ALTER ROLE talkative SET log_min_messages = 'debug5'")
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO talkative")
        yield dsn_of_role(bank.dsn, "talkative", "talkative")
        admin.execute("DROP OWNED BY talkative; DROP ROLE talkative")


@pytest.mark.parametrize("session_reset", UNCONDITIONAL)
def test_a_reset_that_times_out_between_its_last_statement_and_its_commit(talkative, admin, run, session_reset):
    """The guard is up until then: nothing is run as the last tenant."""
    count = 60_000 if admin.info.server_version >= 160_000 else 2_000  # up to 15, each costs as much as all before it
    many = f"PERFORM count(set_config('zz.g' || i, 'x', false)) FROM generate_series(1, {count}) i"

    async def main():
        helpers.make_known(INSERT, OPEN_THE_DOOR)
        async with one_connection(talkative, session_reset) as pool:
            for milliseconds in (3, 6, 9, 12, 15) * 2:

                async def tenant(con, limit=milliseconds):
                    await by_trigger(con, many, "SET app.tenant = 'attacker'", f"SET statement_timeout = '{limit}ms'")

                await succeed(pool, tenant, lambda con: insert(con, is_cached=False), waits=False)

    run(main())
    right, _ = inboxes(admin)
    assert right <= {("talkative", None)}


@pytest.mark.parametrize("session_reset", MODES)
def test_a_call_that_was_closed_in_the_middle_is_not_followed(bank, run, session_reset):
    """Its statement runs on, whether or not the reset before it has been answered; nobody is lent that."""

    async def main():
        helpers.make_known("SELECT 1")
        async with one_connection(bank.dsn, session_reset) as pool:
            for _ in range(3):
                async with pool.acquire() as con:
                    await con.fetchval("SELECT 1")
                with driver_errors():
                    async with pool.acquire() as con:
                        call = con.execute("SET app.tenant = 'attacker'")
                        call.send(None)
                        call.close()
                assert await pool.fetchval("SELECT nullif(current_setting('app.tenant', true), '')") is None

    run(main())


@pytest.mark.parametrize("session_reset", MODES)
def test_a_method_that_was_replaced_may_do_more_than_its_arguments_tell(bank, run, monkeypatch, session_reset):
    """As a tracer's does: what it leaves is reset like any other statement's."""
    fetchval = asyncpg.Connection.fetchval

    async def traced(con, query, *args, **options):
        await con.execute("SET app.tenant = 'attacker'")
        return await fetchval(con, query, *args, **options)

    async def main():
        helpers.make_known("SELECT 1")
        async with one_connection(bank.dsn, session_reset) as pool:
            await pool.expire_connections()
            monkeypatch.setattr(asyncpg.Connection, "fetchval", traced)
            for _ in range(3):
                await pool.fetchval("SELECT 1")
            tenant = "SELECT nullif(current_setting('app.tenant', true), '')"
            assert (await pool.fetchrow(tenant))[0] is None

    run(main())


def test_with_confirmed_no_lease_is_followed_before_its_answer(bank, run):
    """Not even one that has left nothing, which the default follows at once."""

    async def main():
        helpers.make_known("SELECT 1")
        for session_reset, are_reset_first in (("confirmed", 1), ("pipelined", 0)):
            async with one_connection(bank.dsn, session_reset) as pool:
                for _ in range(3):
                    async with pool.acquire() as con:
                        await con.fetchval("SELECT 1")
                    assert pool.stats().loops[0].resetting == are_reset_first
                    await pool.settled()

    run(main())


# ---- who waits for what ----


@pytest.mark.parametrize("session_reset", ["pipelined", "when_dirty", "confirmed"])
def test_a_caller_alone_opens_no_second_connection_while_its_reset_is_answered(bank, run, monkeypatch, session_reset):
    """A release returns at once, and the next acquire waits for the answer rather than for a connect."""
    monkeypatch.setattr(shard, "STEP_SECONDS", 60.0)  # how long it waits; a machine under load needs longer than 20 ms

    async def main():
        async with create_pool(bank.dsn, min_size=1, max_size=10, session_reset=session_reset) as pool:
            for turn in range(200):
                async with pool.acquire() as con:
                    await con.execute(f"SET app.turn = {turn}")
            assert pool.get_size() == 1

    run(main())


@pytest.mark.parametrize("session_reset", ["pipelined", "when_dirty", "confirmed"])
def test_who_waits_for_an_answer_only_is_not_refused(bank, run, monkeypatch, session_reset):
    """`max_waiting` is for callers who wait for others to be done."""
    monkeypatch.setattr(shard, "SILENT_SECONDS", 60.0)  # a busy machine may answer late

    async def work(pool):
        for turn in range(50):
            async with pool.acquire() as con:
                await con.execute(f"SET app.turn = {turn}")

    async def main():
        options = {"min_size": 3, "max_size": 3, "max_waiting": 1, "session_reset": session_reset}
        async with create_pool(bank.dsn, **options) as pool:
            await asyncio.gather(*(work(pool) for _ in range(3)))

    run(main())


@pytest.mark.parametrize("session_reset", ["pipelined", "when_dirty", "confirmed"])
def test_who_waits_for_the_answer_of_a_silent_server_may_be_refused(bank, run, monkeypatch, session_reset):
    """
    However many resets it owes: an answer that is late counts for nobody any more. A connect in place of a silent
    connection counts for one caller.
    """
    monkeypatch.setattr(shard, "SILENT_SECONDS", 0.05)

    async def main(proxy):
        options = {"min_size": 3, "max_size": 3, "max_waiting": 1, "session_reset": session_reset}
        async with create_pool(proxy.dsn, **options) as pool:
            lent = [await pool.acquire() for _ in range(3)]
            for con in lent:
                await con.execute("SET app.tenant = 'left'")
            proxy.freeze()
            for con in lent:
                await pool.release(con)
            await asyncio.sleep(0.1)
            waiters = []
            for _ in range(5):
                waiter = asyncio.ensure_future(pool.acquire(timeout=30))
                await helpers.spin(2)
                if waiter.done():
                    break
                waiters.append(waiter)
            with pytest.raises(TooManyWaiting):
                await waiter
            proxy.heal()
            for waiter in waiters:
                await pool.release(await waiter)

    with FaultProxy(bank.dsn) as proxy:
        run(main(proxy))


# ---- a reset that waits for others ----


@contextlib.contextmanager
def unfinished_write(bank):
    """Somebody has written in a serializable transaction, and does not end it."""
    with psycopg.connect(bank.dsn) as writer:
        writer.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        writer.execute("INSERT INTO public.words VALUES ('unfinished')")
        yield


PATIENT = [
    "SET default_transaction_isolation = serializable",
    "SET default_transaction_read_only = on",
    "SET default_transaction_deferrable = on",
]
WELL_BELOW_A_RESETS_LIMIT_SECONDS = 10


@with_and_without_a_waiter
@pytest.mark.parametrize("session_reset", MODES)
def test_a_reset_does_not_wait_for_others_to_write(bank, admin, run, session_reset, waits):
    """The first query of a transaction that is serializable, read-only and deferrable does, for as long as it takes."""

    async def main():
        async with one_connection(bank.dsn, session_reset) as pool:
            pid = await pool.fetchval("SELECT pg_backend_pid()")
            async with asyncio.timeout(WELL_BELOW_A_RESETS_LIMIT_SECONDS):
                found = await succeed(
                    pool,
                    lambda con: openly(con, *PATIENT),
                    lambda con: con.fetchrow("SELECT pg_backend_pid(), current_setting('transaction_isolation')"),
                    waits=waits,
                )
            assert tuple(found) == (pid, "read committed")

    with unfinished_write(bank):
        run(main())


def test_an_awaited_reset_of_psycopgs_does_not_wait_for_others_to_write(bank, admin, run):
    """As asyncpg's."""

    async def main():
        async with AsyncConnectionPool(bank.dsn, min_size=1, max_size=1, session_reset="awaited", open=False) as pool:
            async with asyncio.timeout(WELL_BELOW_A_RESETS_LIMIT_SECONDS):
                async with pool.connection() as con:
                    pid = con.info.backend_pid
                    await con.set_autocommit(True)
                    for statement in PATIENT:
                        await con.execute(statement)
                async with pool.connection() as con:
                    assert con.info.backend_pid == pid
                    cursor = await con.execute("SELECT current_setting('transaction_isolation')")
                    assert await cursor.fetchone() == ("read committed",)

    with unfinished_write(bank):
        run(main())
