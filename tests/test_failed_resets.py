"""A reset that fails, or is late, lets nobody act as the last tenant; and nobody inherits what the driver remembers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from contextlib import asynccontextmanager

import asyncpg
import psycopg
import pytest
from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.transaction import Transaction
from psycopg.adapt import Loader
from psycopg.types.string import StrDumper

import helpers
from loopaware_pool._core import shard
from loopaware_pool.asyncpg import TooManyWaiting, create_pool
from loopaware_pool.asyncpg import client_memory as asyncpg_memory
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.testing import FaultProxy
from loopaware_pool.testing.embedded_server import EmbeddedServer
from servers import dsn_of_role

pytestmark = pytest.mark.both_drivers

MODES = ["pipelined", "when_dirty", "confirmed", "awaited"]
# Those that reset a session after a lease whose text tells nothing.
UNCONDITIONAL = ["pipelined", "confirmed", "awaited"]
MANY_LOCKS = "SELECT count(pg_advisory_lock(n)) FROM generate_series(1, 9000) n"
INSERT = "INSERT INTO inbox SELECT current_user, nullif(current_setting('app.tenant', true), '')"
CACHED_INSERT = INSERT + " WHERE $1"
# Nothing in its text says what it does.
OPEN_THE_DOOR = "INSERT INTO public.door VALUES ($1)"

REPORTED = (
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "IntervalStyle",
    "is_superuser",
    "scram_iterations",
    "search_path",
    "session_authorization",
    "standard_conforming_strings",
    "TimeZone",
)
SETTINGS = {
    "application_name": "somebody",
    "client_encoding": "WIN1252",
    "DateStyle": "German, DMY",
    "default_transaction_read_only": "on",
    "IntervalStyle": "iso_8601",
    "search_path": "evil",
    "standard_conforming_strings": "off",
    "TimeZone": "Asia/Tokyo",
    "role": "low",
    "statement_timeout": "12345",
    "app.tenant": "attacker",
}


@pytest.fixture(scope="module")
def bank():
    """A server of its own: a schema and a role to be lured into, and a table whose trigger does whatever it is told."""
    with EmbeddedServer(settings={"max_locks_per_transaction": 128}) as server:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("""
                CREATE ROLE low;
                CREATE ROLE duty;
                CREATE ROLE svc LOGIN PASSWORD 'svc';
                CREATE SCHEMA evil;
                CREATE TABLE public.inbox (who text, tenant text);
                CREATE TABLE evil.inbox (who text, tenant text);
                CREATE TABLE public.words (word text);
                CREATE TYPE public.wrapped AS (number int);
                CREATE TABLE public.door (orders text);
                CREATE FUNCTION public.obey() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN EXECUTE NEW.orders; RETURN NEW; END $$;
                CREATE TRIGGER obeys BEFORE INSERT ON public.door FOR EACH ROW EXECUTE FUNCTION public.obey();
                GRANT USAGE ON SCHEMA evil, public TO low, duty, svc;
                GRANT ALL ON ALL TABLES IN SCHEMA evil, public TO low, duty, svc;
            """)
        yield server


@pytest.fixture
def admin(bank):
    with psycopg.connect(bank.dsn, autocommit=True) as connection:
        connection.execute("TRUNCATE public.inbox, evil.inbox, public.words, public.door")
        yield connection


@pytest.fixture
def run(loop_factory):
    def work(main):
        async def bounded():
            async with asyncio.timeout(60):
                await main()

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(bounded())

    return work


@asynccontextmanager
async def one_connection(dsn, session_reset, **options):
    async with create_pool(dsn, min_size=0, max_size=1, session_reset=session_reset, **options) as pool:
        await pool.fetchval("SELECT 1")
        yield pool


@contextlib.contextmanager
def driver_errors():
    """A caller may hear of a connection that is gone, of its own timeout, or of a reset that it has waited for."""
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        yield


def inboxes(admin):
    """Who has written what in whose name; and what was written where nobody should."""
    right = admin.execute("SELECT who, tenant FROM public.inbox").fetchall()
    wrong = admin.execute("SELECT who, tenant FROM evil.inbox").fetchall()
    return set(right), wrong


async def openly(con, *statements):
    for statement in statements:
        await con.execute(statement)


async def by_trigger(con, *statements):
    for statement in statements:
        orders = statement.replace("SELECT", "PERFORM", 1) if statement.startswith("SELECT") else statement
        await con.execute(OPEN_THE_DOOR, f"DO $do$ BEGIN {orders}; END $do$")


WAYS = [openly, by_trigger]
both_ways = pytest.mark.parametrize("leave", WAYS)
# With "when_dirty", what a text does not tell and the server does not report stays, as is documented.
RESET_AND_WAY = [(mode, leave) for mode in MODES for leave in WAYS if mode in UNCONDITIONAL or leave is openly]
UNREPORTED = ("search_path", "statement_timeout", "app.tenant")  # the first is, from PostgreSQL 18 on
with_and_without_a_waiter = pytest.mark.parametrize("waits", [True, False], ids=["waiter", "no-waiter"])


async def succeed(pool, first, then, *, waits):
    """Lease for *first*, and at once, or by a caller that has queued meanwhile, for *then*."""

    async def second():
        async with pool.acquire() as con:
            return await then(con)

    task = None
    with driver_errors():
        async with pool.acquire() as con:
            if waits:
                task = asyncio.create_task(second())
                await helpers.spin(2)
            await first(con)
    return await (task or asyncio.create_task(second()))


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

    run(main)
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

    run(main)
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

    run(main)
    right, wrong = inboxes(admin)
    assert wrong == []
    assert right <= {("duty", None)}


async def time_out(con, _):
    await con.execute("SET statement_timeout = '1ms'")


async def be_cancelled(con, admin):
    """By requests that reach the server before the reset, while it runs, and after it."""
    pid = con.get_server_pid()
    cancel = "SELECT count(pg_cancel_backend(%s)) FROM generate_series(1, 20), LATERAL pg_sleep(0.0005)"
    asyncio.get_running_loop().run_in_executor(None, admin.execute, cancel, [pid])


async def find_a_function_in_the_way(con, _):
    await con.execute("RESET ROLE")
    await con.execute("""
        CREATE SCHEMA IF NOT EXISTS trap;
        CREATE OR REPLACE FUNCTION trap.pg_advisory_unlock_all() RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
        SET search_path = trap, pg_catalog;
    """)


async def run_out_of_nothing_else(con, _):
    """The memory for locks is used up already."""


FAILURES = {
    "timeout": time_out,
    "cancel": be_cancelled,
    "function": find_a_function_in_the_way,
    "memory": run_out_of_nothing_else,
}


@with_and_without_a_waiter
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("session_reset", MODES)
def test_whatever_becomes_of_the_reset_the_next_lease_is_a_new_one(bank, admin, run, session_reset, failure, waits):
    """Its server's side and its client's, at its first instruction, are those of a connection that was just made."""

    async def lease(con):
        await con.set_type_codec("json", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        await con.execute("LISTEN somewhere; DECLARE held CURSOR WITH HOLD FOR SELECT 1")
        with contextlib.suppress(asyncpg.OutOfMemoryError):
            await con.execute("SELECT count(pg_advisory_lock(n)) FROM generate_series(1, 1000000) n")
        for name, value in SETTINGS.items():
            await con.execute(f"SET {name} = {value!r}" if name != "role" else "SET ROLE low")
        await FAILURES[failure](con, admin)

    async def main():
        helpers.make_known("SELECT 1")
        bare = await asyncpg.connect(bank.dsn)
        expected = client_side(bare), await server_side(bare)
        await bare.close()

        async def look(con):
            return client_side(con), await server_side(con)

        async with one_connection(bank.dsn, session_reset) as pool:
            for _ in range(3):
                assert await succeed(pool, lease, look, waits=waits) == expected

    run(main)


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

    run(main)
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

    run(main)


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

    run(main)


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

    run(main)


# ---- what the driver remembers ----


@pytest.mark.parametrize("session_reset", MODES)
@pytest.mark.parametrize(
    ("setting", "query"),
    [
        ("SET TimeZone = 'Asia/Tokyo'", "SELECT '2024-01-01 00:00'::timestamptz"),
        ("SET standard_conforming_strings = off", r"SELECT 'a\\b'"),
        ("SET DateStyle = 'SQL, DMY'", "SELECT '01/02/2024'::date"),
    ],
)
def test_a_cached_statement_is_not_read_by_the_settings_of_the_last_lease(bank, run, session_reset, setting, query):
    """A literal in its text was read when it was prepared. One that was not prepared by such a lease stays cached."""

    async def main():
        async with one_connection(bank.dsn, session_reset) as pool:
            bare = await asyncpg.connect(bank.dsn)
            expected = await bare.fetchval(query)
            await bare.close()
            async with pool.acquire() as con:
                await con.execute("SET application_name = 'somebody'")
                await con.fetchval("SELECT 1")
                statements = dict(con._con._stmt_cache._entries)
            async with pool.acquire() as con:
                assert statements.items() <= dict(con._con._stmt_cache._entries).items()
                await con.execute(setting)
                await con.fetchval(query)
            assert await pool.fetchval(query) == expected

    run(main)


def client_side(con):
    """What asyncpg shows of a session without asking the server."""
    raw = getattr(con, "_con", con)
    settings = raw.get_settings()
    kinds = (raw._listeners, raw._log_listeners, raw._query_loggers, raw._termination_listeners)
    return (
        {name: getattr(settings, name, None) for name in REPORTED},
        settings.get_text_codec().name,
        [len(callbacks) for callbacks in kinds],
        raw.is_in_transaction(),
    )


async def server_side(con):
    row = await con.fetchrow("""
        SELECT (SELECT array_agg(name || '=' || setting ORDER BY name) FROM pg_settings
                WHERE source = 'session' AND name NOT LIKE 'transaction%'),
               current_user::text, session_user::text, nullif(current_setting('app.tenant', true), ''),
               (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
               (SELECT count(*) FROM pg_cursors WHERE is_holdable),
               (SELECT count(*) FROM pg_listening_channels()),
               json_typeof('[1]'::json), '[1]'::json
    """)
    return tuple(row)


@with_and_without_a_waiter
@pytest.mark.parametrize(
    ("session_reset", "leave", "name"),
    [
        (mode, leave, name)
        for mode in MODES
        for leave in WAYS
        for name in SETTINGS
        if (mode, leave) in RESET_AND_WAY or name not in UNREPORTED
    ],
)
def test_a_setting_of_the_last_lease_is_on_neither_side_of_the_next(bank, run, session_reset, name, waits, leave):
    """What the server reports is what the driver shows and goes by, from the first instruction on."""

    async def lease(con):
        value = SETTINGS[name]
        await leave(con, "SET ROLE low" if name == "role" else f"SET {name} = '{value}'")

    async def look(con):
        client = client_side(con)
        while True:
            with contextlib.suppress(asyncpg.QueryCanceledError):  # by a request that was meant for the reset
                return client, await server_side(con)

    async def main():
        helpers.make_known(OPEN_THE_DOOR, "SELECT 1")
        bare = await asyncpg.connect(bank.dsn)
        expected = client_side(bare), await server_side(bare)
        await bare.close()
        async with one_connection(bank.dsn, session_reset) as pool:
            for _ in range(3):
                assert await succeed(pool, lease, look, waits=waits) == expected

    run(main)


@both_ways
@with_and_without_a_waiter
@pytest.mark.parametrize("encoding", ["WIN1252", "LATIN1", "LATIN9", "SJIS", "KOI8R", "SQL_ASCII"])
@pytest.mark.parametrize("session_reset", MODES)
def test_text_is_not_encoded_by_the_last_leases_encoding(bank, admin, run, session_reset, encoding, waits, leave):
    """A cached statement's text arrives as it was sent."""
    word = "Ã©, not é"

    async def lease(con):
        with contextlib.suppress(asyncpg.PostgresError):
            await leave(con, f"SET client_encoding = '{encoding}'")

    async def say(con):
        await con.execute("INSERT INTO words VALUES ($1)", word)
        return await con.fetchval("SELECT $1::text", word)

    async def main():
        helpers.make_known(OPEN_THE_DOOR, "INSERT INTO words VALUES ($1)", "SELECT $1::text", "SELECT 1")
        async with one_connection(bank.dsn, session_reset) as pool:
            async with pool.acquire() as con:
                await say(con)
            for _ in range(4):
                assert await succeed(pool, lease, say, waits=waits) == word

    run(main)
    assert set(admin.execute("SELECT word FROM public.words").fetchall()) == {(word,)}


@with_and_without_a_waiter
@pytest.mark.parametrize("session_reset", [*MODES, "never"])
def test_a_codec_belongs_to_the_lease_that_has_set_it(bank, run, session_reset, waits):
    """The next has those of `init`; with "never", as with asyncpg, whatever was set last."""

    async def init(con):
        await con.set_type_codec("json", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)

    async def lease(con):
        assert await con.fetchval("SELECT '[1]'::json") == [1]
        await con.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=lambda text: f"mine: {text}")
        await con.set_type_codec("text", schema="pg_catalog", encoder=str.upper, decoder=str.upper)
        assert await con.fetchval("SELECT '[1]'::json") == "mine: [1]"
        assert await con.fetchval("SELECT $1::text", "a") == "A"
        await con.set_type_codec("int4", schema="pg_catalog", format="binary", encoder=bytes, decoder=lambda _: -1)
        assert await con.fetchval("SELECT ROW(1)::wrapped") == (-1,)

    async def look(con):
        row = await con.fetchval("SELECT ROW(1)::wrapped")
        return await con.fetchval("SELECT '[1]'::json"), await con.fetchval("SELECT $1::text", "a"), row

    async def main():
        async with one_connection(bank.dsn, session_reset, init=init) as pool:
            for _ in range(3 if session_reset != "never" else 1):
                async with pool.acquire() as con:
                    pid = con.get_server_pid()
                found = await succeed(pool, lease, look, waits=waits)
                mine = ("mine: [1]", "A", (-1,))
                assert found == (mine if session_reset == "never" else ([1], "a", (1,)))
                async with pool.acquire() as con:
                    assert con.get_server_pid() == pid

    run(main)


