"""
PGlite, run for real: PostgreSQL with one session. It takes one client unless told otherwise, and more clients share the
session. It is installed when these tests run; without Node.js they are skipped.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import nullcontext, suppress

import asyncpg
import psycopg
import pytest
from sqlalchemy import text

import loopaware_pool.asyncpg
import loopaware_pool.psycopg
from helpers import eventually
from loopaware_pool.cli import probe
from loopaware_pool.cli.doctor import command as doctor
from loopaware_pool.sqlalchemy import create_async_engine
from pglite import find_pglite, pglite
from servers import ServerUnavailable

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("zero_fd_delta")]

AMPLE_SECONDS = 30.0
# asyncpg waits until the server hangs up, which this one never does.
ENDS_SOON = {"close_timeout": 0.2}
NO_TLS = "sslmode=disable"


@pytest.fixture(scope="module")
def program():
    try:
        return find_pglite()
    except ServerUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def server_of_one(program):
    with pglite(program) as address:
        yield address


@pytest.fixture(scope="module")
def server_of_two(program):
    with pglite(program, max_connections=2) as address:
        yield address


@pytest.fixture
def one(server_of_one):
    """A server as it comes, which takes one client. Its session is as new."""
    return made_new(server_of_one)


@pytest.fixture
def two(server_of_two):
    """A server that takes two clients. Its session is as new."""
    return made_new(server_of_two)


def made_new(address):
    with eventually_connected(address) as connection:
        connection.execute("DISCARD ALL")
    return address


def eventually_connected(address):
    """The server hears a moment later that a client has left."""
    deadline = time.monotonic() + AMPLE_SECONDS
    while True:
        try:
            return psycopg.connect(f"{address}?{NO_TLS}", autocommit=True)
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def until_free(address):
    for _ in range(2):
        eventually_connected(address).close()


def asyncpg_pool(address, **options):
    return loopaware_pool.asyncpg.create_pool(
        address, **{"min_size": 0, "max_size": 1, "acquire_timeout": AMPLE_SECONDS, **ENDS_SOON} | options
    )


def psycopg_pool(address, **options):
    options = {"open": False, "min_size": 0, "max_size": 1} | options
    kwargs = {"prepare_threshold": None} | options.pop("kwargs", {})
    return loopaware_pool.psycopg.AsyncConnectionPool(f"{address}?{NO_TLS}", kwargs=kwargs, **options)


async def with_asyncpg(address):
    async with asyncpg_pool(address) as pool:
        return await asyncio.gather(*(pool.fetchval("SELECT $1::int", number) for number in range(20)))


async def with_psycopg(address):
    async with psycopg_pool(address) as pool:

        async def ask(number):
            async with pool.connection() as connection:
                return (await (await connection.execute("SELECT %s::int", [number])).fetchone())[0]

        return await asyncio.gather(*map(ask, range(20)))


async def with_engine(driver, address):
    options = {"pool_size": 1, "max_overflow": 0}
    engine = create_async_engine(address.replace("postgresql", f"postgresql+{driver}"), **options)

    async def ask(number):
        async with engine.connect() as connection:
            return (await connection.execute(text("SELECT CAST(:n AS int)"), {"n": number})).scalar()

    answers = await asyncio.gather(*map(ask, range(20)))
    with suppress(TimeoutError):
        await asyncio.wait_for(engine.dispose(), 0.2 if driver == "asyncpg" else None)
    return answers


@pytest.mark.parametrize("live", [with_asyncpg, with_psycopg])
def test_a_pool_of_one_serves_many_callers(run, one, live):
    """On a server as it comes."""
    assert run(live(one)) == list(range(20))


LEAVES = "SET search_path = 'nowhere'; SELECT pg_advisory_lock(7); LISTEN news; SET app.tenant = '7'"
LEFT = (
    "SELECT current_setting('search_path') = 'nowhere', (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'), "
    "(SELECT count(*) FROM pg_listening_channels()), current_setting('app.tenant', true)"
)


@pytest.mark.parametrize("options", [{}, {"session_reset": "pipelined"}, {"session_reset": "awaited"}])
def test_a_session_is_reset_after_each_lease(run, two, options):
    """PGlite knows all statements of the reset, and the guard."""

    async def main():
        async with asyncpg_pool(two, **options) as pool:
            for _ in range(3):
                async with pool.acquire() as connection:
                    assert [*await connection.fetchrow(LEFT)][:3] == [False, 0, 0]
                    await connection.execute(LEAVES)
            assert not await pool.fetchval("SELECT current_setting('app.tenant', true)")
        async with psycopg_pool(two, session_reset="awaited") as pool:
            for _ in range(3):
                async with pool.connection() as connection:
                    row = await (await connection.execute(LEFT)).fetchone()
                    assert row[:3] == (False, 0, 0)
                    await connection.execute(LEAVES)

    run(main())


def test_more_connections_than_it_takes_are_refused(run, two):
    """A caller with a timeout waits for those that there are; asyncpg's pool raises the error, as ours without one."""

    async def main():
        async with asyncpg_pool(two, max_size=4, acquire_timeout=None) as pool:
            first = await pool.acquire()
            second = await pool.acquire()
            with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
                await pool.acquire()
            third = asyncio.ensure_future(pool.acquire(timeout=AMPLE_SECONDS))
            await eventually(lambda: pool.stats().totals.connect_failures > 1)
            assert not third.done()
            await pool.release(first)
            await pool.release(await third)
            await pool.release(second)

    run(main())


