"""What a shard sees of the world, without one: a clock that is a number, futures, and hands that only take notes."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque

from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.housekeeping import Housekeeper
from loopaware_pool._core.permits import Permits
from loopaware_pool._core.shard import Shard
from loopaware_pool._core.slot import SlotState
from loopaware_pool._core.state import SharedState
from loopaware_pool.driver import Liveness
from loopaware_pool.stats import LeaseInfo
from loopaware_pool.testing import FakeDriver, FakeSession

__all__ = ["NEVER", "FakeEffects", "FakeFuture", "FakePool"]

NEVER = float("inf")


class FakeFuture:
    """Done at most once: a second result is an error, as with real ones."""

    def __init__(self):
        self.outcome = None

    def done(self):
        return self.outcome is not None

    def set_result(self, slot):
        self._finish("result", slot)

    def set_exception(self, error):
        self._finish("exception", error)

    def cancel(self):
        """Whether it was not done yet."""
        if self.done():
            return False
        self._finish("cancelled", None)
        return True

    @property
    def cancelled(self):
        return self.outcome == ("cancelled", None)

    @property
    def result(self):
        """The slot it was served; None if it was not."""
        return self.outcome[1] if self.done() and self.outcome[0] == "result" else None

    @property
    def exception(self):
        """What it was told; None if nothing."""
        return self.outcome[1] if self.done() and self.outcome[0] == "exception" else None

    def _finish(self, kind, value):
        assert self.outcome is None, f"{kind} for a future that is done: {self.outcome}"
        self.outcome = (kind, value)


class FakeEffects:
    """
    Notes what a shard wants done; whoever runs it says when it is, and how it went.

    As the real one does, it closes without a goodbye as soon as the decision has been made, and tells of it then.
    """

    def __init__(self, pool):
        self.pool = pool
        self.errors = FakeDriver.errors
        self.shard = None
        self.decided = deque()
        self.is_acting = False
        self.depth = 0
        self.is_running = True
        self.opening = []
        self.resetting = []
        self.pinging = []
        self.reading = []
        self.closing = []
        self.parked = []
        self.wake = NEVER
        self.overdue_leases = []
        self.returned_leases = []
        self.dropped_leases = []
        self.reasons = []
        self.connect_times = []
        self.failures = []
        self.floor_failures = []

    def is_awake(self):
        return self.is_running

    def begin_connect(self, slot):
        self.pool.numbers[slot] = len(self.pool.numbers)
        self.opening.append(slot)

    def begin_reset(self, slot):
        self.resetting.append(slot)

    def begin_ping(self, slot):
        self.pinging.append(slot)

    def begin_read(self, slot):
        self.reading.append(slot)

    def begin_close(self, slot, *, politely):
        for work in (self.resetting, self.pinging, self.reading):
            if slot in work:
                work.remove(slot)
        if politely:
            self.closing.append(slot)
        else:
            self.decided.append(lambda: self.shard.closed(slot, self.pool.now))

    def cut_goodbye(self, slot):
        self.decided.append(lambda: self._break_off(slot))

    def _break_off(self, slot):
        if slot in self.closing:
            self.closing.remove(slot)
            self.shard.closed(slot, self.pool.now)

    def act(self):
        """Do what has been decided, and what that leads to."""
        if self.is_acting:
            return
        self.is_acting = True
        try:
            while self.decided:
                self.decided.popleft()()
        finally:
            self.is_acting = False

    def tell_listener(self, kind):
        self.decided.append(lambda: self.pool.on_event(self.shard, kind))

    def park_when_idle(self, slot):
        self.parked.append(slot)

    def wake_at(self, due):
        self.wake = due

    def tell_granted(self, claimant):
        self.pool.messages.append(("tell", claimant))

    def ask_for_permit(self, donor):
        self.pool.messages.append(("ask", donor))

    def run_errands_of_idle_loops(self):
        pass

    def reclaim_dropped_on_all_loops(self):
        for shard in self.pool.shards:
            self.decided.append(shard.housekeeper.reclaim_dropped)

    def report_dropped(self, slot):
        self.dropped_leases.append(slot)
        self.tell_listener("dropped")

    def report_floor_not_restored(self, error):
        self.floor_failures.append(error)

    def report_opened(self, slot, seconds):
        self.connect_times.append((slot, seconds))
        self.tell_listener("opened")

    def report_connect_failed(self, slot, error):
        self.failures.append((slot, error))
        self.tell_listener("connect failed")

    def report_overdue(self, slot):
        self.overdue_leases.append(slot)
        slot.reported = LeaseInfo(self.pool.now - slot.since, None, None)
        self.tell_listener("overdue")

    def report_late_return(self, slot, held_seconds):
        slot.reported = None
        self.returned_leases.append((slot, held_seconds))
        self.tell_listener("came back")

    def report_gone(self, slot, reason):
        self.reasons.append(reason)
        self.tell_listener("gone")


# What decides, of a shard and of its housekeeper.
DECISIONS = (
    *("take", "enqueue", "requeue", "claim", "abandon", "dequeue", "returned", "reset_answered", "serviced", "discard"),
    *(
        "open_one",
        "grow",
        "permit_granted",
        "permit_requested",
        "connected",
        "connect_failed",
        "connect_cancelled",
        "retire",
        "closed",
    ),
    *("shut", "resume", "refill", "restore_floor", "expired", "settings_changed", "keep_floor", "drop_dead"),
    *("suspect", "left_to_pool"),
)
HOUSEKEEPING = ("sweep", "reclaim_dropped", "reclaim", "ping_all")


def act_after(effects, decider, names):
    """Have *effects* act when a decision has been made, but not when one that is part of another has."""
    for name in names:
        setattr(decider, name, _acting_after(effects, getattr(decider, name)))


def _acting_after(effects, decide):
    @functools.wraps(decide)
    def decide_and_act(*args, **kwargs):
        effects.depth += 1
        try:
            return decide(*args, **kwargs)
        finally:
            effects.depth -= 1
            if not effects.depth:
                effects.act()

    return decide_and_act


class FakePool:
    """
    What shards share, and a hand that does what they have asked for.

    Attributes:
        now: The time, in seconds.
        draw: What every draw of the jitter gives.
        numbers: Every slot so far, numbered: a shard keeps its slots in a set, whose order is chance.
        messages: What loops have told and asked each other, not yet delivered.
        on_event: What listens, called with a shard and what has happened to it.
    """

    def __init__(self, **options):
        sizes = {"min_size": 0, "init_size": options.get("min_size", 0), "max_size": 4}
        self.shared = SharedState(PoolConfig(**{**sizes, **options}))
        self.permits = Permits(self.shared)
        self.now = 100.0
        self.draw = 0.0
        self.numbers = {}
        self.messages = []
        self.shards = []
        self.on_event = lambda shard, kind: None

    def shard(self):
        """Make another loop's shard."""
        effects = FakeEffects(self)
        shard = effects.shard = Shard(self.shared, self.permits, effects, pool_size=self.size, jitter=lambda: self.draw)
        shard.effects = effects
        shard.housekeeper = Housekeeper(shard, self.shared, effects, pool_size=self.size)
        act_after(effects, shard, DECISIONS)
        act_after(effects, shard.housekeeper, HOUSEKEEPING)
        self.shards.append(shard)
        return shard

    def size(self):
        return sum(shard.size + len(shard.connecting) for shard in self.shards)

    def reconfigure(self, **settings):
        """Go by other settings. Loops with a claim may get a permit each; those are returned."""
        self.shared.config = dataclasses.replace(self.shared.config, **settings)
        served = self.permits.serve_claims()
        for shard in self.shards:
            shard.settings_changed(self.now)
        return served

    def resume(self):
        """End a suspension, on every loop."""
        self.shared.is_suspended = False
        for shard in self.shards:
            shard.resume(self.now)

    # ---- what callers do ----

    def wait(self, shard, *, has_deadline=False):
        """Queue a caller; the future it waits for."""
        waiter = FakeFuture()
        shard.enqueue(waiter, self.now, has_deadline=has_deadline)
        return waiter

    def claim(self, shard, waiter):
        """Let a caller that was served run."""
        shard.claim(waiter.result, 0.0, self.now)
        return waiter.result

    # ---- what connections do ----

    def connect(self, shard, slot=None, life=Liveness.ALIVE, address=None):
        """End a connect well, the first one unless told otherwise."""
        slot = slot or shard.effects.opening[0]
        shard.effects.opening.remove(slot)
        session = FakeSession()
        session.life = life
        shard.connected(slot, session, self.now, address)
        return slot

    def refuse(self, shard, error=None, *, is_final=False):
        """End the first connect badly."""
        error = error or OSError("refused")
        shard.connect_failed(shard.effects.opening.pop(0), error, self.now, is_final=is_final)
        return error

    def closed(self, shard, slot=None):
        """End a polite close, the first one unless told otherwise."""
        slot = slot or shard.effects.closing[0]
        shard.effects.closing.remove(slot)
        shard.closed(slot, self.now)

    def with_idle(self, shard, count):
        """Give *shard* that many idle connections; the coldest first."""
        return [self._with_one_idle(shard) for _ in range(count)]

    def _with_one_idle(self, shard):
        slot = shard.open_one(self.now)
        assert slot is not None
        self.connect(shard, slot)
        return slot

    def lend(self, shard, count):
        """Lend that many connections that are opened for it."""
        self.with_idle(shard, count)
        slots = [shard.take(self.now) for _ in range(count)]
        assert all(slot.state is SlotState.LENT for slot in slots)
        return slots

    # ---- what time and threads do ----

    def run_for(self, seconds):
        """Let time pass, and every timer fire when it is due, as where no loop is blocked."""
        end = self.now + seconds
        while (due := min(shard.effects.wake for shard in self.shards)) < end:
            self._be_at(max(self.now, due))
        self._be_at(end)

    def pass_time(self, seconds):
        """Let time pass, and every timer that is due then fire once, as after a loop was blocked."""
        self._be_at(self.now + seconds)

    def _be_at(self, now):
        self.now = now
        for shard in self.shards:
            if shard.effects.wake <= self.now:
                shard.effects.wake = NEVER
                shard.housekeeper.sweep(self.now)

    def deliver(self):
        """Deliver what loops have told and asked each other, and what that leads to."""
        while self.messages:
            kind, shard = self.messages.pop(0)
            if kind == "tell":
                shard.permit_granted(self.now)
            else:
                shard.permit_requested(self.now)
