"""Who is refused when more come than can be served: the decision, the line it is about, and both pools on a server."""

from __future__ import annotations

import asyncio

import asyncpg
import psycopg_pool
import pytest

import helpers
from fakes import FakeFuture, FakePool
from loopaware_pool import errors
from loopaware_pool._core.load_shedding import INTERVAL_LIMITS, LoadShedding
from loopaware_pool._core.wait_queue import WaitQueue
from loopaware_pool.asyncpg import Overloaded, TooManyWaiting, create_pool
from loopaware_pool.psycopg import AsyncConnectionPool, AsyncNullConnectionPool, TooManyRequests
from loopaware_pool.psycopg import Overloaded as OverloadedPsycopg
from loopaware_pool.stats import AcquireFailed
from psycopg_pools import make_pool

LIMIT = 1.0
INTERVAL = LIMIT * INTERVAL_LIMITS


def served(shedding, *waits, since, over=INTERVAL):
    """Hand over to callers who have waited so long, spread over a time; tell who was refused."""
    gap = over / len(waits)
    return [shedding.refuses(waited, since + number * gap) for number, waited in enumerate(waits)]


class TestShedding:
    def test_nobody_is_refused_at_first(self):
        """However long he has waited: it takes an interval to know that a line stands."""
        assert LoadShedding(LIMIT).is_standing is False
        assert served(LoadShedding(LIMIT), 100.0, 100.0, 100.0, since=50.0) == [False] * 3

    def test_a_line_stands_once_the_shortest_wait_of_an_interval_was_too_long(self):
        """From the next interval on, those who have waited longer than the limit are refused; others are not."""
        shedding = LoadShedding(LIMIT)
        assert not any(served(shedding, 2.0, 0.6, 3.0, since=0.0))
        assert served(shedding, 1.1, 0.9, 1.0, 1.2, since=INTERVAL) == [True, False, False, True]
        assert shedding.is_standing

    def test_one_short_wait_proves_that_the_line_moves(self):
        """A burst is taken up: one caller who waited for no longer than half the limit is enough, first or last."""
        for waits in [(0.5, 2.0, 3.0), (3.0, 2.0, 0.5)]:
            shedding = LoadShedding(LIMIT)
            served(shedding, *waits, since=0.0)
            assert not any(served(shedding, 5.0, 5.0, since=INTERVAL))

    def test_an_empty_line_does_not_stand(self):
        """Nobody has to be served quickly to prove it."""
        shedding = LoadShedding(LIMIT)
        served(shedding, 2.0, 3.0, since=0.0)
        shedding.emptied()
        assert not any(served(shedding, 5.0, 5.0, since=INTERVAL))

    def test_it_ends_an_interval_after_the_load_does(self):
        """The waits grow short, and then even a long one is no reason any more."""
        shedding = LoadShedding(LIMIT)
        served(shedding, 2.0, 3.0, since=0.0)
        assert served(shedding, 2.0, 0.2, since=INTERVAL) == [True, False]
        assert not any(served(shedding, 2.0, 2.0, since=2 * INTERVAL))
        assert not shedding.is_standing

    def test_each_interval_is_judged_by_itself(self):
        """What was seen in those before it is forgotten."""
        shedding = LoadShedding(LIMIT)
        served(shedding, 0.1, since=0.0)
        served(shedding, 2.0, 3.0, since=INTERVAL)
        assert served(shedding, 9.0, 0.9, since=2 * INTERVAL) == [True, False]


class TestShard:
    @pytest.fixture
    def standing(self):
        """A shard with one connection, lent, and a line that has been standing: its pool, it and the slot."""
        pool = FakePool(max_size=1, shed_after=LIMIT)
        shard = pool.shard()
        (slot,) = pool.lend(shard, 1)
        waiters = [pool.wait(shard)]
        for _ in range(40):
            waiters.append(pool.wait(shard))
            pool.now += LIMIT * 0.4
            shard.returned(slot, slot.session.check, pool.now)
            assert pool.claim(shard, waiters.pop(0)) is slot
        waiters[0].cancel()
        return pool, shard, slot

    def hand_over(self, pool, shard, slot):
        shard.returned(slot, slot.session.check, pool.now)

    def test_the_stale_are_refused_and_the_fresh_are_served(self, standing):
        """All of those in front who have waited for too long, each with an error that says so; then the next."""
        pool, shard, slot = standing
        stale = [pool.wait(shard) for _ in range(3)]
        pool.now += LIMIT * 1.5
        fresh = [pool.wait(shard) for _ in range(2)]
        pool.now += LIMIT * 0.5
        self.hand_over(pool, shard, slot)
        assert [type(waiter.exception) for waiter in stale] == [errors.Overloaded] * 3
        assert fresh[0].result is slot
        assert not fresh[1].done()
        error = stale[0].exception
        assert (error.waited, error.shed_after, error.waiting) == (LIMIT * 2, LIMIT, 4)
        assert shard.counters.shed == 3

    def test_the_last_in_the_line_is_served(self, standing):
        """However long he has waited: his refusal would help nobody."""
        pool, shard, slot = standing
        waiters = [pool.wait(shard) for _ in range(3)]
        pool.now += LIMIT * 50
        self.hand_over(pool, shard, slot)
        assert [waiter.exception is not None for waiter in waiters] == [True, True, False]
        assert waiters[2].result is slot

    def test_without_the_option_nobody_is_refused(self):
        """However long everybody has waited."""
        pool = FakePool(max_size=1)
        shard = pool.shard()
        (slot,) = pool.lend(shard, 1)
        waiters = [pool.wait(shard) for _ in range(20)]
        for waiter in waiters:
            pool.now += 100.0
            shard.returned(slot, slot.session.check, pool.now)
            assert pool.claim(shard, waiter) is slot
        assert shard.counters.shed == 0

    def test_a_line_that_was_empty_in_between_does_not_stand(self):
        """As long as everybody is served there is no overload, though each one waits."""
        pool = FakePool(max_size=1, shed_after=LIMIT)
        shard = pool.shard()
        (slot,) = pool.lend(shard, 1)
        for _ in range(20):
            waiters = [pool.wait(shard) for _ in range(2)]
            for waiter in waiters:
                pool.now += LIMIT * 2
                shard.returned(slot, slot.session.check, pool.now)
                assert pool.claim(shard, waiter) is slot
        assert shard.counters.shed == 0


