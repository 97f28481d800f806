"""
Options at their edges: the same small programs end alike on upstream's pools and on ours.

What an option means at 0, None, infinity, or the least and the largest number there is, nobody looks up; a program that
is moved from one pool to another finds out.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import asynccontextmanager

import asyncpg
import psycopg_pool
import pytest
import uvloop

import loopaware_pool.asyncpg
from loopaware_pool.psycopg import AsyncConnectionPool, AsyncNullConnectionPool
from loopaware_pool.testing import FaultProxy
from running import eventually_async

INFINITY, LARGEST, LEAST, HUGE = float("inf"), sys.float_info.max, 1e-9, 10**400
PLAIN = (psycopg_pool.AsyncConnectionPool, AsyncConnectionPool)
NULL = (psycopg_pool.AsyncNullConnectionPool, AsyncNullConnectionPool)
KINDS = {"plain": PLAIN, "null": NULL}
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"
# Long enough for what is to happen at once.
SOON_SECONDS = 0.3


def edges(kinds, option, *values):
    return [
        pytest.param(kind, option, value, id=f"{kind}-{option}={value!r:.30}") for kind in kinds for value in values
    ]


def names(outcomes):
    """Count what callers got: None, or the exception of the standard library's or upstream's that it is."""
    kinds = (psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests, TimeoutError, OverflowError, TypeError, ValueError)
    return Counter(
        next((kind.__name__ for kind in kinds if isinstance(one, kind)), repr(one)) if one else "served"
        for one in outcomes
    )


def compared(program, pair):
    """Run the program on both pools; what it said of each."""

    async def main():
        async with asyncio.timeout(60):
            return await asyncio.gather(*(program(one) for one in pair))

    return asyncio.run(main())


# ---- psycopg_pool's ----


@asynccontextmanager
async def opened(cls, dsn, sizes=(1, 1), **options):
    min_size, max_size = (0, sizes[1]) if issubclass(cls, psycopg_pool.AsyncNullConnectionPool) else sizes
    settings = {"min_size": min_size, "max_size": max_size, "timeout": 20.0, "kwargs": {"autocommit": True}}
    async with cls(dsn, open=False, **{**settings, **options}) as pool:
        await pool.wait()
        yield pool


async def lease(pool):
    async with pool.connection() as connection:
        return connection.info.backend_pid


class Holders:
    """Callers that hold on to what they get until they are told to let go, at the latest when the block ends."""

    def __init__(self, lend, number):
        self.held = 0
        self._let_go = asyncio.Event()
        self._lend = lend
        self._tasks = [asyncio.create_task(self._hold()) for _ in range(number)]

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        await self.let_go()

    async def _hold(self):
        async with self._lend():
            self.held += 1
            await self._let_go.wait()

    def failed(self):
        return sum(task.done() for task in self._tasks)

    async def let_go(self):
        self._let_go.set()
        return names(await asyncio.gather(*self._tasks, return_exceptions=True))


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        *edges(KINDS, "max_lifetime", 0, 0.0, LEAST, LARGEST, INFINITY),
        *edges(KINDS, "max_idle", 0, LEAST, LARGEST, INFINITY),
        *edges(KINDS, "max_waiting", 0, 10**30),
        *edges(KINDS, "reconnect_timeout", -1, 0, LEAST, LARGEST, INFINITY),
        *edges(KINDS, "num_workers", 1),
        *edges(["plain"], "timeout", LARGEST, INFINITY),
        *edges(["plain"], "close_returns", None, 0, 1),
        *edges(["null"], "close_returns", None, 0, 1),
        *edges(KINDS, "kwargs", None),
    ],
)
def test_leases_are_served_alike(dsn, kind, option, value):
    """By the same connection or by another each time; a crowd as well; and the option reads as it was given."""

    async def program(cls):
        async with opened(cls, dsn, **{option: value}) as pool:
            pids = [await lease(pool) for _ in range(3)]
            crowd = await asyncio.gather(*(lease(pool) for _ in range(5)), return_exceptions=True)
            is_error = [isinstance(one, Exception) and one for one in crowd]
            return [pids.index(pid) for pid in pids], names(is_error), getattr(pool, option)

    theirs, ours = compared(program, KINDS[kind])
    assert ours == theirs


@pytest.mark.both_drivers
@pytest.mark.parametrize("value", [0, LEAST, 0.02, LARGEST, INFINITY])
def test_what_is_idle_is_closed_alike(dsn, value):
    """Down to `min_size`, after `max_idle`: 0 is at once, and infinity never."""

    async def program(cls):
        async with opened(cls, dsn, (1, 3), max_idle=value) as pool:
            async with Holders(pool.connection, 3) as holders:
                await eventually_async(lambda: holders.held == 3, "three leases")
            if value < 1:
                await eventually_async(lambda: pool.get_stats()["pool_size"] == 1, "an idle connection's end")
            await asyncio.sleep(SOON_SECONDS)
            return pool.get_stats()["pool_size"], pool.max_idle

    theirs, ours = compared(program, PLAIN)
    assert ours == theirs == (1 if value < 1 else 3, value)


@pytest.mark.both_drivers
@pytest.mark.parametrize("value", [0, None, INFINITY, 1, 2, 10**30])
@pytest.mark.parametrize(("kind", "sizes"), [("plain", (2, 2)), ("plain", (0, 2)), ("null", (0, 2))])
def test_callers_are_refused_alike(dsn, kind, sizes, value):
    """`max_waiting` counts those who wait for others; a null pool's callers who connect do not."""

    async def program(cls):
        async with opened(cls, dsn, sizes, max_waiting=value) as pool, Holders(pool.connection, 6) as holders:

            def is_settled():
                return holders.held and holders.held + holders.failed() + pool.get_stats()["requests_waiting"] == 6

            await eventually_async(is_settled, "callers who are served, wait or are refused")
            return await holders.let_go()

    theirs, ours = compared(program, KINDS[kind])
    assert ours == theirs


