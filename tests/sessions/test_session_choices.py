"""What the user decides of a reset: by the pool's `reset`, by a connection class, by `init`."""

from __future__ import annotations

import asyncio
import contextlib
import json

import asyncpg
import pytest

import helpers
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.psycopg import AsyncConnectionPool
from session_state import ALWAYS, RESETS, leased_state, one_connection, pristine, quiet_handler

pytestmark = pytest.mark.both_drivers


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
def test_the_reset_callback_replaces_the_reset_and_is_awaited(address, run, session_reset):
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

    run(main())


async def reset_all(con):
    await con.execute("RESET ALL")


@pytest.mark.parametrize("timeout", [0, -1])
@pytest.mark.parametrize("options", [{"session_reset": "awaited"}, {"reset": reset_all}], ids=["awaited", "reset"])
def test_who_takes_what_is_idle_or_nothing_says_nothing_of_the_reset(address, run, timeout, options):
    """Within 0 seconds no awaited reset could succeed, and each such lease would cost its connection."""

    async def main():
        async with one_connection(address, **options) as pool:
            await pool.execute("SELECT 1")
            pids = set()
            for _ in range(2):
                con = await pool.acquire(timeout=timeout)
                pids.add(con.get_server_pid())
                await pool.release(con)
            assert len(pids) == 1
            con = await pool.acquire(timeout=timeout)
            with pytest.raises(TimeoutError):
                await pool.release(con, timeout=0)

    run(main())


def with_reset_query(address, query, **options):
    return one_connection(address, reset_query=query, **options)


@pytest.mark.parametrize("session_reset", ["auto", *RESETS])
@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("", "7"),
        ("SELECT ';', set_config('app.tenant', 'mine', false)", "mine"),
        ("RESET ALL;;SELECT set_config('app.tenant', 'mine', false);", "mine"),
        ("DISCARD ALL", None),
    ],
)
def test_the_users_query_is_sent_in_place_of_the_reset(address, run, session_reset, query, left):
    """It may be anything that is one simple query; the connection is kept, and open transactions are rolled back."""

    async def main():
        async with with_reset_query(address, query, session_reset=session_reset, statement_cache_size=0) as pool:
            pids = set()
            for _ in range(3):
                con = await pool.acquire()
                await con.execute("BEGIN")
                await pool.release(con)
                async with pool.acquire() as con:
                    assert not con.is_in_transaction()
                    await con.execute("SET app.tenant = '7'")
                async with pool.acquire() as con:
                    assert (await con.fetchval("SELECT current_setting('app.tenant', true)") or None) == left
                    pids.add(con.get_server_pid())
            assert len(pids) == 1

    run(main())


@pytest.mark.parametrize("session_reset", ["auto", "pipelined", "confirmed"])
@pytest.mark.parametrize("query", ["SELECT 1/0", "BEGIN", "RESET ALL; SELECT 1/0", "nonsense"])
def test_a_connection_is_closed_if_the_users_query_fails_or_leaves_a_transaction(address, run, session_reset, query):
    """The next lease gets another connection, and its caller does not notice."""

    async def main():
        async with with_reset_query(address, query, session_reset=session_reset) as pool:
            pids = set()
            for _ in range(3):
                async with pool.acquire() as con:
                    assert await con.fetchval("SELECT current_setting('app.tenant', true)") in (None, "")
                    await con.execute("SET app.tenant = '7'")
                    pids.add(con.get_server_pid())
            assert len(pids) == 3

    run(main())


@pytest.mark.parametrize("session_reset", ["auto", "awaited"])
def test_an_awaited_query_of_the_users_that_leaves_a_transaction_fails(address, run, session_reset):
    """The next lease would lose what it writes: it would be rolled back at the release."""

    async def main():
        async with with_reset_query(address, "BEGIN", session_reset=session_reset) as pool:
            for _ in range(2):
                con = await pool.acquire()
                assert not con.is_in_transaction()
                await con.execute("BEGIN")  # so that its reset is awaited in any case
                with pytest.raises(asyncpg.InterfaceError, match="it leaves a transaction open"):
                    await pool.release(con)
            await pool.settled()
            assert pool.stats().size == 0

    run(main())


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (" ;\n", "expected a statement, or '' for nothing"),
        ("SELECT 'a\0'", "cannot have a null character"),
        ("SELECT '\ud800'", "cannot have a lone surrogate"),
    ],
)
def test_a_query_that_no_server_takes_is_refused(query, says):
    """When the pool is made, and not at the first release."""
    with pytest.raises(ValueError, match=f"^reset_query=.*{says}"):
        create_pool("postgresql://nowhere/", reset_query=query)
    with pytest.raises(ValueError, match=f"^reset_query=.*{says}"):
        AsyncConnectionPool("", session_reset="awaited", reset_query=query, open=False)
    AsyncConnectionPool("", session_reset="awaited", reset_query="SELECT 'ü€'", open=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"session_reset": "never"}, "session_reset='never' sends no reset"),
        ({"reset": helpers.spin}, "the function given as reset"),
        ({"connection_class": type("Own", (asyncpg.Connection,), {"get_reset_query": str})}, "connection_class=Own"),
    ],
)
def test_a_query_that_would_never_be_sent_is_refused(options, reason):
    """Sent nowhere, it would mean the opposite of what its user expects."""
    with pytest.raises(ValueError, match=f"reset_query='RESET ALL' would not be sent: {reason}.*leave out one of them"):
        create_pool("postgresql://nowhere/", reset_query="RESET ALL", **options)
    create_pool("postgresql://nowhere/", reset_query="", **options)


def test_a_query_that_an_encoding_could_change_is_refused():
    """asyncpg sends UTF-8 whatever `client_encoding` is, and a lease may have set another one."""
    with pytest.raises(ValueError, match=r"reset_query=.*: expected ASCII.*E'\\u00fc' or U&\"\\00fc\""):
        create_pool("postgresql://nowhere/", reset_query="SET app.town = 'Zürich'")


@pytest.mark.parametrize("session_reset", ["auto", "awaited"])
def test_a_query_in_ascii_means_the_same_in_every_encoding(address, run, session_reset):
    """As the error about another one says."""
    query = r"""RESET ALL; SET app.town = E'Z\u00fcrich'; SELECT 1 AS U&"\00fc" """

    async def main():
        async with with_reset_query(address, query, session_reset=session_reset) as pool:
            async with pool.acquire() as con:
                await con.execute("SET client_encoding = 'LATIN1'")
            async with pool.acquire() as con:
                assert await con.fetchval("SHOW app.town") == "Zürich"

    run(main())


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
def test_a_statement_that_was_begun_and_not_awaited_does_not_reach_the_next_lease(address, run, session_reset):
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

    run(main())
