"""
What time does to a shard: idle connections age, leases become overdue or are dropped, the floor wears away.

There is one timer per loop. A release sets it only if it is set for later, so in steady use nobody touches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loopaware_pool._core.config import IdleOrder
from loopaware_pool._core.connect_pacing import STEP_SECONDS, FloorPace
from loopaware_pool._core.slot import Slot, SlotState

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool._core.config import PoolConfig
    from loopaware_pool._core.connect_pacing import Ramp
    from loopaware_pool._core.interfaces import Edge
    from loopaware_pool._core.shard import Shard
    from loopaware_pool._core.terms import Terms

__all__ = ["RESET_ANSWER_SECONDS", "Upkeep", "answer_limit"]

NEVER: Final = float("inf")
# A floor is kept only if its dead are noticed.
DEAD_CHECK_SECONDS: Final = 1.0
# The age below which no idle connection is closed for its age: a floor would else be replaced as fast as it connects.
LEAST_AGE_SECONDS: Final = 0.1
# Shorter than this no `max_idle` is a period to look at again and again; what is idle for so long is just closed.
LEAST_PERIOD_SECONDS: Final = 0.01
# The longest an idle connection's reset may stay unanswered.
RESET_ANSWER_SECONDS: Final = 30.0
# The same, where the caller gave less: nobody waits for it, and a connect would take as long.
LEAST_ANSWER_SECONDS: Final = 1.0
# How often leases are looked at that may have been dropped, while somebody waits for want of a connection.
DROPPED_LOOK_SECONDS: Final = 1.0


def answer_limit(seconds: float | None) -> float:
    """Tell how long a reset's answer may take, in seconds, where the caller has said *seconds*, or nothing: None."""
    return RESET_ANSWER_SECONDS if seconds is None else min(max(seconds, LEAST_ANSWER_SECONDS), RESET_ANSWER_SECONDS)