@pytest.mark.both_drivers
@pytest.mark.parametrize("value", [-1, 0, LEAST])
def test_no_time_at_all_is_time_for_what_is_idle(dsn, value):
    """With nothing idle it times out, as theirs; theirs does so with something idle, too, which ours lends."""

    async def program(cls):
        async with opened(cls, dsn, timeout=value) as pool:
            idle = await asyncio.gather(lease(pool), return_exceptions=True)
            async with pool.connection(timeout=20):
                busy = await asyncio.gather(lease(pool), return_exceptions=True)
            return isinstance(idle[0], psycopg_pool.PoolTimeout), isinstance(busy[0], psycopg_pool.PoolTimeout)

    assert compared(program, PLAIN) == [(True, True), (False, True)]


@pytest.mark.both_drivers
@pytest.mark.parametrize("value", [-1, 0, LEAST, 0.02, INFINITY])
def test_an_outage_is_told_alike(value):
    """`reconnect_failed` is called after `reconnect_timeout`: 0 is after the first attempts, and infinity never."""

    async def program(cls):
        told = asyncio.Event()
        pool = cls(NOWHERE, open=False, min_size=1, reconnect_timeout=value, reconnect_failed=lambda _: told.set())
        async with pool:
            if value < 1:
                await asyncio.wait_for(told.wait(), 20)
            await asyncio.sleep(SOON_SECONDS)
            return told.is_set()

    assert compared(program, PLAIN) == [value < 1] * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sizes",
    [(0, None), (0, 0), (1, None), (2, 1), (-1, None), (-1, -1), (0, -1), (3, 3), (0, 10**30), (10**30, None)],
)
def test_sizes_are_taken_and_refused_alike(kind, sizes):
    """With the same words."""

    def sizes_of(cls):
        try:
            pool = cls(open=False, min_size=sizes[0], max_size=sizes[1])
        except ValueError as error:
            return str(error)
        return pool.min_size, pool.max_size

    theirs, ours = map(sizes_of, KINDS[kind])
    assert ours == theirs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [None, INFINITY, LARGEST, 20, 0])
def test_waiting_and_closing_take_the_same_times(dsn, kind, value):
    """None is as long as it takes."""

    async def program(cls):
        pool = cls(dsn, open=False, min_size=0, max_size=1)
        await pool.open(wait=value != 0 or kind == "plain", timeout=value)
        pid = await lease(pool)
        await pool.close(timeout=value)
        return bool(pid), pool.closed

    assert compared(program, KINDS[kind]) == [(True, True)] * 2


NUMBERS = ["timeout", "max_lifetime", "max_idle", "reconnect_timeout"]


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        *(
            one
            for name in ("min_size", "max_size", "max_waiting", "num_workers")
            for one in edges(KINDS, name, True, 1.5)
        ),
        *(one for name in NUMBERS for one in edges(KINDS, name, True, None, "1", float("nan"), HUGE, -HUGE)),
        *edges(KINDS, "max_lifetime", -1, -INFINITY),
        *edges(KINDS, "max_idle", -1, -INFINITY),
        *edges(KINDS, "max_waiting", -1, -INFINITY, float("nan")),
        *edges(KINDS, "num_workers", 0, -1, None),
        *edges(["plain"], "min_size", None),
    ],
)
def test_what_makes_no_sense_is_refused_when_the_pool_is_made(kind, option, value):
    """Theirs takes some of these, and fails with each lease, or never does what is asked for."""
    with pytest.raises((TypeError, ValueError), match=option):
        KINDS[kind][1](open=False, **{option: value})


