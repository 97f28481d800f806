"""Connects that fail of the program: told at once, where psycopg_pool tries again until the caller's time is up."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from loopaware_pool.psycopg import AsyncConnectionPool, AsyncNullConnectionPool, LoopAwareConnection, PoolTimeout
from psycopg_pools import make_pool

pytestmark = [pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]

ours = pytest.mark.parametrize("cls", [AsyncConnectionPool, AsyncNullConnectionPool])


def endless():
    return endless()


def slip():
    raise TypeError("a slip")


class Slipping(LoopAwareConnection):
    """Cannot connect."""

    @classmethod
    async def connect(cls, *_, **__):
        endless()


async def configure(_):
    endless()


def options_of(cls, dsn, options):
    """What has a pool fail in the way of *options*, and keep one connection if it may."""
    return {"conninfo": dsn, "max_size": 2, "min_size": 0 if cls is AsyncNullConnectionPool else 1} | options


FAULTS = {
    "conninfo": ({"conninfo": endless}, RecursionError),
    "conninfo slips": ({"conninfo": slip}, TypeError),
    "kwargs": ({"kwargs": endless}, RecursionError),
    "connect": ({"connection_class": Slipping}, RecursionError),
    "configure": ({"configure": configure}, RecursionError),
    "not understood": ({"conninfo": "bogus=1"}, psycopg.ProgrammingError),
    "unknown": ({"kwargs": {"bogus": 1}}, psycopg.ProgrammingError),
}


def pool_of(cls, dsn, options, **more):
    options = options_of(cls, dsn, options)
    kwargs = options.pop("kwargs", {})
    pool = make_pool(cls, options.pop("conninfo"), **options, **more)
    pool.kwargs = kwargs
    return pool


@ours
@pytest.mark.parametrize("fault", FAULTS)
def test_each_caller_is_told(dsn, run, cls, fault):
    """With the error itself, however much time is left."""
    options, kind = FAULTS[fault]

    async def main():
        async with pool_of(cls, dsn, options, timeout=60) as pool, asyncio.timeout(20):
            told = await asyncio.gather(*(pool.getconn() for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in told] == [kind] * 3

    run(main())


@ours
@pytest.mark.parametrize("fault", FAULTS)
def test_who_waits_for_the_pool_is_told(dsn, run, cls, fault):
    """And the pool is closed, as it is when the time is up."""
    options, kind = FAULTS[fault]

    async def main():
        pool = pool_of(cls, dsn, options)
        async with asyncio.timeout(20):
            with pytest.raises(kind):
                await pool.open(wait=True, timeout=60)
        assert pool.closed

    run(main())


def test_a_fault_of_before_is_not_told_again(dsn, run):
    """A pool that was given another address meanwhile is waited for."""

    async def main():
        async with pool_of(AsyncConnectionPool, dsn, {"conninfo": "bogus=1"}) as pool:
            with pytest.raises(psycopg.ProgrammingError):
                await pool.getconn()
            pool.conninfo = dsn
            await pool.wait(20)

    run(main())


def test_a_fault_of_before_is_the_cause_of_a_timeout(dsn, run, monkeypatch):
    """If it has not been tried again."""
    monkeypatch.setattr("loopaware_pool._core.connect_pacing.FLOOR_FIRST_SECONDS", 60.0)

    async def main():
        async with pool_of(AsyncConnectionPool, dsn, {"conninfo": "bogus=1"}) as pool:
            with pytest.raises(psycopg.ProgrammingError):
                await pool.getconn()
            with pytest.raises(PoolTimeout) as caught:
                await pool.wait(0.05)
            assert isinstance(caught.value.__cause__, psycopg.ProgrammingError)

    run(main())


@pytest.mark.parametrize("error", [MemoryError, OSError, ValueError, psycopg.OperationalError, LookupError])
def test_what_may_pass_is_tried_again(dsn, run, error):
    """As by psycopg_pool's, within the caller's time."""
    calls = []

    def address():
        calls.append(None)
        if len(calls) == 1:
            raise error("for the moment")
        return dsn

    async def main():
        async with pool_of(AsyncConnectionPool, dsn, {"conninfo": address}, timeout=20) as pool, pool.connection():
            assert len(calls) > 1

    run(main())


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT * FROM not_there_yet"])
def test_what_a_server_refuses_may_pass(dsn, run, statement):
    """So does a transaction that `configure` has left: they are a `ProgrammingError`, too."""

    async def configure(connection):
        await connection.execute(statement)

    async def main():
        pool = pool_of(AsyncConnectionPool, dsn, {"configure": configure})
        pool.kwargs = {"autocommit": False}
        with pytest.raises(PoolTimeout):
            await pool.open(wait=True, timeout=0.3)

    run(main())
