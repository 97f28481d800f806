"""`close()`: who is woken, what is waited for, and what is cut off."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import asyncpg
import pytest

import helpers
from asyncpg_pools import some_pool
from loopaware_pool.errors import PoolClosed

HERE = Path(__file__).name


def test_close_wakes_every_waiter_with_an_error(dsn, run):
    """Callers in the queue hear at once that the pool closes, while the lease goes on to its end."""

    async def main():
        async with some_pool(dsn) as pool:
            con = await pool.acquire()
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(5)]
            await helpers.spin(2)
            closing = asyncio.create_task(pool.close())
            await asyncio.wait(tasks)
            for task in tasks:
                assert isinstance(task.exception(), asyncpg.InterfaceError)
                assert str(task.exception()) == "pool is closing"
            assert not closing.done()
            assert await con.fetchval("SELECT 1") == 1
            with pytest.raises(asyncpg.InterfaceError, match="pool is closing"):
                await pool.acquire()
            await pool.release(con)
            await closing
            with pytest.raises(asyncpg.InterfaceError, match="pool is closed"):
                await pool.acquire()

    run(main())


def test_close_waits_for_leases_and_their_resets(dsn, run):
    """`close()` returns when the last lease has been given back and reset."""

    async def main():
        gate, entered = asyncio.Event(), asyncio.Event()

        async def reset(con):
            entered.set()
            await gate.wait()

        async with some_pool(dsn, size=2, reset=reset) as pool:
            con = await pool.acquire()
            closing = asyncio.create_task(pool.close())
            await helpers.spin(10)
            assert not closing.done()
            release = asyncio.create_task(pool.release(con))
            await entered.wait()
            await helpers.spin(10)
            assert not closing.done()
            gate.set()
            await closing
            await release

    run(main())


def test_close_ends_connects_that_are_under_way(dsn, run, zero_fd_delta):
    """A connect that is being made while the pool closes is ended, not waited for."""

    async def main():
        entered = asyncio.Event()

        async def init(con):
            entered.set()
            await asyncio.Event().wait()

        async with some_pool(dsn, init=init) as pool:
            task = asyncio.create_task(pool.fetchval("SELECT 1"))
            await entered.wait()
            await pool.close()
            assert isinstance(task.exception(), PoolClosed)

    run(main())


def test_close_timeout_terminates_and_says_who_held_on(dsn, run, caplog, zero_fd_delta):
    """When `close_timeout` is over, leases are cut, and the log names their holders."""

    async def main():
        async with some_pool(dsn, close_timeout=0.05, name="held") as pool:
            con = await pool.acquire()
            await pool.close()
            assert pool.stats().size == 0
            with pytest.raises(asyncpg.InterfaceError):
                await con.fetchval("SELECT 1")

    with caplog.at_level(logging.WARNING):
        run(main())
    assert [record.name for record in caplog.records] == ["asyncpg.pool"]
    assert "held: close() ends after 0.05 s, close_timeout" in caplog.text
    assert f"{HERE}:" in caplog.text


def test_two_closers_both_return(dsn, run):
    """`close()` called twice at once, and again after it, ends each time."""

    async def main():
        async with some_pool(dsn) as pool:
            con = await pool.acquire()
            closers = [asyncio.create_task(pool.close()) for _ in range(2)]
            await helpers.spin(3)
            await pool.release(con)
            await asyncio.gather(*closers)
            await pool.close()

    run(main())