@pytest.mark.parametrize("option", ["max_lifetime", "max_idle"])
def test_the_refusal_of_a_time_says_what_turns_it_off(option):
    """Infinity, here."""
    with pytest.raises(ValueError, match=f"{option}=-1: .*infinity turns it off"):
        AsyncConnectionPool(open=False, **{option: -1})


@pytest.mark.both_drivers
@pytest.mark.parametrize("discard_expired", ["on_return", "always"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0, LEAST])
def test_a_connection_without_a_lifetime_serves_one_lease(dsn, kind, value, discard_expired):
    """And the pool connects for leases, or for its floor now and then, not all the time."""

    async def main():
        async with opened(KINDS[kind][1], dsn, max_lifetime=value, discard_expired=discard_expired) as pool:
            assert len({await lease(pool) for _ in range(5)}) == 5
            await pool.settled()
            await pool.wait()
            before = pool.stats().totals.opened
            await asyncio.sleep(SOON_SECONDS)
            return before, pool.stats().totals.opened - before

    before, after = asyncio.run(main())
    assert before <= 12
    assert after <= (5 if value else 0)


# ---- asyncpg's ----

ASYNCPG = (asyncpg, loopaware_pool.asyncpg)


def asyncpg_lease(pool, **timeout):
    return pool.fetchval("SELECT pg_backend_pid()", **timeout)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("max_queries", value) for value in (LEAST, 1, LARGEST, INFINITY)],
        *[("max_inactive_connection_lifetime", value) for value in (0, 0.0, LEAST, LARGEST, INFINITY)],
        *[("acquire", value) for value in (None, LARGEST, INFINITY)],
    ],
)
def test_leases_are_served_alike_by_asyncpgs(dsn, option, value):
    """By the same connection or by another each time; a crowd as well."""
    options, timeout = ({}, {"timeout": value}) if option == "acquire" else ({option: value}, {})

    async def one_of(pool):
        async with pool.acquire(**timeout) as connection:
            return await connection.fetchval("SELECT pg_backend_pid()")

    async def program(library):
        async with library.create_pool(dsn, min_size=1, max_size=1, **options) as pool:
            pids = [await one_of(pool) for _ in range(3)]
            crowd = await asyncio.gather(*(one_of(pool) for _ in range(5)), return_exceptions=True)
            return [pids.index(pid) for pid in pids], names([isinstance(one, Exception) and one for one in crowd])

    theirs, ours = compared(program, ASYNCPG)
    assert ours == theirs


@pytest.mark.parametrize("value", [0, LEAST, 0.02, LARGEST, INFINITY])
def test_what_is_idle_is_closed_alike_by_asyncpgs(dsn, value):
    """After `max_inactive_connection_lifetime`; 0 is never, with asyncpg's."""
    is_short = 0 < value < 1

    async def program(library):
        async with library.create_pool(dsn, min_size=0, max_size=3, max_inactive_connection_lifetime=value) as pool:
            async with Holders(pool.acquire, 3) as holders:
                await eventually_async(lambda: holders.held == 3, "three leases")
            if is_short:
                await eventually_async(lambda: pool.get_size() == 0, "the idle connections' end")
            else:
                await asyncio.sleep(SOON_SECONDS)
            return pool.get_size()

    assert compared(program, ASYNCPG) == [0 if is_short else 3] * 2


@pytest.mark.parametrize("value", [-1, 0, LEAST])
def test_no_time_at_all_is_time_for_what_is_idle_with_asyncpgs(dsn, value):
    """With nothing idle it times out, as theirs; with something idle, ours lends it."""

    async def busy_and_idle(library):
        async with library.create_pool(dsn, min_size=1, max_size=1) as pool:
            async with pool.acquire():
                with pytest.raises(TimeoutError):
                    await pool.acquire(timeout=value)
            if library is loopaware_pool.asyncpg:
                await eventually_async(lambda: pool.stats().idle, "the answer to the first reset")
                await pool.release(await pool.acquire(timeout=value))

    compared(busy_and_idle, ASYNCPG)