class Upkeep:
    """
    Looks after one shard.

    Args:
        shard: The shard.
        config: The pool's settings.
        terms: The pool's generation and floor.
        edge: Does what is decided here.
        ramp: Paces the connects for the floor.
        pool_size: Counts the pool's connections on all loops, connecting ones included.

    Attributes:
        restoring: The connects that are for the floor.
        look_at: When leases may be looked at again for such as were dropped, monotonic seconds.
        ramp: As given.
    """

    def __init__(
        self, shard: Shard, config: PoolConfig, terms: Terms, edge: Edge, *, ramp: Ramp, pool_size: Callable[[], int]
    ) -> None:
        self.restoring: set[Slot] = set()
        self.look_at = 0.0
        self.ramp = ramp
        self._shard = shard
        self._config = config
        self._terms = terms
        self._edge = edge
        self._pool_size = pool_size
        self._floor_pace = FloorPace()
        self._shrinks_in_periods = _shrinks_in_periods(config)
        self._shrink_at = NEVER

    def sweep(self, now: float) -> None:
        """Do what has become due, and say when to come again. Of a pool that is closed only leases are left."""
        self.reclaim_dropped()
        self._give_up_unanswered(now)
        if not self._shard.is_open():
            if self._shard.slots:
                self._shard.wake_by(now + DROPPED_LOOK_SECONDS)
            return
        if now < self.look_at:
            self._shard.wake_by(self.look_at)
        self._sweep_idle(now)
        if self._shrinks_in_periods:
            self._shrink(now)
        self._report_leases(now)
        self.restore_floor(now)

    def reconfigured(self, config: PoolConfig) -> None:
        """Go by other settings; another `max_idle` begins a period of its own."""
        if config.max_idle != self._config.max_idle:
            self._shrinks_in_periods = _shrinks_in_periods(config)
            self._shrink_at = NEVER
        self._config = config

    def look_for_dropped(self, now: float) -> None:
        """Look, on every loop, for leases that were dropped: a caller waits for want of a connection."""
        self.look_at = now + DROPPED_LOOK_SECONDS
        self._shard.wake_by(self.look_at)
        self._edge.look_for_dropped()

    def reclaim_dropped(self) -> None:
        """Close the connections of leases that were dropped."""
        for slot in list(self._shard.slots):
            if slot.state is SlotState.LENT and slot.session.is_dropped():
                self.dropped(slot)

    def dropped(self, slot: Slot) -> None:
        """Close a connection that its holder has let go of: its session is unknown, a query may still run."""
        if slot.state is SlotState.LENT:
            self._shard.counters.dropped += 1
            self._edge.dropped(slot)
            self._shard.broke(slot, "dropped by its holder")

    def _give_up_unanswered(self, now: float) -> None:
        """Close connections whose reset the server has not answered in time."""
        for slot, due in list(self._shard.unanswered.items()):
            if now < due:
                self._shard.wake_by(due)
            else:
                self._shard.broke(slot, "reset not answered")

    def connected(self, slot: Slot, now: float) -> None:
        """Note that a connect ended well; if it was for the floor, look soon for what that lacks still."""
        if slot in self.restoring:
            self.restoring.discard(slot)
            if self._pool_size() < self._terms.min_size:
                self._shard.wake_by(now + STEP_SECONDS)
        self._floor_pace.connected()
        self.ramp.connected()

    def connect_failed(self, slot: Slot, error: BaseException, now: float) -> None:
        """Note that a connect failed; if it was for the floor, another is made later."""
        if slot in self.restoring:
            self.restoring.discard(slot)
            self._floor_pace.failed(now)
            self.ramp.refused(now)
            self._shard.wake_by(self._floor_pace.retry_at)
            if self._shard.is_open():
                self._edge.floor_not_restored(error)

    def restore_floor(self, now: float) -> None:
        """Open what `min_size` lacks, on a loop that has opened the pool."""
        if not self._shard.is_open() or not self._floor_is_kept():
            return
        self._shard.wake_by(now + DEAD_CHECK_SECONDS)
        missing = self._terms.min_size - self._pool_size()
        if missing <= 0 or not self._edge.is_awake():
            self.ramp.demand_ended()
        elif now < self._floor_pace.retry_at:
            self._shard.wake_by(self._floor_pace.retry_at)
        else:
            self._open_for_floor(missing, now)

    def _open_for_floor(self, missing: int, now: float) -> None:
        """Open a few at once, and more every few milliseconds: all processes do that when a server comes back."""
        allowance = self.ramp.allowance(now)
        for _ in range(min(missing, allowance - len(self._shard.connecting))):
            slot = self._shard.open_one(now)
            if slot is None:
                return
            self.restoring.add(slot)
            missing -= 1
        if missing and allowance > 1:  # else the one under way is to end first
            self._shard.wake_by(now + STEP_SECONDS)

    def refill(self, now: float) -> None:
        """Open what the floor lacks, and at least one connection, whatever the pace of failing connects."""
        self._floor_pace.connected()
        self.restore_floor(now)
        if not self._shard.slots:
            self._shard.open_one(now)

    def ping_all(self) -> list[Slot]:
        """Make a round trip on each idle connection; list them."""
        slots = self._shard.idle[:]
        for slot in slots:
            self._shard.ping_idle(slot)
        return slots

    def _floor_is_kept(self) -> bool:
        return self._shard.keeps_floor and self._terms.min_size > 0

    def _sweep_idle(self, now: float) -> None:
        """Close the idle that are dead, too old, or idle for too long; ping the others; oldest first."""
        self._shard.drop_dead()
        for slot in self._shard.idle[:]:
            reason = self._reason_to_close(slot, now)
            if reason:
                self._shard.retire_idle(slot, reason, politely=slot.session.is_settled)
            elif self._config.keepalive and now - slot.since >= self._config.keepalive:
                self._shard.ping_idle(slot)
            else:
                self._shard.wake_by(self._next_look(slot))

    def _reason_to_close(self, slot: Slot, now: float) -> str:
        """Say why an idle connection is to be closed; empty if it is not."""
        if self._shard.is_outdated(slot):
            return "expired"
        if now >= self._expires_idle_at(slot):
            return "max_lifetime"
        if self._is_idle_too_long(now - slot.since):
            return "idle"
        if now - slot.since >= RESET_ANSWER_SECONDS and not slot.session.is_settled:
            return "reset not answered"
        return ""

    def _expires_idle_at(self, slot: Slot) -> float:
        return NEVER if self._config.lends_expired else max(slot.expires_at, slot.opened_at + LEAST_AGE_SECONDS)

    def _is_idle_too_long(self, idle_seconds: float) -> bool:
        limit = NEVER if self._shrinks_in_periods else self._config.max_idle
        return 0 < limit <= idle_seconds and self._pool_size() > self._terms.min_size

    def _shrink(self, now: float) -> None:
        """Close one idle connection if some have been spare ever since the last look, `max_idle` ago."""
        shard = self._shard
        if now >= self._shrink_at:
            if shard.least_idle and self._pool_size() > self._terms.min_size:
                shard.retire_idle(shard.idle[0], "idle")
            self._shrink_at = NEVER
        if self._shrink_at is NEVER and shard.slots:
            self._shrink_at = now + self._config.max_idle
            shard.least_idle = len(shard.idle)
        shard.wake_by(self._shrink_at)

    def _next_look(self, slot: Slot) -> float:
        """When an idle connection that stays is to be looked at again."""
        due = self._expires_idle_at(slot)
        if self._config.keepalive:
            due = min(due, slot.since + self._config.keepalive)
        if self._config.max_idle and not self._shrinks_in_periods and self._pool_size() > self._terms.min_size:
            due = min(due, slot.since + self._config.max_idle)
        if not slot.session.is_settled:
            due = min(due, slot.since + RESET_ANSWER_SECONDS)
        return due

    def _report_leases(self, now: float) -> None:
        threshold = self._config.leak_threshold
        if threshold is None:
            return
        for slot in self._shard.slots:
            if slot.state is SlotState.LENT and slot.reported is None:
                if now - slot.since >= threshold:
                    self._edge.overdue(slot)
                else:
                    self._shard.wake_by(slot.since + threshold)


def _shrinks_in_periods(config: PoolConfig) -> bool:
    """Whether what is idle is closed one at a time, for each `max_idle` in which it was not needed."""
    return config.idle_order is IdleOrder.FIFO and config.max_idle >= LEAST_PERIOD_SECONDS
