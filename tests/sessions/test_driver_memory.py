"""Nobody inherits what the driver remembers of a session: encodings, codecs, settings, notices."""

from __future__ import annotations

import asyncio
import contextlib
import json

import asyncpg
import psycopg
import pytest
from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.transaction import Transaction
from psycopg.adapt import Loader
from psycopg.types.string import StrDumper

import helpers
from failed_resets import (
    MODES,
    OPEN_THE_DOOR,
    REPORTED,
    RESET_AND_WAY,
    SETTINGS,
    WAYS,
    both_ways,
    client_side,
    driver_errors,
    one_connection,
    server_side,
    succeed,
    with_and_without_a_waiter,
)
from loopaware_pool.asyncpg import client_memory as asyncpg_memory
from loopaware_pool.psycopg import AsyncConnectionPool

pytestmark = pytest.mark.both_drivers
UNREPORTED = ("search_path", "statement_timeout", "app.tenant")  # the first is, from PostgreSQL 18 on


# ---- what the driver remembers ----


async def set_for_the_lease(con, setting, query):
    await con.execute(f"SET {setting}")
    await con.fetchval(query)


async def set_and_reset(con, setting, query):
    await set_for_the_lease(con, setting, query)
    await con.execute(f"RESET {setting.split()[0]}")


async def set_for_a_transaction(con, setting, query):
    async with con.transaction():
        await con.execute(f"SET LOCAL {setting}")
        await con.fetchval(query)


@pytest.mark.parametrize("session_reset", MODES)
@pytest.mark.parametrize("use", [set_for_the_lease, set_and_reset, set_for_a_transaction])
@pytest.mark.parametrize(
    ("setting", "query"),
    [
        ("TimeZone = 'Asia/Tokyo'", "SELECT '2024-01-01 00:00'::timestamptz"),
        ("standard_conforming_strings = off", r"SELECT 'a\\b'"),
        ("DateStyle = 'SQL, DMY'", "SELECT '01/02/2024'::date"),
    ],
)
def test_a_cached_statement_is_not_read_by_the_settings_of_the_last_lease(
    bank, run, session_reset, setting, query, use
):
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
                await use(con, setting, query)
            assert await pool.fetchval(query) == expected

    run(main())


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

    run(main())


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

    run(main())
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

    run(main())


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

    run(main())


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

    run(main())


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

    run(main())


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

    run(main())


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

    run(main())


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
            await pool.settled()  # else the answer to this reset may be what tells of the reload, and so be expected
            async with pool.acquire() as con:
                reload("sql_standard")
                while con.get_settings().IntervalStyle != "sql_standard":
                    await con.fetchval("SELECT 1")
            assert pool.stats().loops[0].resetting == 1
            await pool.settled()
            await pool.fetchval("SELECT 1")
            assert pool.stats().loops[0].resetting == 0

    try:
        run(main())
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

    run(main())


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


PREPARED_AFTER = 6  # psycopg prepares a statement that comes a sixth time


@pytest.mark.parametrize("is_local", [True, False], ids=["SET LOCAL", "SET"])
@pytest.mark.parametrize(
    ("setting", "query"),
    [
        ("TimeZone = 'Asia/Tokyo'", "SELECT '2024-01-01 00:00'::timestamptz"),
        ("DateStyle = 'SQL, DMY'", "SELECT '01/02/2024'::date"),
        ("array_nulls = off", "SELECT ('{NULL}'::text[])[1] IS NULL"),
    ],
)
def test_a_statement_that_psycopg_has_prepared_is_read_anew_by_the_next_lease(bank, run, setting, query, is_local):
    """Its literals were read by the settings of the lease that it was prepared in."""

    async def ask(con):
        return await (await con.execute(query)).fetchone()

    async def main():
        options = {"min_size": 1, "max_size": 1, "session_reset": "awaited", "open": False}
        async with AsyncConnectionPool(bank.dsn, **options) as pool:
            async with pool.connection() as con:
                expected = await ask(con)
            async with pool.connection() as con:
                await con.execute(f"SET {'LOCAL ' if is_local else ''}{setting}")
                for _ in range(PREPARED_AFTER):
                    assert await ask(con) != expected
            async with pool.connection() as con:
                assert await ask(con) == expected

    run(main())


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

    run(main())
