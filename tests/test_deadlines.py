"""One timer for all deadlines of a loop: who is told when, and who is not."""

from __future__ import annotations

import asyncio
from time import monotonic, sleep

import pytest

from loopaware_pool._core.deadlines import TICK_SECONDS, Deadlines


@pytest.fixture
def told():
    return []


def add(deadlines, told, key, seconds, since=None):
    """Note *key*, and that it was not too early, when its deadline has passed."""
    deadline = (monotonic() if since is None else since) + seconds
    return deadlines.add(key, deadline, lambda: told.append((key, monotonic() >= deadline)))


@pytest.mark.parametrize("is_blocked", [False, True])
def test_deadlines_pass_in_their_order(told, is_blocked):
    """Whatever the order in which they were added, and none too early; also if a blocked loop sees all at once."""

    async def main():
        deadlines = Deadlines(asyncio.get_running_loop())
        now = monotonic()
        for key, seconds in (("third", 0.06), ("first", 0.0), ("second", 0.03), ("fourth", 0.09)):
            add(deadlines, told, key, seconds, since=now)
        if is_blocked:
            sleep(0.1)
        while len(told) < 4:
            await asyncio.sleep(TICK_SECONDS)

    asyncio.run(main())
    assert told == [("first", True), ("second", True), ("third", True), ("fourth", True)]


def test_a_deadline_that_was_removed_is_forgotten(told):
    """The others are not, in the same tick or in a later one."""

    async def main():
        deadlines = Deadlines(asyncio.get_running_loop())
        soon = monotonic() + 0.01
        ticks = {key: deadlines.add(key, soon, lambda key=key: told.append(key)) for key in ("gone", "there")}
        alone = add(deadlines, told, "alone", 0.0)
        deadlines.remove("gone", ticks["gone"])
        deadlines.remove("alone", alone)
        deadlines.remove("alone", alone)
        while not told:
            await asyncio.sleep(TICK_SECONDS)
        add(deadlines, told, "later", 0.0)
        while len(told) < 2:
            await asyncio.sleep(TICK_SECONDS)
        deadlines.remove("there", ticks["there"])

    asyncio.run(main())
    assert told == ["there", ("later", True)]


def test_many_deadlines_have_one_timer():
    """And it is set anew only for an earlier one."""

    async def main():
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop)
        timers = []
        call_later = loop.call_later
        loop.call_later = lambda *arguments: timers.append(call_later(*arguments)) or timers[-1]
        for key in range(1000):
            tick = deadlines.add(key, monotonic() + 30, list)
            if key % 2:
                deadlines.remove(key, tick)
        assert len(timers) == 1
        deadlines.add("earlier", monotonic() + 20, list)
        assert [timer.cancelled() for timer in timers] == [True, False]
        deadlines.stop()
        assert all(timer.cancelled() for timer in timers)

    asyncio.run(main())


def test_nobody_is_told_after_the_end(told):
    """Nor is a timer left."""

    async def main():
        deadlines = Deadlines(asyncio.get_running_loop())
        add(deadlines, told, "one", 0.0)
        deadlines.stop()
        await asyncio.sleep(4 * TICK_SECONDS)

    asyncio.run(main())
    assert told == []
