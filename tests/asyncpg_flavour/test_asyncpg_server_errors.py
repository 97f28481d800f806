"""What an error of another server costs, and what one of this server does."""

from __future__ import annotations

import asyncpg
import psycopg
import psycopg_pool
import pytest

import loopaware_pool.asyncpg
from asyncpg_drop_in import ONE
from loopaware_pool.psycopg import AsyncConnectionPool
from running import make_pool

pytestmark = pytest.mark.both_drivers


async def in_asyncpg(create, dsn, error, check):
    async with create(dsn, **ONE) as pool:
        for _ in range(5):
            with pytest.raises(type(error)):
                async with pool.acquire() as con:
                    check(con.get_server_pid())
                    raise error


async def in_psycopg(create, dsn, error, check):
    async with create(dsn, min_size=1, max_size=1, open=False) as pool:
        for _ in range(5):
            with pytest.raises(type(error)):
                async with pool.connection() as con:
                    check(con.info.backend_pid)
                    raise error


def psycopgs_own_class(dsn, **options):
    return AsyncConnectionPool(dsn, connection_class=psycopg.AsyncConnection, **options)


POOLS = {
    "asyncpg's": (in_asyncpg, asyncpg.create_pool),
    "asyncpg": (in_asyncpg, loopaware_pool.asyncpg.create_pool),
    "psycopg's": (in_psycopg, psycopg_pool.AsyncConnectionPool),
    "psycopg": (in_psycopg, AsyncConnectionPool),
    "psycopg, its own class": (in_psycopg, psycopgs_own_class),
}


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "57P03", "25006"])
@pytest.mark.parametrize("pool", POOLS)
def test_an_error_of_another_server_costs_no_connection(dsn, run, pool, sqlstate):
    """It ends the body of a lease; but it is not this connection that it came from."""
    use, create = POOLS[pool]
    pids = set()

    async def main():
        for error in (psycopg.errors.lookup(sqlstate)("theirs"), asyncpg.PostgresError.new({"C": sqlstate, "M": "x"})):
            await use(create, dsn, error, pids.add)
            assert len(pids) == 1
            pids.clear()

    run(main())


# A session in which a function, and a commit, fail as if the server shut down.
OMINOUS = """
    CREATE FUNCTION pg_temp.server_state() RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P01'; END $$;
    CREATE FUNCTION pg_temp.late_omen() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P01'; END $$;
    CREATE TEMP TABLE ominous (n int);
    CREATE CONSTRAINT TRIGGER server_state AFTER INSERT ON ominous DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION pg_temp.late_omen();
"""
ASKS = "SELECT pg_temp.server_state()"


async def by_call(con):
    await con.fetchval(ASKS)


async def by_statement(con):
    await (await con.prepare(ASKS)).fetch()


async def by_commit(con):
    async with con.transaction():
        await con.execute("INSERT INTO ominous VALUES (1)")


async def by_cursor(con):
    async with con.transaction():
        await (await con.cursor(ASKS)).fetch(1)


async def by_rows(con):
    async with con.transaction():
        async for _ in con.cursor(ASKS):
            pass


async def by_rows_of_statement(con):
    async with con.transaction():
        async for _ in (await con.prepare(ASKS)).cursor():
            pass


@pytest.mark.parametrize("talk", [by_call, by_statement, by_commit, by_cursor, by_rows, by_rows_of_statement])
def test_an_error_of_this_server_is_heard_by_whatever_it_was_the_answer_to(dsn, run, talk):
    """A connection that was told of the server's end is not lent again, though the caller keep the error to itself."""

    async def init(con):
        await con.execute(OMINOUS)

    async def main():
        async with make_pool(dsn, max_size=1, init=init) as pool:
            async with pool.acquire() as con:
                before = con.get_server_pid()
                with pytest.raises(asyncpg.AdminShutdownError):
                    await talk(con)
            async with pool.acquire() as con:
                assert con.get_server_pid() != before

    run(main())


def test_an_error_that_the_pool_has_not_seen_has_the_server_asked(dsn, run):
    """As of a method of a connection class: where the server is well, the connection is lent again."""

    class OurConnection(asyncpg.Connection):
        async def fail(self):
            await self.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P01'; END $$")

        async def end(self):
            await self.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    async def main():
        async with make_pool(dsn, max_size=1, connection_class=OurConnection) as pool:
            pids = []
            for end in ("fail", "end", "fail"):
                with pytest.raises((asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError)):
                    async with pool.acquire() as con:
                        pids.append(con.get_server_pid())
                        await getattr(con, end)()
            assert pids[0] == pids[1] != pids[2]

    run(main())


def failing_rows():
    yield (1,)
    raise asyncpg.AdminShutdownError("of another server")


async def failing_source():
    yield b"1\n"
    raise asyncpg.AdminShutdownError("of another server")


async def prepared_many(con):
    await (await con.prepare("SELECT $1::int")).executemany(failing_rows())


FED = {
    "executemany": lambda con: con.executemany("SELECT $1::int", failing_rows()),
    "fetchmany": lambda con: con.fetchmany("SELECT $1::int", failing_rows()),
    "a statement's executemany": prepared_many,
    "copy_records_to_table": lambda con: con.copy_records_to_table("fed", records=failing_rows()),
    "copy_to_table": lambda con: con.copy_to_table("fed", source=failing_source()),
}


@pytest.mark.parametrize("feed", FED)
def test_an_error_of_another_server_in_what_feeds_a_call_costs_no_connection(create_pool, dsn, run, feed):
    """The call raises it, but it is not what this server has answered."""

    async def main():
        async with create_pool(dsn, **ONE) as pool:
            async with pool.acquire() as con:
                before = con.get_server_pid()
                await con.execute("CREATE TEMP TABLE fed (n int)")
                with pytest.raises(asyncpg.AdminShutdownError, match="of another server"):
                    await FED[feed](con)
            async with pool.acquire() as con:
                assert con.get_server_pid() == before

    run(main())
