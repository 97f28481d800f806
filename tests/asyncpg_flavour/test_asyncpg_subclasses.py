"""Subclasses of the pool, hooks that end things, and what programs read of a pool."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest

import loopaware_pool.asyncpg
from asyncpg_drop_in import ONE, close_cancelled, only_ours
from running import make_pool

pytestmark = pytest.mark.both_drivers


@pytest.fixture(params=[asyncpg.Pool, loopaware_pool.asyncpg.Pool], ids=["theirs", "ours"])
def pool_class(request):
    """The class of a pool: asyncpg's own, or ours."""
    return request.param


ALL_ARGUMENTS = {
    "max_queries": 50000,
    "max_inactive_connection_lifetime": 300.0,
    "loop": None,
    "connection_class": asyncpg.Connection,
    "record_class": asyncpg.Record,
}


class Fading(asyncpg.Connection):
    """Says itself when it is closed."""

    __slots__ = ("has_faded",)

    def is_closed(self):
        return getattr(self, "has_faded", False) or super().is_closed()


@pytest.mark.skipif(
    asyncpg.__version__.startswith("0.31."), reason="asyncpg 0.31 terminates no connection that says it is closed"
)
def test_a_connection_that_says_it_is_closed_is_not_lent_again(dsn, run):
    """A class of the user's may know more than its protocol. asyncpg 0.32's pool asks it, too."""

    async def main():
        async with make_pool(dsn, max_size=1, connection_class=Fading) as pool:
            async with pool.acquire() as con:
                pid = con.get_server_pid()
                con._con.has_faded = True
            async with pool.acquire() as con:
                assert con.get_server_pid() != pid

    run(main())


def test_a_connection_that_connect_returns_twice_is_not_lent_twice(dsn, run):
    """As with asyncpg's pool, the second caller hears of it; neither sees the other's session."""

    async def main():
        only = await asyncpg.connect(dsn)

        async def connect(*_, **__):
            return only

        pool = await loopaware_pool.asyncpg.create_pool(dsn, min_size=0, max_size=2, connect=connect)
        await pool.acquire()
        with pytest.raises(asyncpg.InterfaceError):
            await pool.acquire(timeout=5)
        pool.terminate()

    run(main())


def test_what_a_subclass_overrides_is_called(pool_class, dsn, run):
    """`acquire`, `release`, `terminate` and `close`, by blocks, by `pool.fetch` and its like, and by each other."""
    calls = []

    class OurPool(pool_class):
        def acquire(self, *, timeout=None):
            calls.append("acquire")
            return super().acquire(timeout=timeout)

        async def release(self, connection, *, timeout=None):
            calls.append("release")
            await super().release(connection, timeout=timeout)

        async def close(self):
            calls.append("close")
            await super().close()

        def terminate(self):
            calls.append("terminate")
            super().terminate()

    async def main():
        pool = OurPool(dsn, **ONE, **ALL_ARGUMENTS)
        async with pool:
            async with pool.acquire() as con:
                await con.execute("SELECT 1")
            await pool.fetch("SELECT 1")
            await pool.execute("SELECT 1")
            con = await pool.acquire()
            await pool.release(con)
        assert calls == ["acquire", "release"] * 4 + ["close"]

        calls.clear()
        pool = await OurPool(dsn, **ONE, **ALL_ARGUMENTS)
        con = await pool.acquire()
        await close_cancelled(pool, con)
        assert calls == ["acquire", "close", "terminate"]

    run(main())


def test_an_error_of_an_overridden_release_does_not_replace_the_bodys(dsn, run, caplog):
    """As with ours; where the body has none it is raised."""

    class OurPool(loopaware_pool.asyncpg.Pool):
        async def release(self, connection, *, timeout=None):
            await super().release(connection, timeout=timeout)
            raise LookupError("released")

    async def main():
        async with OurPool(dsn, **ONE, **ALL_ARGUMENTS) as pool:
            with pytest.raises(LookupError):
                await pool.execute("SELECT 1")
            with pytest.raises(ZeroDivisionError):
                async with pool.acquire():
                    raise ZeroDivisionError
            assert "released" in caplog.text

    run(main())


def test_a_release_that_was_replaced_on_the_class_is_called(dsn, run, monkeypatch):
    """As tracers do."""
    released = []
    original = loopaware_pool.asyncpg.Pool.release

    async def traced(self, connection, *, timeout=None):
        released.append(connection)
        await original(self, connection, timeout=timeout)

    monkeypatch.setattr(loopaware_pool.asyncpg.Pool, "release", traced)

    async def main():
        async with make_pool(dsn) as pool:
            await pool.execute("SELECT 1")
            assert len(released) == 1

    run(main())


