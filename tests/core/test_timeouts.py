"""Work on a connection that has a time limit, on a loop that was blocked or was not."""

from __future__ import annotations

import asyncio

import pytest

from helpers import spin
from loopaware_pool._core.shard import READ_SECONDS
from loopaware_pool._core.timeouts import within


class Limited:
    """
    Work that waits for an answer, 10 seconds at most.

    Attributes:
        answer: What it waits for.
        cuts: How often its connection was cut.
        skipped_seconds: What the loop's clock is ahead.
    """

    def __init__(self, loop):
        self.answer = loop.create_future()
        self.cuts = 0
        self.skipped_seconds = 0.0
        tell = loop.time
        loop.time = lambda: tell() + self.skipped_seconds
        self.task = loop.create_task(within(10.0, self.work, self.cut))

    async def work(self):
        await self.answer

    def read_answer(self):
        """Have the loop read the answer next, before its timers are called."""
        self.answer.get_loop().call_soon(self.answer.set_result, None)

    def cut(self):
        self.cuts += 1


def run(story):
    async def main():
        limited = Limited(asyncio.get_running_loop())
        await spin(2)
        await story(limited)

    asyncio.run(main())


def test_an_answer_that_came_while_the_loop_was_blocked_counts():
    """It is read in the iteration in which the time is found to be up."""

    async def story(limited):
        limited.skipped_seconds = 20.0
        limited.read_answer()
        await limited.task
        assert limited.cuts == 0

    run(story)


def test_a_loop_that_was_blocked_waits_a_moment_longer():
    """And no more than that."""

    async def story(limited):
        limited.skipped_seconds = 20.0
        await spin(3)
        assert limited.cuts == 0
        limited.skipped_seconds += READ_SECONDS
        with pytest.raises(TimeoutError):
            await limited.task
        assert limited.cuts == 1

    run(story)


def test_work_that_ends_as_its_connection_is_cut_has_failed():
    """Else a connection that was aborted would be taken for a good one."""

    async def story(limited):
        limited.skipped_seconds = 10.0
        limited.read_answer()
        with pytest.raises(TimeoutError):
            await limited.task
        assert limited.cuts == 1

    run(story)
