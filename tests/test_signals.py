"""A signal handler, or the collector, comes between any two lines of the pool's own, and uses the same pool."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from loopaware_pool import pool as pool_module
from loopaware_pool.config import PoolConfig
from loopaware_pool.driver import ReturnCheck
from loopaware_pool.errors import PoolClosed
from loopaware_pool.pool import Core
from loopaware_pool.testing import FakeDriver

pytestmark = pytest.mark.both_pythons

DEADLINE_SECONDS = 20.0


class Interruption:
    """
    Calls a function before lines of the pool's own.

    Args:
        action: The function.
        at: Before which line, counted from 0; None for all.
    """

    def __init__(self, action, at=None):
        self.lines = 0
        self._action = action
        self._at = at
        # CPython 3.11 calls a frame's trace function without holding on to it: a bound method made for one call is
        # freed in the middle of it, and the frame finds another object in its place.
        self._on_call, self._on_line = self._enter, self._line

    def __enter__(self):
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *exc):
        sys.settrace(None)

    def _enter(self, frame, event, arg):
        name = frame.f_globals.get("__name__", "")
        is_ours = name.startswith("loopaware_pool.") and "testing" not in name
        return self._on_line if is_ours else None

    def _line(self, frame, event, arg):
        if event == "line":
            if self._at in (None, self.lines):
                sys.settrace(None)
                try:
                    self._action()
                finally:
                    sys.settrace(self._on_call)
            self.lines += 1
        return self._on_line


class Story:
    """Three callers on two connections, on a loop of their own in a thread of their own."""

    def __init__(self, loop_factory):
        self.driver = FakeDriver()
        self.core = Core(PoolConfig(name="interrupted", min_size=0, init_size=0, max_size=2), self.driver, face=self)
        self.complaints = []
        self.outcomes = None
        self._loop_factory = loop_factory

    def drop_a_lease(self):
        """Let go of a connection that is lent, as a caller's task does that is collected."""
        lent = next((slot for slot in self.core.slots() if slot.is_lent()), None)
        if lent is not None:
            lent.session.owner.dropped()

    def tell(self, interruption):
        """Let it happen."""
        thread = threading.Thread(target=self._run, args=(interruption,), daemon=True)
        thread.start()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), "it hangs"
        assert self.complaints == []

    def _run(self, interruption):
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.get_loop().set_exception_handler(lambda loop, context: self.complaints.append(context))
            self.outcomes = runner.run(self._main(interruption))

    async def _main(self, interruption):
        with interruption:
            self.core.start()
            leases = (self._lease(check) for check in (ReturnCheck.READY, ReturnCheck.WORN_OUT, ReturnCheck.READY))
            return await asyncio.gather(*leases, return_exceptions=True)

    async def _lease(self, check):
        core = self.core
        keeper = core.keeper()
        slot = keeper.shard.take(pool_module.monotonic())
        if slot is None:
            slot = await core.queue.wait(keeper, DEADLINE_SECONDS)
        await asyncio.sleep(0)
        if slot.is_lent():
            keeper.shard.returned(slot, check, pool_module.monotonic())
            keeper.act()


def test_who_looks_at_the_pool_waits_for_nobody(loop_factory):
    """Statistics and reports, asked for before each line, hang nothing, and count each connection once."""
    story = Story(loop_factory)
    core = story.core

    def look():
        stats = core.stats()
        assert 0 <= stats.size + stats.connecting <= 2
        core.size(), core.live_size(), core.slots(), core.fd_report(), core.budget.in_use

    interruption = Interruption(look)
    story.tell(interruption)
    assert interruption.lines > 100
    assert story.outcomes == [None] * 3
    assert core.stats().totals.acquired == 3


def test_a_pool_that_is_terminated_before_any_line_ends_in_peace(loop_factory):
    """Callers are served or told so, and nothing stays open."""
    lines = Interruption(lambda: None)
    stories = [Story(loop_factory)]
    stories[0].tell(lines)
    for at in range(lines.lines):
        story = Story(loop_factory)
        stories.append(story)  # whatever the collector did with it would be among the lines of the next
        story.tell(Interruption(story.core.terminate, at))
        assert all(outcome is None or isinstance(outcome, PoolClosed) for outcome in story.outcomes), story.outcomes
        assert story.core.budget.in_use == 0
        assert all(any(call in ("abort", "discard") for call in each.calls) for each in story.driver.sessions)


def test_a_lease_that_is_dropped_before_any_line_costs_one_connection(loop_factory):
    """The collector calls the pool in the middle of a decision; that decision ends first, and callers are served."""
    lines = Interruption(lambda: None)
    stories = [Story(loop_factory)]
    stories[0].tell(lines)
    for at in range(lines.lines):
        story = Story(loop_factory)
        stories.append(story)  # see above
        story.tell(Interruption(story.drop_a_lease, at))
        assert story.outcomes == [None] * 3
        assert story.core.budget.in_use == 0
        assert all(any(call in ("abort", "discard") for call in each.calls) for each in story.driver.sessions)