def test_private_attributes_that_programs_read_are_there(dsn, run):
    """They tell what asyncpg's own do, for the same arguments, and after the same calls."""

    async def hook(*_):
        """Do nothing."""

    async def connect(*args, **kwargs):
        return await asyncpg.connect(*args, **kwargs)

    names = set(asyncpg.Pool.__slots__) - {"_holders", "_queue", "_maintenance_task", "_loop"}
    sets = {"command_timeout": 7}
    options = {"min_size": 1, "max_size": 3, "max_queries": 77, "init": hook, "reset": hook, "setup": hook, **sets}

    def tell(pool):
        return {name: getattr(pool, name) for name in names}

    async def main():
        for more in ({}, {"connect": connect}, {"max_inactive_connection_lifetime": float("inf")}):
            told = []
            for create in (asyncpg.create_pool, loopaware_pool.asyncpg.create_pool):
                pool = create(dsn, **options, **more)
                states = [tell(pool)]
                async with pool:
                    states.append(tell(pool))
                    assert pool._loop is asyncio.get_running_loop()
                    await pool.expire_connections()
                    pool.set_connect_args(dsn, command_timeout=8)
                    states.append(tell(pool))
                told.append([*states, tell(pool)])
            for theirs, ours in zip(*told, strict=True):
                assert theirs == ours

    run(main())


async def close_it(pool, con):
    await con.close()


async def terminate_it(pool, con):
    con.terminate()


async def have_it_ended(pool, con):
    with contextlib.suppress(asyncpg.PostgresError):
        await con.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def release_it(pool, con):
    await pool.release(con)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("end", [close_it, terminate_it, have_it_ended, release_it])
def test_setup_that_ends_its_connection_lends_none_and_harms_nobodys(dsn, run, end, fails):
    """With asyncpg's pool that is an AttributeError, and a pool that does not close."""

    async def setup(con):
        if not ended:
            ended.append(con)
            await end(pool, con)
            others.append(await pool.acquire())  # the same connection, if it was released
            if fails:
                raise LookupError

    async def main():
        nonlocal pool
        async with loopaware_pool.asyncpg.create_pool(dsn, min_size=0, max_size=1, setup=setup) as pool:
            expected = LookupError if fails else asyncpg.ConnectionDoesNotExistError
            with pytest.raises(expected):
                await pool.fetchval("SELECT 1")
            (other,) = others
            assert await other.fetchval("SELECT 2") == 2
            await pool.release(other)
            assert await pool.fetchval("SELECT 3") == 3

    pool, ended, others = None, [], []
    run(main())


def test_setup_that_terminates_the_pool_has_the_caller_told(dsn, run):
    """As by asyncpg's pool."""

    async def setup(_):
        pool.terminate()

    async def main():
        nonlocal pool
        async with loopaware_pool.asyncpg.create_pool(dsn, min_size=0, max_size=1, setup=setup) as pool:
            with pytest.raises(asyncpg.InterfaceError, match="pool is closed"):
                await pool.fetchval("SELECT 1")

    pool = None
    run(main())


def test_the_queue_of_free_connections_tells_its_size(create_pool, dsn, run):
    """Programs ask asyncpg's for how many connections could be lent, and whether there is one."""

    async def main():
        async with create_pool(dsn, min_size=1, max_size=2) as pool:

            def told():
                queue = pool._queue
                return queue.qsize(), queue.maxsize, queue.empty(), queue.full()

            assert told() == (2, 2, False, True)
            async with pool.acquire() as con:
                assert told() == (1, 2, False, False)
                async with pool.acquire():
                    assert told() == (0, 2, True, False)
                await con.execute("SET work_mem = '5MB'")  # whose reset a release need not wait for
            assert told() == (2, 2, False, True)

    run(main())


@pytest.mark.parametrize("session_reset", ["pipelined", "when_dirty", "confirmed", "awaited", "never"])
def test_a_proxy_has_the_name_of_asyncpgs(create_pool, dsn, run, session_reset):
    """In texts, and to who compares it."""

    async def main():
        async with create_pool(dsn, min_size=1, max_size=2, **only_ours(create_pool, session_reset)) as pool:
            async with pool.acquire() as con:
                assert type(con).__name__ == type(con).__qualname__ == "PoolConnectionProxy"
                assert repr(con).startswith("<PoolConnectionProxy <asyncpg.connection.Connection object at")
            assert repr(con).startswith("<PoolConnectionProxy [released]")

    run(main())
