"""
What time does to a shard: idle connections age, and leases become overdue or are dropped.

There is one timer per loop. A release sets it only if it must fire earlier, so steady use never touches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic

from loopaware_pool._core.config import IdleOrder
from loopaware_pool._core.shard import DROPPED_LOOK_SECONDS, NEVER, RESET_ANSWER_SECONDS
from loopaware_pool._core.slot import Slot, SlotState
from loopaware_pool.driver import S

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool._core.interfaces import ShardEffects
    from loopaware_pool._core.shard import Shard
    from loopaware_pool._core.state import SharedState

__all__ = ["Housekeeper"]

# No younger idle connection is closed for its age: a pool that keeps `min_size` would else replace connections as fast
# as it can open them.
LEAST_AGE_SECONDS: Final = 0.1
# A shorter `max_idle` is no period to shrink by: connections idle for so long are just closed.
LEAST_PERIOD_SECONDS: Final = 0.01


class Housekeeper(Generic[S]):
    """
    Does the periodic work of one shard.

    Args:
        shard: The shard.
        shared: What the pool's loops share, its settings among it.
        effects: Does what is decided here.
        pool_size: Counts the pool's connections on all loops, connecting ones included.
    """

    def __init__(
        self,
        shard: Shard[S],
        shared: SharedState,
        effects: ShardEffects[S],
        *,
        pool_size: Callable[[], int],
    ) -> None:
        self._shard = shard
        self._shared = shared
        self._effects = effects
        self._pool_size = pool_size
        self._period_began = NEVER

    def sweep(self, now: float) -> None:
        """Do what has become due, and set the timer for the next time."""
        self._shard.woke()
        self.reclaim_dropped()
        self._give_up_unanswered(now)
        if self._shard.is_open:
            self._sweep_idle(now)
            if self._shrinks_in_periods():
                self._shrink(now)
            self._report_leases(now)
        elif self._shard.slots:  # a closed pool has only leases left
            self._shard.wake_by(now + DROPPED_LOOK_SECONDS)
        self._shard.catch_up(now)

    def reclaim_dropped(self) -> None:
        """Close the connections of leases that were dropped."""
        for slot in list(self._shard.slots):
            if slot.state is SlotState.LENT and slot.session.is_dropped():
                self.reclaim(slot)

    def reclaim(self, slot: Slot[S]) -> None:
        """
        Close a connection that its holder has dropped: its session is in an unknown state, and a query may still run.
        """
        if slot.state is SlotState.LENT:
            self._shard.counters.dropped += 1
            self._effects.report_dropped(slot)
            self._shard.discard(slot, "dropped by its holder")

    def _give_up_unanswered(self, now: float) -> None:
        """Close connections whose reset the server has not answered in time."""
        for slot, due in list(self._shard.unanswered.items()):
            if self._shard.look_whether_missing(slot, due, now):
                self._shard.discard(slot, "reset not answered")
                self._shard.suspect(now)

    def ping_all(self, now: float) -> list[Slot[S]]:
        """Make a round trip on each idle connection. Returns their slots."""
        slots = self._shard.idle[:]
        for slot in slots:
            self._shard.ping_idle(slot, now)
        return slots

    def _sweep_idle(self, now: float) -> None:
        """Close idle connections that are dead, too old, or idle for too long; ping the others; the oldest first."""
        self._shard.drop_dead()
        keepalive = self._shared.config.keepalive
        for slot in self._shard.idle[:]:
            reason = self._reason_to_close(slot, now)
            if reason:
                self._shard.retire_idle(slot, reason, politely=slot.session.is_settled)
            elif keepalive and now - slot.unheard_since >= keepalive:
                self._shard.ping_idle(slot, now)
            else:
                self._shard.wake_by(self._next_look(slot))

    def _reason_to_close(self, slot: Slot[S], now: float) -> str:
        """Return why an idle connection must be closed; an empty string if it must not."""
        if self._shard.is_outdated(slot):
            return "expired"
        if now >= self._expires_idle_at(slot):
            return "max_lifetime"
        if self._is_idle_too_long(now - slot.since):
            return "idle"
        if now - slot.since >= RESET_ANSWER_SECONDS and not slot.session.is_settled:
            return "reset not answered"
        return ""

    def _expires_idle_at(self, slot: Slot[S]) -> float:
        return NEVER if self._shared.config.lends_expired else max(slot.expires_at, slot.opened_at + LEAST_AGE_SECONDS)

    def _is_idle_too_long(self, idle_seconds: float) -> bool:
        limit = NEVER if self._shrinks_in_periods() else self._shared.config.max_idle
        return 0 < limit <= idle_seconds and self._has_surplus()

    def _has_surplus(self) -> bool:
        return self._pool_size() > self._shared.config.min_size

    def _shrinks_in_periods(self) -> bool:
        """
        Whether surplus idle connections are closed one at a time: one for each `max_idle` in which some were always
        spare.
        """
        config = self._shared.config
        return config.idle_order is IdleOrder.FIFO and config.max_idle >= LEAST_PERIOD_SECONDS

    def _shrink(self, now: float) -> None:
        """Close one idle connection if some have been spare for all of the last `max_idle` seconds."""
        shard, max_idle = self._shard, self._shared.config.max_idle
        if now >= self._period_began + max_idle:
            if shard.least_idle and shard.idle and self._has_surplus():  # those to spare may have died
                shard.retire_idle(shard.idle[0], "idle")
            self._period_began = NEVER
        if self._period_began is NEVER and shard.slots:
            self._period_began = now
            shard.least_idle = len(shard.idle)
        shard.wake_by(self._period_began + max_idle)

    def _next_look(self, slot: Slot[S]) -> float:
        """Return when to look again at an idle connection that stays."""
        config = self._shared.config
        due = self._expires_idle_at(slot)
        if config.keepalive:
            due = min(due, slot.unheard_since + config.keepalive)
        if config.max_idle and not self._shrinks_in_periods() and self._has_surplus():
            due = min(due, slot.since + config.max_idle)
        if not slot.session.is_settled:
            due = min(due, slot.since + RESET_ANSWER_SECONDS)
        return due

    def _report_leases(self, now: float) -> None:
        threshold = self._shared.config.leak_threshold
        if threshold is None:
            return
        for slot in self._shard.slots:
            if slot.state is SlotState.LENT and slot.reported is None:
                if now - slot.since >= threshold:
                    self._shard.counters.overdue += 1
                    self._effects.report_overdue(slot)
                else:
                    self._shard.wake_by(slot.since + threshold)
