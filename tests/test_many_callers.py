"""What is counted for callers that come, wait and time out by the thousand: once for many, not once for each."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from time import monotonic, thread_time

from loopaware_pool._core import registry
from loopaware_pool._core.acquire import Queue
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool.driver import ReturnCheck
from loopaware_pool.errors import PoolTimeout
from loopaware_pool.testing import FakeDriver, LoopThread

CALLERS = 500


class Face:
    """Stands for the pool that a user holds."""


@asynccontextmanager
async def fake_pool(**options):
    face = Face()
    core = PoolCore(PoolConfig(**{"min_size": 0, "init_size": 0, "max_size": 1, **options}), FakeDriver(), face)
    core.start()
    try:
        yield core
    finally:
        core.terminate()


async def acquire(core, timeout=None):
    runner = core.runner()
    return runner.shard.take(monotonic()) or await core.queue.wait(runner, timeout)


def release(core, slot):
    core.runner().shard.returned(slot, ReturnCheck.READY, monotonic())
    core.runner().act()


def counted(monkeypatch, owner, name):
    """Count the calls of a method."""
    calls = []
    method = getattr(owner, name)

    def counting(*args, **kwargs):
        calls.append(name)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


def test_callers_that_time_out_at_once_share_what_they_tell(run, monkeypatch):
    """Each has its error, with the statistics and the holders; the pool is counted a few times for all of them."""

    async def main():
        async with fake_pool(max_size=2) as core:
            slots = [await acquire(core) for _ in range(2)]
            for slot in slots:
                slot.lent_to(asyncio.current_task(), None, 0)
            runner = core.runner()
            stats, leases = counted(monkeypatch, core, "stats"), counted(monkeypatch, runner, "leases")
            core.recent_stats._make = core.stats
            for recent in (core.recent_stats, runner.recent_leases):
                recent._clock = thread_time  # while other processes have the processor, nothing gets stale
            errors = await asyncio.gather(
                *(core.queue.wait(runner, 0.05) for _ in range(CALLERS)), return_exceptions=True
            )
            assert all(type(error) is PoolTimeout for error in errors)
            assert len({id(error) for error in errors}) == CALLERS
            assert all((error.stats.lent, len(error.holders)) == (2, 2) for error in errors)
            assert 1 <= len(stats) < CALLERS / 5
            assert 1 <= len(leases) < CALLERS / 5
            for slot in slots:
                release(core, slot)

    run(main())


def test_max_waiting_looks_closely_only_when_it_is_near(run, monkeypatch):
    """As long as fewer callers are queued than may be, nothing else is looked at."""

    async def main():
        async with fake_pool(max_waiting=10) as core:
            slot = await acquire(core)
            looks = counted(monkeypatch, Queue, "waiting_in_line")
            tasks = [asyncio.create_task(acquire(core)) for _ in range(10)]
            await asyncio.sleep(0)
            assert looks == []
            late = asyncio.create_task(acquire(core))
            await asyncio.wait([late])
            assert looks == ["waiting_in_line"]
            assert late.exception().max_waiting == 10
            for task in tasks:
                release(core, slot)
                slot = await task
            release(core, slot)

    run(main())


def test_idle_connections_are_counted_only_if_there_may_be_too_many(run):
    """With no more connections open than may be idle, a return counts none on other loops."""

    async def main():
        async with fake_pool(max_size=3, max_idle_size=2) as core:
            counts = []
            idle_size = core.runner().shard._pool_idle_size
            core.runner().shard._pool_idle_size = lambda: counts.append(1) or idle_size()
            slots = [await acquire(core) for _ in range(2)]
            for slot in slots:
                release(core, slot)
            assert counts == []
            slots = [await acquire(core) for _ in range(3)]
            for slot in slots:
                release(core, slot)
            assert counts
            assert len(core.runner().shard.idle) == 2

    run(main())


def test_loops_are_told_once_to_look_for_dropped_leases(run, loop_factory, monkeypatch):
    """Each loop with callers that wait has all loops told once a second; all of these together have it about once."""
    monkeypatch.setattr(registry, "RECLAIM_PAUSE_SECONDS", 60.0)

    async def main():
        async with fake_pool() as core:
            with LoopThread(loop_factory) as other:

                async def begin():
                    core.runner()

                await asyncio.to_thread(other.run, begin())
                looks = [counted(monkeypatch, runner.housekeeper, "reclaim_dropped") for runner in core.runners()]
                for _ in range(10):
                    core.reclaim_on_all_loops()
                await asyncio.to_thread(other.run, begin())
                assert looks == [["reclaim_dropped"]] * 2

    run(main())
