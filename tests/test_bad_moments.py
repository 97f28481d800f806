"""A pool that is used at the wrong time, or in the wrong place, says so."""

from __future__ import annotations

import asyncio
import sys
import types

import asyncpg
import pytest

import helpers
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.errors import PoolError, UnsupportedLoop

pytestmark = pytest.mark.both_drivers
# ---- at the wrong time ----

USES = {
    "acquire": lambda pool: pool.acquire(),
    "fetch": lambda pool: pool.fetch("SELECT 1"),
    "execute": lambda pool: pool.execute("SELECT 1"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_pool_that_was_not_opened_is_refused(dsn, run, zero_fd_delta, use):
    """Before it is awaited a pool serves nobody, and says so."""

    async def main():
        pool = create_pool(dsn)
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is not initialized: await it, "):
            await use(pool)
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is not initialized: await it, "):
            await pool.close()
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is not initialized: await it, "):
            pool.terminate()
        assert not pool.is_closing()

    run(main())


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("end", ["close", "terminate"])
def test_a_pool_that_was_closed_is_refused(dsn, run, zero_fd_delta, use, end):
    """After its end a pool serves nobody, and says so by an error that is asyncpg's and ours."""

    async def main():
        pool = await create_pool(dsn, min_size=1, max_size=1)
        await pool.close() if end == "close" else pool.terminate()
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is closed$") as caught:
            await use(pool)
        assert isinstance(caught.value, PoolError)
        await pool
        await pool.close()
        pool.terminate()
        assert pool.is_closing()

    run(main())


def test_a_pool_that_is_closing_is_refused(dsn, run, zero_fd_delta):
    """While it closes a pool serves nobody new, and says so."""

    async def main():
        pool = await create_pool(dsn, min_size=1, max_size=1)
        con = await pool.acquire()
        closing = asyncio.create_task(pool.close())
        await helpers.spin(2)
        for use in USES.values():
            with pytest.raises(asyncpg.InterfaceError, match=r"^pool is closing$"):
                await use(pool)
        await pool.release(con)
        await closing

    run(main())


def test_a_pool_that_is_being_opened_is_refused(dsn, run, zero_fd_delta):
    """While it is being opened a pool serves nobody, and is opened by one task at a time."""

    async def main():
        let_go, entered = asyncio.Event(), asyncio.Event()

        async def init(con):
            entered.set()
            await let_go.wait()

        pool = create_pool(dsn, min_size=1, max_size=1, init=init)
        opening = asyncio.ensure_future(pool)
        await entered.wait()
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is being initialized, but not yet ready: likely"):
            await pool.acquire()
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is being initialized in another task$"):
            await pool
        let_go.set()
        assert await opening is pool
        assert await pool.fetchval("SELECT 1") == 1
        await pool.close()

    run(main())


# ---- at the wrong place ----


def by_hand(coroutine):
    """Run a coroutine's first step without a loop."""
    try:
        coroutine.send(None)
    finally:
        coroutine.close()


def test_without_a_loop_a_pool_can_be_made_but_not_opened(dsn, zero_fd_delta):
    """Outside a loop, opening and acquiring say that a loop is what they need."""

    async def opened():
        return await create_pool(dsn, min_size=0, max_size=1, name="loopless")

    async def await_it(pool):
        await pool

    pool = create_pool(dsn, min_size=0, max_size=1, name="loopless")
    with pytest.raises(UnsupportedLoop, match="pool 'loopless': no event loop is running") as caught:
        by_hand(await_it(pool))
    assert isinstance(caught.value, RuntimeError)
    assert not pool.is_closing()

    async def main():
        async with pool:
            assert await pool.fetchval("SELECT 1") == 1

    asyncio.run(main())


def test_without_a_loop_an_open_pool_cannot_be_used(dsn):
    """An acquire by hand, outside a loop, is refused, and the pool goes on."""

    async def acquire():
        await pool.acquire()

    with asyncio.Runner() as runner:
        pool = create_pool(dsn, min_size=0, max_size=1)

        async def open_pool():
            await pool

        runner.run(open_pool())
        with pytest.raises(UnsupportedLoop, match="no event loop is running"):
            by_hand(acquire())
        assert runner.run(pool.fetchval("SELECT 1")) == 1
        runner.run(pool.close())


def test_a_loop_that_cannot_watch_sockets_is_refused(dsn, monkeypatch, zero_fd_delta):
    """On a proactor loop the pool says which loop to use instead, before it opens anything."""

    class ProactorEventLoop(asyncio.SelectorEventLoop):
        pass

    monkeypatch.setattr(asyncio, "ProactorEventLoop", ProactorEventLoop, raising=False)

    async def main():
        with pytest.raises(UnsupportedLoop, match=r"ProactorEventLoop cannot watch sockets: use asyncio\.run"):
            await create_pool(dsn, min_size=1, max_size=1)

    with asyncio.Runner(loop_factory=ProactorEventLoop) as runner:
        runner.run(main())


def test_trio_is_refused_by_name(dsn, monkeypatch, zero_fd_delta):
    """Under trio the pool says that the drivers need asyncio."""
    trio = types.ModuleType("trio")
    trio.lowlevel = types.SimpleNamespace(in_trio_run=lambda: True)
    monkeypatch.setitem(sys.modules, "trio", trio)

    async def await_it():
        await create_pool(dsn, min_size=1, max_size=1)

    with pytest.raises(UnsupportedLoop, match="trio's event loop is not supported"):
        by_hand(await_it())
