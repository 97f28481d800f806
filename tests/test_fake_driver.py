"""A pool's core on a driver without a server: what only shows when callers are tasks of a loop."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool._core.slot import SlotState
from loopaware_pool.driver import Driver, ReturnCheck, Session
from loopaware_pool.errors import PoolClosed
from loopaware_pool.testing import FakeDriver, FakeSession

pytestmark = pytest.mark.both_pythons


class Bench:
    """An open core with its driver, used on one loop."""

    def __init__(self, max_size):
        self.driver = FakeDriver()
        self.core = PoolCore(PoolConfig(min_size=0, init_size=max_size, max_size=max_size), self.driver, face=self)
        self.callers = []

    async def __aenter__(self):
        await self.core.open()
        self.shard_runner = self.core.runner()
        self.shard = self.shard_runner.shard
        return self

    async def __aexit__(self, *exc):
        self.core.terminate()
        await asyncio.gather(*self.callers, return_exceptions=True)

    def take(self):
        slot = self.shard.take(monotonic())
        assert slot is not None
        return slot

    async def queue(self):
        """A task that waits for a connection."""
        task = asyncio.create_task(self.core.queue.wait(self.shard_runner, None))
        self.callers.append(task)
        await asyncio.sleep(0)
        return task

    def give_back(self, slot):
        self.shard.returned(slot, ReturnCheck.READY, monotonic())


def test_the_fakes_are_what_the_core_asks_for():
    """`FakeDriver` and `FakeSession` have every member of the protocols they stand for."""
    for fake, protocol in ((FakeDriver(), Driver), (FakeSession(), Session)):
        wanted = {name for name in vars(protocol) if not name.startswith("_")} | set(protocol.__annotations__)
        assert not {name for name in wanted if not hasattr(fake, name)}


def test_a_pool_opens_lends_and_closes_without_a_server(run):
    """Connections are made, lent, parked when idle, and told goodbye."""

    async def story():
        async with Bench(max_size=2) as bench:
            assert len(bench.driver.sessions) == 2
            slot = bench.take()
            assert slot.session in bench.driver.sessions
            bench.give_back(slot)
            await bench.shard_runner.until_settled()
            assert all(session.is_parked for session in bench.driver.sessions)
            await bench.core.close()
            assert [session.calls for session in bench.driver.sessions] == [["close", "abort"]] * 2

    run(story())


def test_a_refusal_reaches_the_opener(run):
    """What the driver raises is what opening the pool raises, and nothing is left."""

    async def story():
        bench = Bench(max_size=1)
        bench.driver.failures = [OSError("refused")]
        with pytest.raises(OSError, match="refused"):
            await bench.core.open()
        assert bench.driver.sessions == []
        assert bench.core.permits.in_use == 0

    run(story())


def test_a_caller_whose_connection_is_lost_at_the_hand_over_takes_an_idle_one(run):
    """It does not queue beside a connection that became idle in the same moment."""

    async def story():
        async with Bench(max_size=2) as bench:
            lost, good = bench.take(), bench.take()
            bench.driver.connect_seconds = 3600
            caller = await bench.queue()
            bench.give_back(lost)
            bench.give_back(good)
            assert (lost.state, good.state) == (SlotState.RESERVED, SlotState.IDLE)
            lost.session.lose()
            for _ in range(5):
                await asyncio.sleep(0)
            assert caller.done(), "it waits beside an idle connection"
            assert caller.result() is good

    run(story())


def test_a_caller_whose_connection_is_lost_at_the_hand_over_keeps_its_place(run):
    """First come, first served: those who came after it are not served before it."""

    async def story():
        async with Bench(max_size=1) as bench:
            slot = bench.take()
            bench.driver.connect_seconds = 0.01
            callers = [await bench.queue() for _ in range(2)]
            bench.give_back(slot)
            slot.session.lose()
            done, _ = await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
            assert done == {callers[0]}
            bench.give_back(callers[0].result())
            await callers[1]

    run(story())


def test_a_caller_whose_connection_is_lost_while_the_pool_closes_is_told(run):
    """It does not queue again in a pool that serves nobody."""

    async def story():
        async with Bench(max_size=1) as bench:
            slot = bench.take()
            caller = await bench.queue()
            bench.give_back(slot)
            bench.core.terminate()
            with pytest.raises(PoolClosed):
                await caller

    run(story())