def test_a_line_skips_those_who_have_gone():
    """Cancelled, and not out of the line yet."""
    line = WaitQueue()
    gone, here = FakeFuture(), FakeFuture()
    line.join(gone, 1.0, has_deadline=False)
    line.join(here, 2.0, has_deadline=False)
    gone.cancel()
    assert line.oldest == 1.0
    assert line.next() == (here, 2.0)
    assert line.next() is None


def test_an_overload_tells_what_was_asked_for_and_what_to_do():
    """It is a `TooManyWaiting`, so that whoever turns that into "503" does so with this."""
    error = errors.Overloaded(pool="orders", shed_after=0.5, waited=0.75, waiting=40)
    assert isinstance(error, errors.TooManyWaiting)
    assert str(error) == (
        "pool 'orders' is overloaded: refused after 0.75 s in the queue, with 40 callers behind, as shed_after=0.5 "
        "asks for; try later, hold connections for less time, or raise max_size"
    )
    assert (error.pool, error.waited, error.shed_after, error.waiting) == ("orders", 0.75, 0.5, 40)
    assert error.max_waiting == 0


# ---- on a server ----

# Small enough for a test, and several times what a loop is late by.
SHED_SECONDS = 0.04
HELD_SECONDS = 0.02
CALLERS = 100


async def overload(lease):
    """Send 100 callers at once to one connection that each holds for 20 ms; tell, in their order, what came of it."""

    async def call():
        try:
            async with lease() as con:
                await con.execute("SELECT 1")
                await asyncio.sleep(HELD_SECONDS)
        except (errors.PoolError, asyncpg.InterfaceError) as error:
            return error
        return None

    return await asyncio.gather(*[call() for _ in range(CALLERS)])


def check_outcome(outcome, kind, events):
    """The line stands after an interval; then those who have waited longest go, all but the last."""
    refused = [error for error in outcome if error is not None]
    assert {type(error) for error in refused} == {kind}
    assert len(refused) >= CALLERS // 3
    assert all(error.waited > error.shed_after == SHED_SECONDS for error in refused)
    assert outcome[0] is None
    assert outcome[-1] is None
    assert [event.error for event in events if isinstance(event, AcquireFailed)] == refused


def test_asyncpgs_pool_sheds(dsn, run):
    """The error is asyncpg's `InterfaceError` too; it is counted and told, and the pool goes on."""

    async def main():
        events = []
        options = {"shed_after": SHED_SECONDS, "on_event": events.append, "name": "shedding"}
        async with create_pool(dsn, min_size=0, max_size=1, **options) as pool:
            outcome = await overload(pool.acquire)
            check_outcome(outcome, Overloaded, events)
            assert issubclass(Overloaded, (errors.Overloaded, TooManyWaiting, asyncpg.InterfaceError))
            assert "pool 'shedding' is overloaded" in str(next(error for error in outcome if error))
            counters = pool.stats().loops[0].counters
            assert counters.shed == sum(error is not None for error in outcome)
            assert (counters.failed, counters.timed_out, counters.cancelled) == (0, 0, 0)
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


@pytest.mark.parametrize("cls", [AsyncConnectionPool, AsyncNullConnectionPool])
def test_psycopgs_pools_shed(dsn, run, cls):
    """The error is psycopg_pool's `TooManyRequests` too, and counted as an error."""

    async def main():
        events = []
        options = {"shed_after": SHED_SECONDS, "on_event": events.append, "min_size": 0, "max_size": 1}
        async with make_pool(cls, dsn, **options) as pool:
            outcome = await overload(pool.connection)
            check_outcome(outcome, OverloadedPsycopg, events)
            assert issubclass(OverloadedPsycopg, (errors.Overloaded, TooManyRequests))
            assert issubclass(OverloadedPsycopg, psycopg_pool.TooManyRequests)
            assert pool.get_stats()["requests_errors"] == sum(error is not None for error in outcome)
            async with pool.connection() as con:
                await con.execute("SELECT 1")

    run(main())


def test_a_queue_that_moves_refuses_nobody(dsn, run):
    """Many callers with short work: each wait is short, and the option changes nothing."""

    async def main():
        async with create_pool(dsn, min_size=0, max_size=2, shed_after=30.0) as pool:
            assert await asyncio.gather(*[pool.fetchval("SELECT 1") for _ in range(200)]) == [1] * 200
            await helpers.eventually(lambda: pool.stats().idle > 0)

    run(main())
