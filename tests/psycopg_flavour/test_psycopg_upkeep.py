"""Hooks, checks, ages and deaths of connections, as in psycopg_pool's pools."""

from __future__ import annotations

import asyncio
from time import monotonic

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from loopaware_pool.psycopg import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    PoolTimeout,
)
from psycopg_likeness import BOTH, both, kill, pid_of, words
from psycopg_pools import make_pool
from running import DEADLINE_SECONDS, eventually_async

pytestmark = [pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]


async def pids_of_all(pool, size):
    connections = [await pool.getconn() for _ in range(size)]
    pids = [connection.info.backend_pid for connection in connections]
    for connection in connections:
        await pool.putconn(connection)
    return pids


# ---- hooks ----


@both
def test_configure_is_called_once_for_each_connection(cls, pool_of):
    """Before anybody has it."""

    async def configure(connection):
        called.append(connection)
        async with connection.transaction():
            await connection.execute("SET default_transaction_read_only TO on")

    async def main():
        async with pool_of(cls, configure=configure, **({"min_size": 1} if cls is AsyncConnectionPool else {})) as pool:
            for _ in range(2):
                async with pool.connection() as connection:
                    cursor = await connection.execute("SHOW default_transaction_read_only")
                    assert await cursor.fetchone() == ("on",)
            assert len(called) == (1 if cls is AsyncConnectionPool else 2)

    called: list[object] = []
    asyncio.run(main())


@both
@pytest.mark.parametrize("fault", ["INTRANS", "WAT"])
def test_a_configure_that_fails_is_a_connect_that_fails(cls, pool_of, caplog, fault):
    """It is logged, and tried again until somebody's time is up."""

    async def configure(connection):
        if fault == "WAT":
            raise ZeroDivisionError(fault)
        await connection.execute("SELECT 1")

    async def main():
        pool = pool_of(cls, configure=configure, **({"min_size": 1} if cls is AsyncConnectionPool else {}))
        await pool.open()
        patient = asyncio.create_task(pool.wait(DEADLINE_SECONDS))
        await eventually_async(lambda: words(caplog), "an error that is logged")
        with pytest.raises(PoolTimeout):
            await pool.wait(timeout=0.01)
        await asyncio.wait([patient])
        assert isinstance(patient.exception(), psycopg.OperationalError)

    asyncio.run(main())
    assert fault in words(caplog)[0]
    assert "error connecting in" in words(caplog)[0]


@pytest.mark.parametrize("is_async", [False, True])
def test_where_to_connect_can_be_asked_each_time(dsn, is_async):
    """Of functions, plain or async; one that fails is a connect that fails, and does not fill the log."""

    async def async_conninfo():
        return plain_conninfo()

    async def async_kwargs():
        return plain_kwargs()

    def plain_conninfo():
        asked.append("conninfo")
        return dsn

    def plain_kwargs():
        asked.append("kwargs")
        return {"application_name": f"asked-{len(asked)}"}

    async def main():
        conninfo, kwargs = (async_conninfo, async_kwargs) if is_async else (plain_conninfo, plain_kwargs)
        async with AsyncNullConnectionPool(conninfo, kwargs=kwargs, open=False) as pool:
            for number in (2, 4):
                async with pool.connection() as connection:
                    cursor = await connection.execute("SHOW application_name")
                    assert await cursor.fetchone() == (f"asked-{number}",)

    asked: list[str] = []
    asyncio.run(main())


def test_functions_that_cannot_tell_where_to_connect_are_asked_again(caplog):
    """Until somebody's time is up, who hears why; the log is not filled."""

    def conninfo():
        raise ZeroDivisionError("nowhere")

    async def main():
        async with AsyncConnectionPool(conninfo, min_size=1, open=False) as pool:
            with pytest.raises(PoolTimeout) as caught:
                await pool.getconn(timeout=0.5)
            assert isinstance(caught.value.__cause__, ZeroDivisionError)

    asyncio.run(main())
    assert 1 <= len(words(caplog)) < 5


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("is_async", [False, True])
def test_an_outage_that_lasts_is_told(way, cls, is_async):
    """After `reconnect_timeout`, with the pool; which serves again as soon as the server does."""

    def plain(pool):
        told.append(pool)

    async def coroutine(pool):
        told.append(pool)

    async def main():
        options = {"min_size": 1} if cls is AsyncConnectionPool else {}
        hook = coroutine if is_async else plain
        async with make_pool(cls, way.dsn, reconnect_timeout=0.1, reconnect_failed=hook, **options) as pool:
            if cls is AsyncNullConnectionPool:
                with pytest.raises(psycopg.OperationalError):
                    await pool.getconn()
            await eventually_async(lambda: told, "somebody who is told")
            assert told[0] is pool
            assert pool._nconns == 0
            way.heal()
            assert await pid_of(pool)

    told: list[object] = []
    asyncio.run(main())


# ---- checks, age, and death ----


def test_a_dead_connection_is_lent_unless_somebody_looks(pool_of, dsn):
    """As theirs is, without a `check`; with `discard_dead="always"` it is not."""

    async def main():
        async with pool_of(min_size=1) as pool:
            await kill(dsn, await pid_of(pool))
            with pytest.raises(psycopg.OperationalError):
                async with pool.connection() as connection:
                    await connection.execute("SELECT 1")
        async with pool_of(min_size=1, discard_dead="always") as pool:
            await kill(dsn, await pid_of(pool))
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")
            assert pool.get_stats()["connections_lost"] == 1

    asyncio.run(main())


