"""Connections that the server has closed are lent to nobody."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import helpers
from asyncpg_pools import AMPLE, kill, own_pids, some_pool
from loopaware_pool.asyncpg import PoolTimeout
from loopaware_pool.testing.embedded_server import EmbeddedServer


def test_a_mass_kill_of_idle_connections_is_noticed_by_no_caller(dsn, run):
    """After every idle session was terminated, the same number of callers at once are all served."""

    async def main():
        async with some_pool(dsn, size=5) as pool:
            for _ in range(3):
                leases = [await pool.acquire() for _ in range(5)]
                for con in leases:
                    await pool.release(con)
                await pool.settled()
                victims = own_pids(pool)
                assert len(victims) == 5
                kill(dsn, *victims)
                values = await asyncio.gather(*[pool.fetchval("SELECT $1::int", n) for n in range(15)])
                assert values == list(range(15))
                assert not set(own_pids(pool)) & set(victims)
            assert pool.stats().loops[0].counters.found_dead >= 1

    run(main())


@pytest.mark.parametrize("is_parked", [True, False], ids=["parked", "fresh"])
def test_a_killed_idle_connection_is_never_handed_out(dsn, run, is_parked):
    """Without the loop having run since, a killed session is known to be one, and the next one works."""

    async def main():
        async with some_pool(dsn) as pool:
            for _ in range(5):
                await pool.execute("SELECT 1")
                if is_parked:
                    await pool.settled()
                (pid,) = own_pids(pool)
                kill(dsn, pid)
                async with pool.acquire() as con:
                    assert con.get_server_pid() != pid
                    assert await con.fetchval("SELECT 1") == 1

    run(main())


def test_a_killed_connection_is_not_handed_to_a_waiter(dsn, run):
    """A session killed while its holder does nothing is not passed on at his release."""

    async def main():
        async with some_pool(dsn) as pool:
            con = await pool.acquire()
            pid = con.get_server_pid()
            waiter = asyncio.create_task(pool.fetchval("SELECT pg_backend_pid()"))
            await helpers.spin(2)
            kill(dsn, pid)
            await pool.release(con)
            assert await waiter != pid

    run(main())


@pytest.mark.parametrize("how", ["immediate", "fast"])
def test_after_a_restart_of_the_server_acquires_succeed_again(run, how):
    """When the server has come back, idle and lent connections are replaced, and only leases have noticed."""

    async def main():
        async with some_pool(server.dsn, size=3) as pool:
            leases = [await pool.acquire() for _ in range(3)]
            for con in leases[1:]:
                await pool.release(con)
            await pool.settled()
            server.control("restart", "-m", how)
            assert await asyncio.gather(*[pool.fetchval("SELECT $1::int", n) for n in range(8)]) == list(range(8))
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await leases[0].fetchval("SELECT 1")
            await pool.release(leases[0])
            assert await pool.fetchval("SELECT 9") == 9

    with EmbeddedServer() as server:
        run(main())


def test_a_stopped_server_is_told_and_a_started_one_found(run):
    """While the server is down callers learn why; when it is up again a caller with time left is served."""

    async def patient(pool):
        async with pool.acquire(timeout=AMPLE) as con:
            return await con.fetchval("SELECT 1")

    async def main():
        async with some_pool(server.dsn, size=2) as pool:
            await pool.execute("SELECT 1")
            server.control("stop", "-m", "immediate")
            with pytest.raises((asyncpg.PostgresError, OSError)):
                await pool.execute("SELECT 1")
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire(timeout=0.1)
            assert isinstance(caught.value.__cause__, asyncpg.PostgresError | OSError)
            waiting = asyncio.create_task(patient(pool))
            await helpers.spin(10)
            server.control("start")
            assert await waiting == 1

    with EmbeddedServer() as server:
        run(main())