def test_clients_share_the_session(run, two):
    """What one sets, another finds. So a pool of several connections resets the session of all of them."""

    async def main():
        async with asyncpg_pool(two, max_size=2) as pool, pool.acquire() as one, pool.acquire() as other:
            assert await one.fetchval("SELECT pg_backend_pid()") == await other.fetchval("SELECT pg_backend_pid()")
            await one.execute("SET app.tenant = '7'")
            assert await other.fetchval("SELECT current_setting('app.tenant')") == "7"

    run(main())


ASKS = """
import asyncio, sys, asyncpg
async def main():
    connection = await asyncpg.connect(sys.argv[1], statement_cache_size=int(sys.argv[2]))
    print(await connection.fetchval("SELECT 1"))
    connection.terminate()
asyncio.run(main())
"""


@pytest.mark.parametrize(("cache_size", "codes"), [(100, [0, 1]), (0, [0, 0])])
def test_prepared_statements_of_a_process_are_in_the_way_of_the_next(two, cache_size, codes):
    """As the session outlives its client. Without a cache asyncpg's have no names."""
    command = [sys.executable, "-c", ASKS, two, str(cache_size)]
    done = []
    for _ in range(2):
        until_free(two)
        done.append(subprocess.run(command, check=False, capture_output=True, text=True, timeout=AMPLE_SECONDS))
    assert [one.returncode for one in done] == codes
    assert cache_size == 0 or "DuplicatePreparedStatementError" in done[1].stderr


@pytest.mark.parametrize(("threshold", "works"), [(5, False), (None, True)])
def test_prepared_statements_of_a_connection_are_in_the_way_of_the_next(run, two, threshold, works):
    """The same with psycopg, which prepares a statement that comes the sixth time."""

    async def main():
        for attempt in range(2):
            is_in_the_way = attempt == 1 and not works
            refused = pytest.raises(psycopg.errors.DuplicatePreparedStatement) if is_in_the_way else nullcontext()
            kwargs = {"prepare_threshold": threshold}
            async with psycopg_pool(two, kwargs=kwargs) as pool, pool.connection() as connection:
                for _ in range(5):
                    await connection.execute("SELECT %s::int", [1])
                with refused:
                    await connection.execute("SELECT %s::int", [1])
                if is_in_the_way:
                    await connection.rollback()

    run(main())


def test_a_query_whose_time_is_up_goes_on_at_the_server(run, one):
    """
    It does not cancel. The caller has its error in time; the next one waits until the query is done. A server that
    takes more clients never answers the request: asyncpg's own pool then waits for ever.
    """

    async def main():
        async with asyncpg_pool(one) as pool:
            with pytest.raises(TimeoutError):
                await pool.fetchval("SELECT pg_sleep(1)", timeout=0.1)
            assert await pool.fetchval("SELECT 1", timeout=AMPLE_SECONDS) == 1
        async with psycopg_pool(one) as pool:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), pool.connection() as connection:
                    await connection.execute("SELECT pg_sleep(1)")
            async with pool.connection() as connection:
                assert await (await connection.execute("SELECT 1")).fetchone() == (1,)

    run(main())


def test_a_pool_is_closed_although_the_server_never_hangs_up(run, two):
    """asyncpg's own pool waits for that for ever, ours for ten seconds, or `close_timeout`. psycopg's do not wait."""

    async def main():
        theirs = await asyncpg.create_pool(two, min_size=1, max_size=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(theirs.close(), 1)
        theirs.terminate()
        for pool in (asyncpg_pool(two, min_size=1), psycopg_pool(two, min_size=1)):
            async with asyncio.timeout(AMPLE_SECONDS), pool:
                pass

    run(main())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_an_engine_of_one_connection_serves_many_callers(run, two, driver):
    """With SQLAlchemy."""
    assert run(with_engine(driver, two)) == list(range(20))


def test_the_commands_do_not_wait_for_it_to_hang_up(two, capsys):
    """It is alive, and a PostgreSQL."""
    assert probe.main([two, "--timeout", str(AMPLE_SECONDS)]) == 0
    assert capsys.readouterr().out.startswith("alive, ")
    until_free(two)
    assert doctor.main([two]) in (0, 1)
    assert "PostgreSQL 18" in capsys.readouterr().out