@pytest.mark.parametrize("value", [-1, 0, LEAST])
def test_no_time_at_all_costs_no_connection_of_a_pool_with_a_setup(dsn, run, monkeypatch, value):
    """`setup` has the time that a healthy server needs for a query; asyncpg's pool does not touch the connection."""
    monkeypatch.setattr(loopaware_pool.asyncpg.pool, "LEAST_CALLBACK_SECONDS", 20.0)

    async def setup(connection):
        await connection.execute("SELECT 1")

    async def main():
        async with loopaware_pool.asyncpg.create_pool(dsn, min_size=1, max_size=1, setup=setup) as pool:
            pid = await pool.fetchval("SELECT pg_backend_pid()")
            await pool.settled()
            connection = await pool.acquire(timeout=value)
            assert connection.get_server_pid() == pid
            await pool.release(connection)

    run(main())


def test_callers_for_whom_there_is_room_are_not_refused(dsn):
    """asyncpg's pool has no `max_waiting`; ours counts those who wait for others."""

    async def main():
        pool = await loopaware_pool.asyncpg.create_pool(dsn, min_size=0, max_size=6, max_waiting=1)
        async with pool, Holders(pool.acquire, 8) as holders:
            await eventually_async(lambda: holders.held == 6 and holders.failed() == 1, "six leases and a refusal")
            return await holders.let_go()

    assert asyncio.run(main())["served"] == 7


@pytest.mark.both_drivers
@pytest.mark.parametrize(
    ("cls", "wait"),
    [
        (loopaware_pool.asyncpg.create_pool, 4),
        (psycopg_pool.AsyncConnectionPool, 1),
        (AsyncConnectionPool, 1),
        (AsyncNullConnectionPool, 4),
    ],
    ids=["asyncpg", "theirs", "ours", "ours, null"],
)
def test_a_server_that_lets_nobody_in_has_few_callers_wait(dsn, cls, wait):
    """`max_waiting`, and `max_size` more where those for whom a connection is opened do not count."""

    async def main(proxy):
        options = {"min_size": 0, "max_size": 3, "max_waiting": 1}
        pool = cls(proxy.dsn, **options) if "asyncpg" in cls.__module__ else cls(proxy.dsn, open=False, **options)
        async with pool:
            proxy.freeze()
            lend = getattr(pool, "acquire", None) or pool.connection
            async with Holders(lend, 9) as holders:
                await eventually_async(lambda: holders.failed() >= 9 - wait, "callers who are refused")
                await asyncio.sleep(SOON_SECONDS)
                assert (holders.failed(), holders.held) == (9 - wait, 0)
                proxy.heal()
                return await holders.let_go()

    with FaultProxy(dsn) as proxy:
        assert asyncio.run(main(proxy))["served"] == wait


@pytest.mark.both_drivers
def test_a_lifetime_of_next_to_nothing_serves_one_lease(dsn):
    """With asyncpg's as well."""

    async def main():
        async with loopaware_pool.asyncpg.create_pool(dsn, min_size=2, max_size=2, max_lifetime=LEAST) as pool:
            pids = {await asyncpg_lease(pool) for _ in range(5)}
            await pool.settled()
            before = pool.stats().totals.opened
            await asyncio.sleep(SOON_SECONDS)
            return len(pids), pool.stats().totals.opened - before

    pids, opened_meanwhile = asyncio.run(main())
    assert pids == 5
    assert opened_meanwhile <= 10


@pytest.mark.both_drivers
@pytest.mark.parametrize("loop_kind", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_the_largest_numbers_are_times_every_loop_can_count_to(dsn, loop_kind):
    """Whichever option has one."""
    spans = (
        "max_lifetime",
        "keepalive",
        "acquire_timeout",
        "shed_after",
        "leak_threshold",
        "fd_check",
        "close_timeout",
    )

    async def main():
        options = dict.fromkeys((*spans, "max_inactive_connection_lifetime"), LARGEST)
        async with loopaware_pool.asyncpg.create_pool(dsn, min_size=1, max_size=1, **options) as pool:
            assert await asyncio.gather(*(asyncpg_lease(pool) for _ in range(3)))
        options = dict.fromkeys((*NUMBERS, "keepalive", "shed_after", "leak_threshold", "fd_check"), LARGEST)
        for cls in (AsyncConnectionPool, AsyncNullConnectionPool):
            async with opened(cls, dsn, **options) as pool:
                assert await asyncio.gather(*(lease(pool) for _ in range(3)))

    with asyncio.Runner(loop_factory=loop_kind) as runner:
        runner.run(main())
