"""What a loop's runner does when a driver fails, or when another thread acts for its loop; without a server."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from time import monotonic

import pytest

from loopaware_pool._core import shard
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool.driver import Liveness, ReturnCheck
from loopaware_pool.stats import ConnectionClosed
from loopaware_pool.testing import FakeDriver, FakeSession
from running import DEADLINE_SECONDS, eventually_async

pytestmark = pytest.mark.both_pythons


class Unwatchable(FakeSession):
    """Its fd was closed by other code, so no selector takes it any more."""

    def unpark(self):
        raise OSError(9, "Bad file descriptor")


class Face:
    """Stands for the public pool."""


@contextmanager
def pool_core(max_size=2, session_class=FakeSession, on_event=None):
    driver, face = FakeDriver(), Face()
    driver.session_class = session_class
    core = PoolCore(PoolConfig(min_size=0, init_size=0, max_size=max_size, on_event=on_event), driver, face)
    yield core
    core.terminate()


async def take(core, timeout=DEADLINE_SECONDS):
    runner = core.runner()
    slot = runner.shard.take(monotonic())
    runner.act()
    return slot or await core.queue.wait(runner, timeout)


def give_back(core, slot):
    core.runner().shard.returned(slot, ReturnCheck.READY, monotonic())
    core.runner().act()


async def open_idle(core, count):
    core.start()
    for slot in [await take(core) for _ in range(count)]:
        give_back(core, slot)


async def ping(core):
    await core.check_idle()


async def read(core):
    core.driver.sessions[0].life = Liveness.UNREAD
    give_back(core, await take(core))


async def close(core):
    async with asyncio.timeout(DEADLINE_SECONDS):
        await core.close()


@pytest.mark.parametrize("work", [ping, read, close])
def test_a_connection_that_cannot_be_worked_on_costs_no_permit(run, work):
    """It is closed, the error is told to the loop, and `close()` does not wait for it."""

    async def main():
        complaints = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["exception"]))
        with pool_core(max_size=1, session_class=Unwatchable) as core:
            await open_idle(core, 1)
            first = core.driver.sessions[0]
            await work(core)
            await eventually_async(lambda: "abort" in first.calls, "it is closed")
            if work is not close:
                core.driver.session_class = FakeSession
                give_back(core, await take(core))
            assert core.permits.in_use == sum(runner.shard.size for runner in core.runners())
            assert [type(error) for error in complaints[:1]] == [OSError]

    run(main())


class Unaskable(FakeSession):
    """Fails when the housekeeper asks a second time whether the caller has dropped it."""

    asked = 0

    def is_dropped(self):
        type(self).asked += 1
        if type(self).asked > 1:
            raise RuntimeError("a driver's own")
        return True


class Silent(FakeSession):
    """Its server does not answer."""

    async def _answer(self, call):
        await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("patience", [None, DEADLINE_SECONDS])
def test_a_caller_that_is_cancelled_leaves_its_reset_to_the_pool(run, monkeypatch, patience):
    """Another caller gets the permit before the reset's own time is up: half a minute, and here none."""
    monkeypatch.setattr(shard, "SILENT_SECONDS", 0.05)

    async def main():
        with pool_core(max_size=1, session_class=Silent) as core:
            core.start()
            slot = await take(core)
            runner = core.runner()
            runner.shard.returned(slot, ReturnCheck.RESET, monotonic())
            runner.act()
            releasing = asyncio.create_task(runner.task_finished(slot, patience))
            await asyncio.sleep(0)
            releasing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await releasing
            assert await take(core) is not slot

    run(main())


def test_a_driver_that_fails_in_the_timer_leaves_nothing_undone(run, monkeypatch):
    """What was decided before is done, and the error is told to the loop."""
    monkeypatch.setattr(Unaskable, "asked", 0)

    async def main():
        complaints = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["exception"]))
        with pool_core(session_class=Unaskable) as core:
            core.start()
            slots = [await take(core) for _ in range(2)]
            core.runner().shard.wake_by(0.0)
            await eventually_async(lambda: complaints, "the timer has fired")
            assert [type(error) for error in complaints] == [RuntimeError]
            assert sorted(slot.session.calls for slot in slots) == [[], ["abort"]]
            assert core.permits.in_use == 1
            monkeypatch.setattr(Unaskable, "asked", -1000)

    run(main())


def test_a_loop_may_stop_between_the_end_of_a_task_and_its_callbacks(loop_factory):
    """A thread without a loop then closes the connection that the task has worked on."""
    loop, complaints = loop_factory(), []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))

    async def begin_ping():
        await open_idle(core, 1)
        core.runner().ping_all()
        core.runner().act()
        stop_when_pinged(core.runner())

    def stop_when_pinged(runner):
        if runner.shard.idle:
            loop.stop()
        else:
            loop.call_soon(stop_when_pinged, runner)

    with pool_core() as core:
        pinging = loop.create_task(begin_ping())
        loop.run_forever()
        assert pinging.done()
        core.drain()
        assert (core.permits.in_use, complaints) == (0, [])
    loop.close()


@contextmanager
def drained_by_another_thread(core, entered):
    """Another thread drains the pool, and stays in a listener that this calls."""
    thread = threading.Thread(target=core.drain)
    thread.start()
    assert entered.wait(DEADLINE_SECONDS)
    yield thread
    thread.join()


def test_a_loop_that_begins_to_run_does_its_own_work(runner_factory):
    """Another thread acts for the loop, and is slow. The loop neither waits for it, nor has its tasks made there."""
    entered, may_go_on, heard_by = threading.Event(), threading.Event(), []

    def listen(event):
        if type(event) is ConnectionClosed:
            heard_by.append(threading.current_thread())
            entered.set()
            may_go_on.wait(DEADLINE_SECONDS)

    async def main():
        threading.Timer(0.1, may_go_on.set).start()  # from here on the loop runs, and this thread may wait, too
        slots = [await take(core) for _ in range(2)]
        may_go_on.set()
        for slot in slots:
            give_back(core, slot)

    with pool_core(on_event=listen) as core, runner_factory() as runner:
        runner.run(open_idle(core, 2))
        try:
            with drained_by_another_thread(core, entered) as thread:
                heard_by.append(None)
                runner.run(main())
        finally:
            may_go_on.set()
        assert heard_by[0] is thread
        assert heard_by[2:] == [threading.current_thread()]
        assert core.permits.in_use == 2


def test_a_listener_that_terminates_the_pool_ends_it_on_loops_that_are_not_running(runner_factory):
    def listen(event):
        if type(event) is ConnectionClosed:
            core.terminate()

    async def lose_one():
        slot = await take(core)
        slot.session.lose()
        await eventually_async(lambda: not core.runners(), "no loop has a connection left")

    with pool_core(on_event=listen) as core, runner_factory() as idle, runner_factory() as running:
        idle.run(open_idle(core, 1))
        running.run(lose_one())
        assert core.permits.in_use == 0
        assert core.driver.sessions[0].calls == ["discard"]
