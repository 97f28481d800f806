"""
Every order in which small stories can happen to the core: nothing is lost, swallowed, kept waiting or left behind.

Enumerated, not sampled: those of all orders that depart from a real loop's at most as often as the scenario says, and
all there are where it does not. `PYTHONPATH=tests python -m interleavings --departures 6` goes further.
"""

from __future__ import annotations

import pytest

from interleavings.explore import explore, replay
from interleavings.scenarios import SCENARIOS
from interleavings.stage import Violation
from loopaware_pool._core.runner import ShardRunner
from loopaware_pool._core.shard import Shard
from loopaware_pool._core.slot import SlotState
from loopaware_pool._platform.event_loops import Errands, is_idle, post

pytestmark = pytest.mark.both_pythons

by_name = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_in_every_order(scenario, record_property):
    """Whatever the order, permits balance, callers are served or told, and closing leaves nothing."""
    record_property("interleavings enumerated", explore(scenario).interleavings)


def test_a_replay_is_the_same_each_time():
    """The same choices lead to the same steps."""
    scenario = by_name["close with one caller who connects"]

    def kinds(trace):
        return [line.split(" at 0x")[0] for line in trace]

    assert kinds(replay(scenario, (1, 0, 2, 1))) == kinds(replay(scenario, (1, 0, 2, 1)))
    assert explore(scenario) == explore(scenario)


def keep_what_is_abandoned(monkeypatch):
    """A connection handed to a caller who is cancelled at that instant stays his."""
    monkeypatch.setattr(Shard, "abandon", lambda self, slot, now: None)


def forget_unstarted_tasks(monkeypatch):
    """A task that is cancelled before its first step leaves its slot as it is."""
    monkeypatch.setattr(ShardRunner, "_ended", lambda self, slot, task: self._tasks.pop(slot, None))


def serve_the_cancelled(monkeypatch):
    """A caller that has been handed a connection counts as cancelled, and his connection as idle."""

    def dequeue(self, waiter):
        self.waiters.pop(waiter, None)
        for slot in self.slots:
            if slot.state is SlotState.RESERVED:
                slot.state = SlotState.LENT

    monkeypatch.setattr(Shard, "dequeue", dequeue)


def do_errands_twice(monkeypatch):
    """What is done in the place of a loop that stands still is done by that loop as well, when it runs again."""

    def add(self, action):
        if not post(self._loop, action) or is_idle(self._loop):
            action()

    monkeypatch.setattr(Errands, "add", add)


def lose_errands(monkeypatch):
    """What was told to a loop that stops before it hears of it is left undone."""
    monkeypatch.setattr(Errands, "run_if_idle", lambda self: None)


def tell_at_once(monkeypatch):
    """A listener hears of a connection's end while the shard decides."""
    monkeypatch.setattr(ShardRunner, "report_gone", ShardRunner._report_gone)


def close_at_once(monkeypatch):
    """A connection is closed while the shard decides."""
    monkeypatch.setattr(ShardRunner, "begin_close", ShardRunner._close)


@pytest.mark.parametrize(
    ("defect", "scenario"),
    [
        (keep_what_is_abandoned, "a caller is cancelled"),
        (forget_unstarted_tasks, "everybody's tasks are cancelled, the pool's too"),
        (serve_the_cancelled, "a caller is cancelled twice"),
        (do_errands_twice, "two loops, one stands still"),
        (lose_errands, "a loop stops for long"),
        (tell_at_once, "a listener looks at everything"),
        (close_at_once, "the connection dies"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_defect_is_found(monkeypatch, defect, scenario):
    """The enumeration finds what other pools have done wrong, and says how to see it again."""
    defect(monkeypatch)
    with pytest.raises(Violation, match="replay it with"):
        explore(by_name[scenario])
