"""When connections are opened, pinged, replaced and closed."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import helpers
from asyncpg_pools import AMPLE, kill, own_pids, some_pool
from loopaware_pool._core import connect_pacing
from loopaware_pool.asyncpg import create_pool

# ---- keeping connections ----


def test_an_idle_connection_is_pinged(dsn, run):
    """With `keepalive`, an idle connection makes a round trip now and then, and stays the same."""

    async def main():
        async with some_pool(dsn, keepalive=0.02, session_reset="never") as pool:
            con = await pool.acquire()
            raw, pid = con._con, con.get_server_pid()
            await pool.release(con)
            before = raw._protocol.queries_count
            await helpers.eventually(lambda: raw._protocol.queries_count >= before + 3)
            assert await pool.fetchval("SELECT pg_backend_pid()") == pid

    run(main())


def test_a_ping_finds_a_dead_connection(dsn, run):
    """An idle connection that does not answer its ping is closed, without anybody asking for it."""

    async def main():
        async with some_pool(dsn, keepalive=0.02) as pool:
            await pool.execute("SELECT 1")
            kill(dsn, *own_pids(pool))
            await helpers.eventually(lambda: pool.stats().size == 0)
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


def test_a_caller_during_a_ping_waits_for_it(dsn, run):
    """A connection being pinged is nobody's; the caller that comes then gets it afterwards."""

    async def main():
        async with some_pool(dsn, keepalive=0.01) as pool:
            await pool.execute("SELECT 1")
            (pid,) = own_pids(pool)
            for _ in range(3):
                await helpers.eventually(lambda: pool.stats().loops[0].resetting == 1)
                assert await pool.fetchval("SELECT pg_backend_pid()") == pid

    run(main())


def test_a_connection_is_replaced_at_the_end_of_its_life(dsn, run):
    """After `max_lifetime` an idle connection is closed, and a lent one when it is given back."""

    async def main():
        async with some_pool(dsn, max_lifetime=0.05) as pool:
            con = await pool.acquire()
            pid = con.get_server_pid()
            await asyncio.sleep(0.06)
            assert await con.fetchval("SELECT pg_backend_pid()") == pid
            await pool.release(con)
            await helpers.eventually(lambda: pool.stats().size == 0)
            assert await pool.fetchval("SELECT pg_backend_pid()") != pid
            await helpers.eventually(lambda: pool.stats().size == 0)

    run(main())


def test_lifetimes_are_jittered(dsn, run):
    """`lifetime_jitter` takes a random part off each lifetime, never more than asked for."""

    async def main():
        async with some_pool(dsn, size=8, init_size=8, max_lifetime=1000, lifetime_jitter=0.5) as pool:
            lifetimes = [slot.expires_at - slot.opened_at for slot in pool._core.slots()]
            assert len(set(lifetimes)) == 8
            assert all(500 <= lifetime < 1000 + AMPLE for lifetime in lifetimes)
        async with some_pool(dsn, size=8, init_size=8) as pool:
            assert {slot.expires_at for slot in pool._core.slots()} == {float("inf")}

    run(main())


def test_the_floor_is_restored_when_its_connections_die(dsn, run):
    """`min_size` connections are there again some time after they were killed, without a caller."""

    async def main():
        async with asyncio.timeout(60), create_pool(dsn, min_size=2, max_size=4) as pool:
            before = own_pids(pool)
            assert len(before) == 2
            kill(dsn, *before)
            await helpers.eventually(lambda: len(own_pids(pool)) == 2 and not set(own_pids(pool)) & set(before))

    run(main())


def test_idle_connections_above_the_floor_are_closed(dsn, run):
    """What is idle for longer than allowed is closed, down to `min_size`."""

    async def main():
        options = {"min_size": 1, "init_size": 4, "max_size": 4, "max_inactive_connection_lifetime": 0.03}
        async with asyncio.timeout(60), create_pool(dsn, **options) as pool:
            assert pool.stats().loops[0].counters.opened == 4
            await helpers.eventually(lambda: pool.stats().size == 1)
            await asyncio.sleep(0.1)
            assert pool.stats().size == 1

    run(main())


# ---- growing ----


class Connects:
    """Connects that end when they are told to."""

    def __init__(self):
        self.started = 0
        self.in_flight = 0
        self.most = 0
        self.let_go = asyncio.Event()

    async def __call__(self, *args, **kwargs):
        self.started += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await self.let_go.wait()
            return await asyncpg.connect(*args, **kwargs)
        finally:
            self.in_flight -= 1


def test_no_connect_starts_that_nobody_waits_for(dsn, run):
    """Connects in flight never exceed the callers who wait, however long it takes."""

    async def main():
        connects = Connects()
        async with some_pool(dsn, size=10, connect=connects) as pool:
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(2)]
            await asyncio.sleep(0.1)
            assert connects.started == 2
            connects.let_go.set()
            await asyncio.gather(*tasks)
            assert connects.started == 2

    run(main())


@pytest.mark.parametrize(("options", "ceiling"), [({}, 6), ({"max_connecting": 2}, 2), ({"max_connecting": 50}, 6)])
def test_connects_ramp_up_to_their_ceiling_and_no_further(dsn, run, monkeypatch, options, ceiling):
    """A burst of callers starts few connects at first, then as many as `max_connecting` and `max_size` allow."""
    monkeypatch.setattr(connect_pacing, "STEP_SECONDS", 60.0)  # a slow machine takes longer than a step to begin

    async def main():
        connects = Connects()
        async with some_pool(dsn, size=6, connect=connects, **options) as pool:
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(30)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert 1 <= connects.started <= min(3, ceiling)
            monkeypatch.undo()
            await helpers.eventually(lambda: connects.in_flight == ceiling)
            await asyncio.sleep(0.05)
            assert connects.most == ceiling
            connects.let_go.set()
            await asyncio.gather(*tasks)
            assert connects.started <= 6
            assert pool.stats().size <= 6

    run(main())


def test_a_connection_that_comes_free_serves_before_a_connect_that_is_under_way(dsn, run):
    """A waiter takes what is given back first; the connect that was started for it joins the idle."""

    async def main():
        connects = Connects()
        connects.let_go.set()
        async with some_pool(dsn, size=2, connect=connects) as pool:
            con = await pool.acquire()
            connects.let_go.clear()
            task = asyncio.create_task(pool.fetchval("SELECT 1"))
            await helpers.eventually(lambda: connects.in_flight == 1)
            await pool.release(con)
            assert await task == 1
            assert connects.in_flight == 1
            connects.let_go.set()
            await helpers.eventually(lambda: pool.stats().idle == 2)

    run(main())