class Tenant(asyncpg.Connection):
    async def shout(self):
        await self.set_type_codec("text", schema="pg_catalog", encoder=str.upper, decoder=str.upper)


@pytest.mark.parametrize("session_reset", MODES)
def test_a_codec_that_was_set_past_the_proxy_ends_with_the_lease_too(bank, admin, run, session_reset):
    """By a method of the user's class, or on the connection itself; what asyncpg has found out by itself stays."""
    admin.execute("DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('sad', 'ok')")

    async def main():
        async with one_connection(bank.dsn, session_reset, connection_class=Tenant) as pool:
            for _ in range(2):
                assert await pool.fetchval("SELECT 'ok'::mood") == "ok"
                async with pool.acquire() as con:
                    statements = dict(con._con._stmt_cache._entries)
                async with pool.acquire() as con:
                    assert con._con._stmt_cache._entries == statements
                    await con.shout()
                    assert await con.fetchval("SELECT $1::text", "a") == "A"
                assert await pool.fetchval("SELECT $1::text", "a") == "a"
                async with pool.acquire() as con:
                    await Tenant.shout(con._con)
                assert await pool.fetchval("SELECT $1::text", "a") == "a"

    run(main)


@pytest.mark.parametrize("session_reset", MODES)
def test_a_restored_codec_brings_back_no_outdated_type(bank, admin, run, session_reset):
    """A composite type that `init` has read, and that has changed since, is looked up again, and once."""
    admin.execute("DROP TABLE IF EXISTS shape; CREATE TABLE shape (a int); INSERT INTO shape VALUES (1)")

    async def init(con):
        await con.fetchval("SELECT shape FROM shape")

    async def main():
        async with one_connection(bank.dsn, session_reset, init=init) as pool:
            admin.execute("ALTER TABLE shape ADD COLUMN b int")
            for _ in range(2):
                async with pool.acquire() as con:
                    await con.set_type_codec("json", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
                assert await pool.fetchval("SELECT shape FROM shape") == (1, None)

    run(main)


@pytest.mark.parametrize("session_reset", [*MODES, "never"])
def test_a_task_of_the_last_lease_begins_no_transaction_in_the_next(bank, run, session_reset):
    """Nor runs a statement it has prepared, if its first step comes when the lease has ended."""

    async def main():
        helpers.make_known("SELECT 1")
        async with one_connection(bank.dsn, session_reset) as pool:
            strays = []
            with driver_errors():
                async with pool.acquire() as con:
                    statement = await con.prepare("SELECT 1")
                    transaction = con.transaction()
                    assert isinstance(statement, PreparedStatement)
                    assert isinstance(transaction, Transaction)
                    assert await statement.fetchval() == 1
                    strays += [asyncio.ensure_future(transaction.start()), asyncio.ensure_future(statement.fetch())]
            async with pool.acquire() as con:
                await helpers.spin(20)
                assert not con.is_in_transaction()
                assert await con.fetchval("SELECT 1") == 1
                async with con.transaction():
                    await con.execute("SELECT 1")
            await asyncio.wait(strays)
            assert all(isinstance(stray.exception(), asyncpg.InterfaceError) for stray in strays)

    run(main)


@with_and_without_a_waiter
@pytest.mark.parametrize(("session_reset", "leave"), RESET_AND_WAY)
def test_notices_of_the_last_leases_reset_are_not_heard_by_the_next(bank, run, session_reset, leave, waits):
    """A reset that is told in every detail is told to nobody."""

    async def lease(con):
        await leave(con, "SET client_min_messages = 'debug5'")

    async def listen(con):
        heard = []
        con.add_log_listener(lambda _, notice: heard.append(notice))
        await con.fetchval("SELECT 1")
        await helpers.spin(3)
        con._con._log_listeners.clear()
        return heard

    async def main():
        helpers.make_known(OPEN_THE_DOOR, "SELECT 1")
        async with one_connection(bank.dsn, session_reset) as pool:
            for _ in range(3):
                assert await succeed(pool, lease, listen, waits=waits) == []

    run(main)


@with_and_without_a_waiter
def test_where_asyncpg_hides_what_it_remembers_nothing_is_taken_for_unchanged(bank, run, monkeypatch, waits):
    """No lease is followed before its reset is answered, and a connection with another codec is replaced."""
    monkeypatch.setattr(asyncpg_memory, "_reported_settings", lambda _: None)
    monkeypatch.setattr(asyncpg_memory, "_table_of_codecs", lambda _: None)

    async def lease(con):
        await con.set_type_codec("text", schema="pg_catalog", encoder=str.upper, decoder=str.upper)

    async def pid_and_text(con):
        return con.get_server_pid(), await con.fetchval("SELECT $1::text", "a")

    async def main():
        helpers.make_known("SELECT 1", "SELECT $1::text")
        async with one_connection(bank.dsn, "pipelined") as pool:
            pid, text = await succeed(pool, lease, pid_and_text, waits=waits)
            assert text == "a"
            assert await succeed(pool, pid_and_text, pid_and_text, waits=waits) == (pid, "a")
            async with pool.acquire() as con:
                await con.fetchval("SELECT 1")
            assert pool.stats().loops[0].resetting == 1

    run(main)


@pytest.mark.parametrize("session_reset", ["pipelined", "when_dirty"])
def test_a_setting_that_the_server_was_told_of_is_no_leases_doing(bank, admin, run, session_reset):
    """After a reload in the middle of a lease, and one more reset, leases that only read are clean again."""

    def reload(style):
        admin.execute(f"ALTER SYSTEM SET IntervalStyle = '{style}'")
        admin.execute("SELECT pg_reload_conf()")
        while admin.execute("SHOW IntervalStyle").fetchone() != (style,):  # else a later lease may hear of it
            continue

    async def main():
        helpers.make_known("SELECT 1")
        async with one_connection(bank.dsn, session_reset) as pool:
            async with pool.acquire() as con:
                reload("sql_standard")
                while con.get_settings().IntervalStyle != "sql_standard":
                    await con.fetchval("SELECT 1")
            assert pool.stats().loops[0].resetting == 1
            await pool.settled()
            await pool.fetchval("SELECT 1")
            assert pool.stats().loops[0].resetting == 0

    try:
        run(main)
    finally:
        reload("postgres")


@pytest.mark.parametrize("session_reset", ["pipelined", "when_dirty"])
def test_what_is_done_past_the_proxy_counts_as_something_left(bank, run, session_reset):
    """Unless it only looks."""

    async def main():
        helpers.make_known("SELECT 1")
        async with one_connection(bank.dsn, session_reset) as pool:
            async with pool.acquire() as con:
                assert con.get_server_pid()
                assert con.get_settings().client_encoding == "UTF8"
                assert not con.is_in_transaction()
                assert not con.is_closed()
            assert pool.stats().loops[0].resetting == 0
            async with pool.acquire() as con:
                await con._con.execute("SET app.tenant = 'attacker'")
            assert pool.stats().loops[0].resetting == 1
            assert await pool.fetchval("SELECT nullif(current_setting('app.tenant', true), '')") is None

    run(main)


# ---- who waits for what ----


@pytest.mark.parametrize("session_reset", ["pipelined", "when_dirty", "confirmed"])
def test_a_caller_alone_opens_no_second_connection_while_its_reset_is_answered(bank, run, session_reset):
    """A release returns at once, and the next acquire waits for the answer rather than for a connect."""

    async def main():
        async with create_pool(bank.dsn, min_size=1, max_size=10, session_reset=session_reset) as pool:
            for turn in range(200):
                async with pool.acquire() as con:
                    await con.execute(f"SET app.turn = {turn}")
            assert pool.get_size() == 1

    run(main)


@pytest.mark.parametrize("session_reset", ["pipelined", "when_dirty", "confirmed"])
def test_who_waits_for_an_answer_only_is_not_refused(bank, run, session_reset):
    """`max_waiting` is for callers who wait for others to be done."""

    async def work(pool):
        for turn in range(50):
            async with pool.acquire() as con:
                await con.execute(f"SET app.turn = {turn}")

    async def main():
        options = {"min_size": 3, "max_size": 3, "max_waiting": 1, "session_reset": session_reset}
        async with create_pool(bank.dsn, **options) as pool:
            await asyncio.gather(*(work(pool) for _ in range(3)))

    run(main)


@pytest.mark.parametrize("session_reset", ["pipelined", "when_dirty", "confirmed"])
def test_who_waits_for_the_answer_of_a_silent_server_may_be_refused(bank, run, monkeypatch, session_reset):
    """However many resets it owes: an answer that is late counts for nobody any more."""
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
            waiter = asyncio.ensure_future(pool.acquire(timeout=30))
            await helpers.spin(2)
            with pytest.raises(TooManyWaiting):
                await pool.acquire(timeout=30)
            proxy.heal()
            await pool.release(await waiter)

    with FaultProxy(bank.dsn) as proxy:
        run(lambda: main(proxy))


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
        run(main)


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
        run(main)


# ---- psycopg ----


class Shouting(StrDumper):
    def dump(self, obj):
        return super().dump(obj).upper()


class Reversed(Loader):
    def load(self, data):
        return bytes(data).decode()[::-1]


def psycopg_side(con):
    """What psycopg shows of a session without asking the server."""
    return {
        "encoding": con.info.encoding,
        "parameters": {name: con.info.parameter_status(name) for name in REPORTED},
        "autocommit": con.autocommit,
        "isolation": con.isolation_level,
        "backlog": len(getattr(con, "_notifies_backlog", None) or ()),
        "handlers": (len(con._notice_handlers), len(con._notify_handlers)),
        "two-phase": con._tpc,
        "nesting": con._num_transactions,
        "status": con.pgconn.transaction_status,
        "cursor": con.cursor_factory,
        "row": con.row_factory,
    }


async def leave_settings(con):
    await con.set_autocommit(True)
    for name, value in SETTINGS.items():
        await con.execute(f"SET {name} = {value!r}" if name != "role" else "SET ROLE low")


async def leave_adapters(con):
    con.adapters.register_dumper(str, Shouting)
    con.adapters.register_loader("text", Reversed)


async def leave_a_backlog(con):
    await con.set_autocommit(True)
    await con.execute("LISTEN somewhere")
    for _ in range(3):
        await con.execute("NOTIFY somewhere, 'x'")


async def leave_two_phases(con):
    await con.tpc_begin(con.xid(1, "a", "b"))
    await con.execute("SELECT 1")


async def leave_a_block(con):
    await con.set_autocommit(True)
    await con.transaction().__aenter__()


async def leave_factories(con):
    con.row_factory = psycopg.rows.dict_row
    con.cursor_factory = psycopg.AsyncClientCursor
    con.add_notice_handler(print)
    await con.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)


