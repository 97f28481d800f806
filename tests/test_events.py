"""What a pool tells its listeners and its log."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest

import helpers
from asyncpg_pools import refusing, some_pool
from loopaware_pool import stats
from loopaware_pool.asyncpg import PoolTimeout, create_pool

HERE = Path(__file__).name


# ---- leases that last too long ----


def test_a_lease_that_lasts_too_long_is_reported_once(dsn, run, caplog):
    """`leak_threshold` logs the acquiring line and task, and tells the listener, once per lease."""

    async def main():
        told = []
        overdue = asyncio.Event()

        def listen(event):
            if isinstance(event, stats.LeaseOverdue):
                told.append(event)
                overdue.set()

        async with some_pool(dsn, size=2, leak_threshold=0.01, on_event=listen, name="leaky") as pool:
            asyncio.current_task().set_name("the-leaker")
            con = await pool.acquire()
            await overdue.wait()
            other = await pool.acquire()
            await helpers.eventually(lambda: len(told) == 2)
            await pool.release(con)
            await pool.release(other)
        assert len(told) == 2
        assert told[0].pool == "leaky"
        assert told[0].lease.task == "the-leaker"
        assert f"{HERE}:" in told[0].lease.where

    with caplog.at_level(logging.WARNING, "loopaware_pool"):
        run(main())
    assert len(re.findall(r"leaky: a connection is still held by the-leaker for \d+\.\d s, from", caplog.text)) == 2
    ours = [record for record in caplog.records if record.name == "loopaware_pool"]
    assert len(ours) == 4  # and that each came back
    assert f"{HERE}:" in caplog.text


# ---- events ----


def test_every_event_is_told(dsn, run):
    """Opening, closing, failing to connect, to reset and to acquire are told, with their reasons."""
    told = []

    def only(kind):
        found = [event for event in told if type(event) is kind]
        told.clear()
        return found

    async def main():
        fails = False

        async def reset(con):
            if fails:
                raise ZeroDivisionError

        async with some_pool(dsn, on_event=told.append, reset=reset, name="telling") as pool:
            await pool.execute("SELECT 1")
            (event,) = only(stats.ConnectionOpened)
            assert (event.pool, event.loop) == ("telling", pool.stats().loops[0].loop)
            assert event.seconds > 0

            await pool.expire_connections()
            await pool.execute("SELECT 1")
            (event,) = only(stats.ConnectionClosed)
            assert event.reason == "expired"
            assert event.age_seconds > 0

            con = await pool.acquire()
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
            (event,) = only(stats.AcquireFailed)
            assert isinstance(event.error, PoolTimeout)
            assert event.waited_seconds >= 0
            task = asyncio.create_task(pool.fetchval("SELECT 1"))
            await helpers.spin(2)
            task.cancel()
            await asyncio.wait([task])
            (event,) = only(stats.AcquireFailed)
            assert event.error is None

            fails = True
            with pytest.raises(ZeroDivisionError):
                await pool.release(con)
            failures = [event for event in told if isinstance(event, stats.ResetFailed)]
            assert len(failures) == 1
            assert isinstance(failures[0].error, ZeroDivisionError)
            (event,) = only(stats.ConnectionClosed)
            assert event.reason == "reset failed"

            refusing(pool)
            with pytest.raises(OSError):
                await pool.acquire()
            (event,) = only(stats.ConnectFailed)
            assert isinstance(event.error, OSError)

            fails = False
            pool.set_connect_args(dsn)
            await pool.execute("SELECT 1")
            only(object)
        assert [event.reason for event in only(stats.ConnectionClosed)] == ["pool closed"]

    run(main())


def test_a_loop_that_ends_is_told(dsn, run):
    """A loop that ends without `close()` is reported with the number of its connections."""
    told = []

    async def main():
        nonlocal pool
        pool = await create_pool(dsn, min_size=0, init_size=2, max_size=2, on_event=told.append)

    pool = None
    run(main())
    assert [event.connections for event in told if isinstance(event, stats.LoopEnded)] == [2]


def test_a_pipelined_reset_that_fails_is_told(dsn, run):
    """A session that the server would not reset is closed, counted and told, and no caller gets it."""
    told = []

    async def init(con):
        await con.execute("DROP ROLE IF EXISTS short_lived; CREATE ROLE short_lived; SET ROLE short_lived")

    async def main():
        async with some_pool(dsn, on_event=told.append, init=init) as pool:
            async with pool.acquire() as con:
                pid = con.get_server_pid()
                await con.execute("RESET ROLE; DROP ROLE short_lived")
            await pool.settled()
            assert await pool.fetchval("SELECT pg_backend_pid()") != pid
            assert pool.stats().loops[0].counters.reset_failures == 1
            async with pool.acquire() as con:
                await con.execute("RESET ROLE; DROP ROLE short_lived")
        assert [event for event in told if isinstance(event, stats.ResetFailed)]

    run(main())


def test_a_listener_that_raises_is_logged_and_breaks_nothing(dsn, run, caplog):
    """Whatever `on_event` raises goes to the log, and the pool goes on."""

    def listen(event):
        raise ZeroDivisionError(type(event).__name__)

    async def main():
        async with some_pool(dsn, size=2, on_event=listen, leak_threshold=0.01) as pool:
            assert await asyncio.gather(*[pool.fetchval("SELECT 1") for _ in range(5)]) == [1] * 5
            with pytest.raises(PoolTimeout):
                async with pool.acquire(), pool.acquire():
                    await pool.acquire(timeout=0)
            await pool.expire_connections()
            assert await pool.fetchval("SELECT 2") == 2

    run(main())
    for name in ("ConnectionOpened", "ConnectionClosed", "AcquireFailed"):
        assert f"ZeroDivisionError: {name}" in caplog.text
    assert "on_event raised" in caplog.text
