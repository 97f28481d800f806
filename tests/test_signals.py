"""A signal handler, or the collector, comes between any two lines of the pool's own, and uses the same pool."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sys
import threading
from contextlib import closing

import pytest

from loopaware_pool._core import registry
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool._platform import event_loops
from loopaware_pool.driver import ReturnCheck
from loopaware_pool.errors import PoolClosed
from loopaware_pool.testing import FakeDriver

pytestmark = pytest.mark.both_pythons

DEADLINE_SECONDS = 20.0


class Interruption:
    """
    Calls a function before lines of the pool's own.

    Args:
        action: The function.
        at: Before which line, counted from 0; None for all; -1 for none, to count them.
        event: "line", or "opcode" for each instruction of them.
    """

    def __init__(self, action, at=None, event="line"):
        self.lines = 0
        self._action = action
        self._at = at
        self._event = event
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
        if is_ours and self._event == "opcode":
            frame.f_trace = self._on_line  # 3.13 would not hear of what follows
            frame.f_trace_opcodes = True
        return self._on_line if is_ours else None

    def _line(self, frame, event, arg):
        if event == self._event:
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
        self.core = PoolCore(
            PoolConfig(name="interrupted", min_size=0, init_size=0, max_size=2), self.driver, face=self
        )
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
        shard_runner = core.runner()
        slot = shard_runner.shard.take(registry.monotonic())
        if slot is None:
            slot = await core.queue.wait(shard_runner, DEADLINE_SECONDS)
        await asyncio.sleep(0)
        if slot.is_lent():
            shard_runner.shard.returned(slot, check, registry.monotonic())
            shard_runner.act()


def test_who_looks_at_the_pool_waits_for_nobody(loop_factory):
    """Statistics and reports, asked for before each line, hang nothing, and count each connection once."""
    story = Story(loop_factory)
    core = story.core

    def look():
        stats = core.stats()
        assert 0 <= stats.size + stats.connecting <= 2
        core.size(), core.live_size(), core.slots(), core.fd_report(), core.permits.in_use

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
        assert story.core.permits.in_use == 0
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
        assert story.core.permits.in_use == 0
        assert all(any(call in ("abort", "discard") for call in each.calls) for each in story.driver.sessions)


# ---- in the place of a loop that stands still ----


def begin_errand(errands, action):
    errands.add(action)


def begin_closing(errands, action):
    with errands.closing():
        action()


@pytest.fixture
def idle_loop(loop_factory):
    """A loop that stands still."""
    loop = loop_factory()
    yield loop
    loop.close()


@pytest.mark.parametrize("begin", [begin_errand, begin_closing])
def test_an_errand_that_comes_before_any_instruction_of_others_is_done_once_and_beside_none(idle_loop, begin):
    """Before what it has interrupted, or after it; and nothing of either is left."""

    def first():
        notes.append("begun")
        errands.run_if_idle()
        notes.append("ended")

    def second():
        errands.add(lambda: notes.append("second"))
        errands.run_if_idle()

    for at in itertools.count():
        errands, notes = event_loops.Errands(idle_loop), []
        with Interruption(second, at, "opcode") as interruption:
            begin(errands, first)
        if interruption.lines <= at:  # it had ended by then
            break
        assert not errands
        assert notes in (["second", "begun", "ended"], ["begun", "ended", "second"]), at
    assert at > 20


@pytest.mark.parametrize("begin", [begin_errand, begin_closing])
def test_another_thread_that_comes_before_any_instruction_acts_beside_nobody(idle_loop, begin):
    """It is waited for only by the thread that closes the loop; an errand is left to it."""

    def note(name):
        notes.append(name)
        if threading.current_thread() in threads:
            has_begun.set()
            is_waited_for.wait(0.01)
        notes.append(name)

    def come():
        thread = threading.Thread(target=errands.add, args=(lambda: note("second"),), daemon=True)
        threads.append(thread)
        thread.start()
        while thread.is_alive() and not has_begun.is_set():
            thread.join(0.001)

    for at in itertools.count():
        errands, notes, threads = event_loops.Errands(idle_loop), [], []
        has_begun, is_waited_for = threading.Event(), threading.Event()
        with Interruption(come, at, "opcode") as interruption:
            begin(errands, lambda: note("first"))
        if interruption.lines <= at:
            break
        is_waited_for.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        assert not errands
        assert notes in (["first"] * 2 + ["second"] * 2, ["second"] * 2 + ["first"] * 2), at
    assert at > 20


def test_a_loop_may_be_closed_by_what_is_done_in_its_place(idle_loop):
    """The thread that acts waits for others, not for itself; what comes meanwhile is done once that has ended."""

    def close():
        with errands.closing():
            errands.add(lambda: notes.append("after"))
        notes.append("closed")

    errands, notes = event_loops.Errands(idle_loop), []
    thread = threading.Thread(target=errands.add, args=(close,), daemon=True)
    thread.start()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive(), "it hangs"
    assert notes == ["closed", "after"]


class Standstill:
    """Two connections lent on a loop that stands still since, which somebody else gives back."""

    def __init__(self, loop):
        self.driver = FakeDriver()
        self.core = PoolCore(PoolConfig(name="still", min_size=0, init_size=0, max_size=2), self.driver, face=self)
        self.loop = loop
        loop.run_until_complete(self._lend())

    async def _lend(self):
        self.core.start()
        self.shard_runner = self.core.runner()
        self.slots = [await self.core.queue.wait(self.shard_runner, DEADLINE_SECONDS) for _ in range(2)]

    def give_back(self):
        for slot in self.slots:
            self.shard_runner.errands.add(functools.partial(self._return, slot))

    def _return(self, slot):
        if slot.is_lent():
            self.shard_runner.shard.returned(slot, ReturnCheck.STRANDED, registry.monotonic())
            self.shard_runner.act()


def give_back(story):
    """Its connections, from elsewhere."""
    story.give_back()


def close_loop(story):
    """It is closed with its connections."""
    story.loop.close()


def let_go(story):
    """Its connections are closed; who comes to the pool on another loop has the pool forget it."""
    story.give_back()
    story.core.runner()


def terminate(story):
    """From a signal handler."""
    story.core.terminate()


def give_back_from_another_thread(story):
    """Its connections."""
    thread = threading.Thread(target=story.give_back, daemon=True)
    thread.start()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive(), "it hangs"


def told(loop_factory, deed, interrupt, at):
    """What has become of it if it is interrupted before one line of the pool's own, and how many there were."""

    async def act():
        with Interruption(lambda: interrupt(story), at) as interruption:
            deed(story)
        return interruption.lines

    with closing(loop_factory()) as loop:
        story = Standstill(loop)
        with asyncio.Runner(loop_factory=loop_factory) as elsewhere:
            return story, elsewhere.run(act())


@pytest.mark.parametrize("interrupt", [terminate, give_back_from_another_thread])
@pytest.mark.parametrize("deed", [give_back, close_loop, let_go])
def test_what_comes_before_any_line_done_in_a_loops_place_upsets_nothing(loop_factory, deed, interrupt):
    """Each connection is closed once, and no permit is lost."""
    _, lines = told(loop_factory, deed, interrupt, -1)
    assert lines > 100
    for at in range(lines):
        story, _ = told(loop_factory, deed, interrupt, at)
        assert story.core.permits.in_use == 0
        assert [session.calls for session in story.driver.sessions] == [["discard"]] * 2