@both
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_check_leaves_the_connection_as_it_was(cls, pool_of, autocommit):
    """Idle, and with its setting."""

    async def main():
        options = {"check": cls.check_connection, "kwargs": {"autocommit": autocommit}}
        async with pool_of(cls, **options) as pool, pool.connection() as connection:
            assert connection.autocommit is autocommit
            assert connection.pgconn.transaction_status == TransactionStatus.IDLE

    asyncio.run(main())


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that callers would have made between two checks."""
    made: list[object] = []

    async def pause(checkup):
        made.append(checkup)

    monkeypatch.setattr("loopaware_pool.psycopg.lending.Checkup._pause", pause)
    return made


def test_dead_connections_cost_no_caller_a_pause(pool_of, dsn, caplog, pauses):
    """Six of them, with a `check`: the next forty callers are served, and nothing is logged as a warning."""

    async def main():
        async with pool_of(min_size=6, check=AsyncConnectionPool.check_connection) as pool:
            await pool.wait()
            await kill(dsn, *await pids_of_all(pool, 6))
            for _ in range(40):
                async with pool.connection() as connection:
                    await connection.execute("SELECT 1")

    asyncio.run(main())
    assert pauses == []
    assert words(caplog) == []


def test_a_connection_that_ends_in_its_check_costs_no_pause(pool_of, dsn, pauses):
    """As one does that looked alive until the check asked the server."""

    async def check(connection):
        checked.append(connection)
        if len(checked) <= 3:
            await kill(dsn, connection.info.backend_pid)
        await connection.execute("SELECT 1")

    async def main():
        async with pool_of(min_size=1, check=check) as pool, pool.connection() as connection:
            await connection.execute("SELECT 1")

    checked: list[object] = []
    asyncio.run(main())
    assert len(checked) == 4
    assert pauses == []


@both
def test_a_connection_that_fails_its_check_goes_back(cls, pool_of, monkeypatch):
    """A live one is tried again, after a pause; in the end the caller is told."""

    async def check(connection):
        checked.append(connection)
        if len(checked) == 1:
            raise ZeroDivisionError

    async def refuse(connection):
        refused.append(connection)
        if len(refused) == 2:
            monkeypatch.setattr("loopaware_pool.psycopg.lending.monotonic", lambda: monotonic() + DEADLINE_SECONDS)
        raise ZeroDivisionError

    async def main():
        async with pool_of(cls, check=check) as pool:
            assert await pid_of(pool)
            assert len(checked) == 2
        async with pool_of(cls, check=refuse) as pool:
            with pytest.raises(PoolTimeout, match="in check"):
                await pool.getconn(timeout=DEADLINE_SECONDS)
            assert len(refused) == 2
            if cls is AsyncConnectionPool:
                assert len(pool._pool) >= 1

    checked: list[object] = []
    refused: list[object] = []
    asyncio.run(main())


def test_check_replaces_what_is_broken(pool_of, dsn, caplog):
    """One of four; the other three stay."""

    async def main():
        async with pool_of(min_size=4) as pool:
            await pool.wait()
            pids = await pids_of_all(pool, 4)
            await kill(dsn, pids[0])
            await pool.check()
            await eventually_async(lambda: len(pool._pool) == 4, "a floor that is restored")
            assert len(words(caplog)) == 1
            assert "discarding broken connection" in words(caplog)[0]
            assert set(await pids_of_all(pool, 4)) & set(pids) == set(pids[1:])
            assert pool.get_stats()["connections_lost"] == 1
            assert {connection.pgconn.transaction_status for connection in pool._pool} == {TransactionStatus.IDLE}
        async with pool_of(AsyncNullConnectionPool) as null:
            await null.check()

    asyncio.run(main())


@both
def test_draining_replaces_every_connection(cls, pool_of):
    """The idle ones now, those that are out when they come back."""

    async def main():
        async with pool_of(cls, min_size=2) as pool:
            await pool.wait()
            held, other = [await pool.getconn() for _ in range(2)]
            pids = {held.info.backend_pid, other.info.backend_pid}
            await pool.putconn(other)
            await pool.drain()
            await pool.putconn(held)
            assert held.closed
            assert other.closed
            assert not pids & {await pid_of(pool) for _ in range(2)}

    asyncio.run(main())


def test_age_is_looked_at_on_return_unless_told_otherwise(pool_of):
    """An idle connection that has grown too old is lent once more, as theirs is; or, on request, replaced at once."""

    async def main():
        async with pool_of(min_size=1, max_lifetime=0.1) as pool:
            await pool.wait()
            await asyncio.sleep(0.15)
            pids = [await pid_of(pool) for _ in range(2)]
            assert pids[0] != pids[1]
        async with pool_of(min_size=1, max_lifetime=0.1, discard_expired="always") as pool:
            await pool.wait()
            counters = pool._core.runner().shard.counters
            await eventually_async(lambda: counters.closed, "a connection that has grown too old")

    asyncio.run(main())


def test_connections_are_used_in_turn_unless_told_otherwise(pool_of):
    """All alike, as theirs are; or the one used last."""

    async def main():
        async with pool_of(min_size=4) as pool:
            await pool.wait()
            pids = [await pid_of(pool) for _ in range(8)]
            assert pids[:4] == pids[4:]
            assert len(set(pids)) == 4
        async with pool_of(min_size=4, idle_order="lifo") as pool:
            await pool.wait()
            assert len({await pid_of(pool) for _ in range(8)}) == 1

    asyncio.run(main())


def test_connections_that_were_never_needed_are_closed_one_by_one(pool_of):
    """Above `min_size`, though all are used in turn."""

    async def main():
        async with pool_of(min_size=1, max_size=3, max_idle=0.1) as pool:
            await pids_of_all(pool, 3)
            assert pool._nconns == 3
            while pool._nconns > 1:
                await pid_of(pool)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.25)
            assert pool._nconns == 1

    asyncio.run(main())
