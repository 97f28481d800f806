"""The life of a pool on every kind of server and transport."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import sql

from running import end_abruptly, end_politely, make_pool, no_session_left, no_socket_left

pytestmark = [pytest.mark.thorough, pytest.mark.both_pythons, pytest.mark.both_drivers]


class Place(NamedTuple):
    """A server, and the way to it."""

    fixture: str
    dsn: str
    version: str
    is_tcp: bool
    is_tls: bool

    def reach(self, request):
        server = request.getfixturevalue(self.fixture)
        if self.fixture == "server" and {"LOOPAWARE_TEST_DSN", "LOOPAWARE_TEST_POSTGRES"} & os.environ.keys():
            pytest.skip("the environment replaces PostgreSQL 18")
        extra: dict[str, Any] = {"ssl": server.ssl_context} if self.is_tls else {}
        return getattr(server, self.dsn), extra


PLACES = {
    "18-TCP": Place("server", "dsn", "18.", is_tcp=True, is_tls=False),
    "18-Unix": Place("server", "unix_dsn", "18.", is_tcp=False, is_tls=False),
    "15-TCP": Place("pg15_server", "dsn", "15.", is_tcp=True, is_tls=False),
    "16-TCP": Place("pg16_server", "dsn", "16.", is_tcp=True, is_tls=False),
    "17-TCP": Place("pg17_server", "dsn", "17.", is_tcp=True, is_tls=False),
    "17-Unix": Place("pg17_server", "unix_dsn", "17.", is_tcp=False, is_tls=False),
    "17-TLS": Place("tls_server", "dsn", "17.", is_tcp=True, is_tls=True),
}


@pytest.fixture(params=PLACES)
def place(request):
    return PLACES[request.param]


@pytest.fixture
def role(place, request):
    """A role that a session may take on, and should not keep."""
    dsn, _ = place.reach(request)
    name = f"guest_{os.getpid()}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
        yield name
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


async def describe(connection):
    """What kind of server this is: its version, and whether it is reached over TCP and TLS."""
    return (
        await connection.fetchval("SHOW server_version"),
        await connection.fetchval("SELECT inet_server_addr() IS NOT NULL"),
        await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"),
    )


STATE = """
SELECT pg_backend_pid(), current_setting('work_mem'), current_user::text, (SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND pid = pg_backend_pid()), (SELECT count(*) FROM pg_listening_channels())
"""


async def soil(connection, role):
    await connection.execute("SET work_mem = '1234kB'; SELECT pg_advisory_lock(pg_backend_pid()); LISTEN somewhere")
    await connection.execute(f'SET ROLE "{role}"')


def test_a_life(place, role, run, request):
    """A pool opens, lends, resets what a session left behind, serves more tasks than it has, and closes for good."""
    dsn, extra = place.reach(request)
    pool = make_pool(dsn, min_size=1, max_size=2, **extra)

    async def main():
        async with pool:
            async with pool.acquire() as connection:
                version, is_tcp, is_tls = await describe(connection)
                assert (version[:3], is_tcp, is_tls) == (place.version, place.is_tcp, place.is_tls)
                clean = await connection.fetchrow(STATE)
                await soil(connection, role)
                soiled = await connection.fetchrow(STATE)
            assert list(soiled) == [clean[0], "1234kB", role, 1, 1]
            await pool.settled()
            async with pool.acquire() as connection:
                assert await connection.fetchrow(STATE) == clean
            assert sorted(await asyncio.gather(*[pool.fetchval("SELECT $1::int", n) for n in range(20)])) == [
                *range(20)
            ]
            await pool.settled()
            assert pool.get_size() == pool.get_idle_size()

    with no_socket_left():
        run(main())
    assert pool.fd_report() == []
    no_session_left(dsn, pool)


# uvloop cannot be told that a TLS transport which its own `loop.close()` has closed is closed. The warning itself is
# ignored: as an error, it would keep the frame that the collector came to, and with it the next loop's transports.
@pytest.mark.filterwarnings("ignore:unclosed transport <uvloop.loop._SSLProtocolTransport:ResourceWarning")
@pytest.mark.parametrize("end", [end_politely, end_abruptly])
def test_a_life_that_nobody_ends(end, place, loop_factory, request):
    """Without `close`, the end of the loop closes the connections, and another loop gets its own."""
    dsn, extra = place.reach(request)
    pool = make_pool(dsn, **extra)
    kept = []

    async def main():
        await pool
        async with pool.acquire() as lent:
            assert [await pool.fetchval("SELECT 1"), await lent.fetchval("SELECT 1")] == [1, 1]
        kept.append(await pool.acquire())

    for _ in range(2):
        with no_socket_left():
            end(loop_factory, main())
    no_session_left(dsn, pool)
    kept.clear()
    pool = None  # it may hold on to the loops, and so to what uvloop complains of
    gc.collect()