@with_and_without_a_waiter
@pytest.mark.parametrize(
    "leave",
    [leave_settings, leave_adapters, leave_a_backlog, leave_two_phases, leave_a_block, leave_factories],
)
def test_nothing_that_psycopg_remembers_crosses_an_awaited_reset(bank, run, leave, waits):
    """Both sides of the next lease are as `configure` left them; its adapters, too."""

    async def configure(con):
        con.adapters.register_dumper(str, StrDumper)
        await con.execute("SET ROLE duty")
        await con.commit()

    async def look(con):
        side = psycopg_side(con)
        query = "SELECT pg_backend_pid(), %s::text, current_user, nullif(current_setting('app.tenant', true), '')"
        return side, await (await con.execute(query, ["a"])).fetchone()

    async def main():
        options = {"min_size": 1, "max_size": 1, "session_reset": "awaited", "configure": configure}
        async with AsyncConnectionPool(bank.dsn, open=False, **options) as pool:

            async def second():
                async with pool.connection() as con:
                    return await look(con)

            expected = await second()
            assert expected[1][1:] == ("a", "duty", None)
            for _ in range(3):
                con = await pool.getconn()
                task = asyncio.create_task(second()) if waits else None
                await helpers.spin(2)
                await leave(con)
                await pool.putconn(con)
                side, (pid, *row) = await (task or asyncio.create_task(second()))
                assert (side, tuple(row)) == (expected[0], expected[1][1:])
                # A block that is still open cannot be ended for its holder.
                assert (pid == expected[1][0]) is (leave is not leave_a_block)

    run(main)
