"""What is asked of TLS reaches the driver as it was given, at every connect, and nothing less is taken instead."""

from __future__ import annotations

import asyncio
import ssl

import asyncpg
import psycopg
import pytest
import trustme

import helpers
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.errors import PoolTimeout
from loopaware_pool.psycopg import AsyncConnectionPool
from running import DEADLINE_SECONDS, eventually_async

pytestmark = pytest.mark.both_drivers

IS_ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
# None of these is the driver's default.
ASYNCPG_OPTIONS = {"ssl": "verify-full", "direct_tls": True, "server_settings": {"application_name": "tls"}}
PSYCOPG_OPTIONS = {"sslmode": "verify-full", "sslrootcert": "/no/such/file", "sslnegotiation": "direct"}


def strange_context():
    """One that trusts nobody who is here."""
    context = ssl.create_default_context()
    trustme.CA().configure_trust(context)
    return context


def test_asyncpgs_options_reach_it_unchanged_at_every_connect():
    """The same objects, not copies: at first, when it reconnects, and after they were replaced."""
    given = []

    async def connect(*args, **kwargs):
        given.append((args, kwargs))
        raise OSError

    async def main():
        context = ssl.create_default_context()
        pool = create_pool("postgresql://here", min_size=0, connect=connect, **ASYNCPG_OPTIONS)
        async with pool:
            for _ in range(2):
                with pytest.raises(OSError):
                    await pool.acquire()
            pool.set_connect_args("postgresql://there", ssl=context, direct_tls=True)
            with pytest.raises(OSError):
                await pool.acquire()
        (*before, after) = given
        assert len(before) == 2
        for args, kwargs in before:
            assert args == ("postgresql://here",)
            assert {name: kwargs[name] for name in ASYNCPG_OPTIONS} == ASYNCPG_OPTIONS
        assert after[0] == ("postgresql://there",)
        assert after[1]["ssl"] is context
        assert after[1]["direct_tls"] is True

    asyncio.run(main())


def test_psycopgs_options_reach_it_unchanged_at_every_connect():
    """In the connection string and in `kwargs`, which may be functions, too."""
    given = []

    class Connection(psycopg.AsyncConnection):
        @classmethod
        async def connect(cls, conninfo="", **kwargs):
            given.append((conninfo, kwargs))
            raise OSError

    async def main(conninfo, kwargs):
        pool = AsyncConnectionPool(
            conninfo, min_size=0, max_size=1, open=False, connection_class=Connection, kwargs=kwargs
        )
        already = len(given)
        async with pool:
            patient = asyncio.create_task(pool.getconn(timeout=DEADLINE_SECONDS))
            await eventually_async(lambda: len(given) >= already + 2, "a second connect")
            with pytest.raises(PoolTimeout):
                await pool.getconn(timeout=0.01)
            patient.cancel()

    async def answer(value):
        return value

    dsn = "host=here sslmode=verify-full"
    asyncio.run(main(dsn, PSYCOPG_OPTIONS))
    asyncio.run(main(lambda: answer(dsn), lambda: answer(PSYCOPG_OPTIONS)))
    assert len(given) >= 4
    for conninfo, kwargs in given:
        assert conninfo == dsn
        assert {name: kwargs[name] for name in PSYCOPG_OPTIONS} == PSYCOPG_OPTIONS


async def refused(pool, acquire):
    """What connecting fails with: what a caller is told whose time is up then, or at once if no try would mend it."""
    patient = asyncio.ensure_future(acquire(timeout=DEADLINE_SECONDS))
    await eventually_async(lambda: pool._core.stats().totals.connect_failures, "a connect that fails")
    await helpers.spin(3)
    assert pool._core.stats().loops[0].counters.opened == 0
    if patient.done():
        assert isinstance(patient.exception(), asyncpg.ClientConfigurationError)
        return patient.exception()
    with pytest.raises(PoolTimeout) as caught:
        await acquire(timeout=0.01)
    patient.cancel()
    return caught.value.__cause__


async def refused_by_asyncpg(dsn, **options):
    async with create_pool(dsn, min_size=0, max_size=1, **options) as pool:
        return await refused(pool, pool.acquire)


async def refused_by_psycopg(dsn, **options):
    async with AsyncConnectionPool(dsn, min_size=0, max_size=1, open=False, kwargs=options) as pool:
        return await refused(pool, pool.getconn)


def test_a_server_without_tls_is_refused_where_tls_is_required(dsn):
    """It answers that it has none, as somebody in between would; no connection is made in the clear instead."""

    async def main():
        for required in ("require", "verify-full", strange_context()):
            cause = await refused_by_asyncpg(dsn, ssl=required)
            assert isinstance(cause, (OSError, asyncpg.ClientConfigurationError)), cause
        for required in ("require", "verify-full"):
            cause = await refused_by_psycopg(dsn, sslmode=required)
            assert isinstance(cause, psycopg.OperationalError)

    asyncio.run(main())


def test_a_server_with_somebody_elses_certificate_is_refused(tls_server):
    """By a context that does not trust it, and by libpq; no password is sent to it, and no connection made."""

    async def main():
        cause = await refused_by_asyncpg(tls_server.dsn, ssl=strange_context())
        assert isinstance(cause, ssl.SSLCertVerificationError)
        cause = await refused_by_psycopg(tls_server.dsn, sslmode="verify-full", sslrootcert="system")
        assert isinstance(cause, psycopg.OperationalError)

    asyncio.run(main())


def end_sessions(server, *pids):
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        for pid in pids:
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])


def test_asyncpg_reconnects_with_tls(tls_server, run):
    """After its connection was ended by the server."""

    async def main():
        pool = create_pool(tls_server.dsn, ssl=tls_server.ssl_context, min_size=0, max_size=1)
        async with pool:
            pids = set()
            for _ in range(3):
                async with pool.acquire() as connection:
                    assert await connection.fetchval(IS_ENCRYPTED)
                    pids.add(pid := connection.get_server_pid())
                await asyncio.to_thread(end_sessions, tls_server, pid)
            assert len(pids) == 3

    run(main())


def test_psycopg_reconnects_with_tls(tls_server, run):
    """After its connection was ended by the server."""

    async def main():
        pool = AsyncConnectionPool(tls_server.verified_dsn, min_size=0, max_size=1, open=False, discard_dead="always")
        async with pool:
            pids = set()
            for _ in range(3):
                async with pool.connection() as connection:
                    cursor = await connection.execute(IS_ENCRYPTED)
                    assert await cursor.fetchone() == (True,)
                    pids.add(pid := connection.info.backend_pid)
                await asyncio.to_thread(end_sessions, tls_server, pid)
            assert len(pids) == 3

    run(main())
