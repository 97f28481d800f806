"""An engine's connections are parked, used, killed and ended over TLS as they are without."""

from __future__ import annotations

import asyncio

import pytest

import helpers
from engines import ask, ask_all, hold
from loopaware_pool.sqlalchemy import create_async_engine

IS_ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
NAME = "engine over TLS"


@pytest.mark.usefixtures("zero_fd_delta")
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_an_engine_works_over_tls(tls_server, run, driver):
    """In one loop and the next, after its sessions were killed, and after the return of a connection."""
    url = tls_server.dsn.replace("postgresql://", f"postgresql+{driver}://")
    arguments = (
        {"ssl": tls_server.ssl_context, "server_settings": {"application_name": NAME}}
        if driver == "asyncpg"
        else {"sslmode": "verify-full", "sslrootcert": str(tls_server.ca_file), "application_name": NAME}
    )
    engine = create_async_engine(url, pool_size=2, max_overflow=0, connect_args=arguments)

    async def main():
        # Those of the run before, and of the test before, which the server may still have.
        await helpers.eventually(lambda: helpers.server_sessions(tls_server.dsn, NAME) == 0)
        assert await ask(engine, IS_ENCRYPTED)
        await hold(engine, 2)
        await engine.pool.settled()
        assert await ask_all(engine, 10) == [42] * 10
        assert helpers.kill_sessions(tls_server.dsn, NAME) == 2
        assert await ask_all(engine, 10) == [42] * 10
        async with engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
        await engine.pool.settled()
        if driver == "asyncpg":
            assert await asyncio.wait_for(raw.fetchval("SELECT 42"), 10) == 42

    run(main())
    run(main())
