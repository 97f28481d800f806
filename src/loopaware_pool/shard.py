"""
What one loop's part of a pool decides. Plain and synchronous: `now` is an argument, I/O is the edge's business.

A shard is touched by its own loop only, so nothing here takes a lock. Its connections are in one place each:
`connecting` and `closing` hold those, `idle` is a stack (the warmest on top, so that the rest can expire), and the
others are with a caller or a task. Callers wait in `waiters`, first come, first served, and a connection that
comes free is put into the first one's hands: a running task cannot take it in between.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from loopaware_pool.driver import Liveness, ReturnCheck
from loopaware_pool.growth import STEP_SECONDS, FloorPace, Ramp
from loopaware_pool.slot import Slot, SlotEvent, SlotState
from loopaware_pool.stats import Counters, LoopStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool.budget import Budget, Claimant
    from loopaware_pool.config import PoolConfig
    from loopaware_pool.driver import Session

__all__ = ["Edge", "Expiry", "Phase", "Shard", "Waiter", "Waiting"]

NEVER: Final = float("inf")

# A floor is kept only if its dead are noticed.
DEAD_CHECK_SECONDS: Final = 1.0
# The longest an idle connection's reset may stay unanswered.
RESET_ANSWER_SECONDS: Final = 30.0


class Phase(Enum):
    """What callers may expect."""

    OPEN = "open"
    SUSPENDED = "suspended"
    CLOSED = "closed"


class Expiry:
    """Which connections are too old: those opened under an earlier generation. One per pool, written by it alone."""

    __slots__ = ("generation",)

    def __init__(self) -> None:
        self.generation = 0


class Waiter(Protocol):
    """A caller in the queue: a future of its loop."""

    def done(self) -> bool:
        """Whether it has been served, told off or cancelled."""

    def set_result(self, slot: Slot, /) -> object:
        """Serve it."""

    def set_exception(self, error: BaseException, /) -> object:
        """Tell it off."""


class Waiting(NamedTuple):
    """Since when a caller waits (monotonic seconds), and whether it has a deadline of its own."""

    since: float
    has_deadline: bool


class Edge(Protocol):
    """What a shard has done for it, on its loop."""

    def open(self, slot: Slot) -> None:
        """Connect; then call `connected` or `connect_failed`."""

    def reset(self, slot: Slot) -> None:
        """Reset the session; then call `serviced` or `broke`."""

    def ping(self, slot: Slot) -> None:
        """Make a round trip; then call `serviced` or `broke`."""

    def read(self, slot: Slot) -> None:
        """Let the driver read what arrived; then call `serviced` or `broke`."""

    def close(self, slot: Slot, *, politely: bool) -> None:
        """Close the connection; then call `closed`."""

    def park(self, slot: Slot) -> None:
        """Take the fd out of the selector before the loop polls, if the slot is idle then."""

    def wake_at(self, due: float) -> None:
        """Call `sweep` at *due* (monotonic seconds), or earlier."""

    def tell(self, claimant: Claimant) -> None:
        """Call `granted` of another loop's shard, on its loop."""

    def ask(self, donor: Claimant) -> None:
        """Call `asked` of another loop's shard, on its loop."""

    def floor_not_restored(self, error: BaseException) -> None:
        """Report that a connect for `min_size` failed and will be tried again."""

    def opened(self, slot: Slot, seconds: float) -> None:
        """Report a connection."""

    def connect_failed(self, slot: Slot, error: BaseException) -> None:
        """Report that there is none."""

    def overdue(self, slot: Slot) -> None:
        """Report a lease that is longer than `leak_threshold`."""

    def gone(self, slot: Slot, reason: str) -> None:
        """Report that a connection left the pool."""


class Shard:
    """
    One loop's share of a pool.

    Args:
        config: The pool's settings.
        budget: The pool's permits.
        expiry: The pool's generation.
        edge: Does what is decided here.
        pool_size: Counts the pool's connections on all loops, connecting ones included.
        jitter: Draws a number between 0 and 1, for lifetimes.
    """

    def __init__(
        self,
        config: PoolConfig,
        budget: Budget,
        expiry: Expiry,
        edge: Edge,
        pool_size: Callable[[], int],
        jitter: Callable[[], float],
    ) -> None:
        self.phase = Phase.OPEN
        self.idle: list[Slot] = []
        self.slots: set[Slot] = set()
        self.connecting: set[Slot] = set()
        self.closing: set[Slot] = set()
        self.waiters: OrderedDict[Waiter, Waiting] = OrderedDict()
        self.counters = Counters()
        self.last_error: BaseException | None = None
        self.keeps_floor = False
        self._config = config
        self._budget = budget
        self._expiry = expiry
        self._edge = edge
        self._pool_size = pool_size
        self._jitter = jitter
        self._due = NEVER
        self._ramp = Ramp(config.max_connecting or config.max_size)
        self._floor_pace = FloorPace()
        self.restoring: set[Slot] = set()
        self._idle_look = min(config.max_idle or NEVER, config.keepalive or NEVER, RESET_ANSWER_SECONDS)
        self._lease_look = config.leak_threshold if config.leak_threshold is not None else NEVER
        self._reasons: dict[Slot, str] = {}

    # ---- lending ----

    def take(self, now: float) -> Slot | None:
        """Lend an idle connection at once. None if there is none, or others wait for one."""
        if self.waiters or self.phase is not Phase.OPEN:
            return None
        while self.idle:
            slot = self.idle.pop()
            if self._is_current(slot, now) and self._is_alive(slot):
                slot.move(SlotEvent.TAKEN)
                self._lend(slot, now)
                return slot
        return None

    def enqueue(self, waiter: Waiter, now: float, *, has_deadline: bool) -> None:
        """Queue a caller, and grow if that helps."""
        self.waiters[waiter] = Waiting(now, has_deadline)
        self.grow(now)

    def claim(self, slot: Slot, waited: float, now: float) -> None:
        """Begin the lease of a caller that was handed *slot* and has woken."""
        slot.move(SlotEvent.CLAIMED)
        self.counters.waited += 1
        self.counters.waited_seconds += waited
        self._lend(slot, now)

    def abandon(self, slot: Slot, now: float) -> None:
        """Take *slot* back from a caller that was handed it and cannot use it: it was cancelled, or is too late."""
        if slot.state is SlotState.RESERVED:
            slot.move(SlotEvent.ABANDONED)
            self._give(slot, now)

    def leave(self, waiter: Waiter) -> None:
        """Take a caller out of the queue."""
        self.waiters.pop(waiter, None)
        if not self.waiters:
            self._demand_ended()

    def _lend(self, slot: Slot, now: float) -> None:
        slot.since = now
        self.counters.acquired += 1
        if self._lease_look is not NEVER:
            slot.reported = False
            self._wake_by(now + self._lease_look)

    def _is_current(self, slot: Slot, now: float) -> bool:
        """Whether an idle connection is young enough; if not, it is closed."""
        if slot.generation != self._expiry.generation:
            self._retire(slot, "expired")
        elif now >= slot.expires_at:
            self._retire(slot, "max_lifetime")
        else:
            return True
        return False

    def _is_alive(self, slot: Slot) -> bool:
        """Whether the server is still there, as far as can be known at once; if not, *slot* is sent on its way."""
        liveness = _session(slot).liveness()
        if liveness is Liveness.UNREAD:
            slot.move(SlotEvent.RESET_STARTED)
            self._edge.read(slot)
        elif liveness is Liveness.DEAD:
            self._found_dead(slot)
            self._drop_dead()
        return liveness is Liveness.ALIVE

    # ---- taking back ----

    def returned(self, slot: Slot, check: ReturnCheck, now: float) -> None:
        """Take a connection back from its caller."""
        slot.holder = slot.code = None
        if check is ReturnCheck.READY:
            slot.move(SlotEvent.RETURNED)
            self._give(slot, now)
        elif check is ReturnCheck.RESET:
            slot.move(SlotEvent.RESET_STARTED)
            self._edge.reset(slot)
        else:
            self._retire(slot, check.value, politely=check is ReturnCheck.WORN_OUT)

    def serviced(self, slot: Slot, now: float) -> None:
        """Take back a connection that a task has reset, pinged or read from."""
        if slot.state is SlotState.RESETTING:
            slot.move(SlotEvent.RESET_FINISHED)
            self._give(slot, now)

    def broke(self, slot: Slot, reason: str) -> None:
        """Give up a connection that is of no use any more, whoever has it."""
        if slot.state in (SlotState.CLOSING, SlotState.GONE, SlotState.CONNECTING):
            return
        if slot.state is SlotState.IDLE and slot in self.idle:
            self.idle.remove(slot)
        self._retire(slot, reason, politely=False)

    def _give(self, slot: Slot, now: float) -> None:
        """Put an idle connection to use: into the first waiter's hands, or on the stack."""
        if self.phase is Phase.CLOSED:
            self._retire(slot, "pool closed")
        elif self._must_yield(now):
            self._retire(slot, "given to another loop")
        elif self._is_current(slot, now) and not self._hand_on(slot, now):
            slot.since = now
            self.idle.append(slot)
            self._edge.park(slot)
            self._wake_by(now + self._idle_look)
            if self._budget.has_claims:
                self.asked(now)

    def _hand_on(self, slot: Slot, now: float) -> bool:
        """Give a connection that came free to the first waiter. False if nobody waits, or may be served."""
        if self.phase is Phase.SUSPENDED:
            return False
        while self.waiters:
            if not self._is_alive(slot):
                return True
            waiter, _ = self.waiters.popitem(last=False)
            if not waiter.done():
                slot.move(SlotEvent.RESERVED)
                waiter.set_result(slot)
                return True
        self._demand_ended()
        return False

    def _must_yield(self, now: float) -> bool:
        """Whether another loop's callers have been patient enough for these here to stand back once."""
        return (
            self._budget.has_claims
            and bool(self.waiters)
            and self._budget.should_yield(self, now, donor_has_waiters=True)
        )

    # ---- growing ----

    def open_one(self, now: float) -> Slot | None:
        """Start a connect, if a permit is free."""
        return self._start_connect(now) if self._budget.take(self) else None

    def grow(self, now: float) -> None:
        """Start as many connects as the waiting callers justify, and the ramp, the ceiling and the budget allow."""
        if self.phase is not Phase.OPEN:
            return
        wanted = len(self.waiters) - len(self.connecting)
        if wanted <= 0:
            return
        if now < self._ramp.probe_at:
            self._wake_by(self._ramp.probe_at)
            return
        for _ in range(min(wanted, self._ramp.allowance(now) - len(self.connecting))):
            if not self._budget.take_or_claim(self, next(iter(self.waiters.values())).since):
                self._look_for_donor(now)
                return
            self._start_connect(now)
        if len(self.waiters) > len(self.connecting):
            self._wake_by(now + STEP_SECONDS)

    def granted(self, now: float) -> None:
        """Use, or return, a permit that another loop gave up for this one's claim."""
        if self.phase is Phase.OPEN and len(self.waiters) > len(self.connecting) and now >= self._ramp.probe_at:
            self._start_connect(now)
            self.grow(now)
        else:
            self._return_permit()

    def asked(self, now: float) -> None:
        """Close an idle connection if another loop is to have its permit."""
        if self.idle and self._budget.should_yield(self, now, donor_has_waiters=False):
            self._retire(self.idle.pop(0), "given to another loop")

    def connected(self, slot: Slot, session: Session, now: float) -> None:
        """Welcome a connection."""
        self.connecting.discard(slot)
        if slot in self.restoring:
            self.restoring.discard(slot)
            self._floor_pace.connected()
        self.last_error = None
        self._ramp.connected()
        self.counters.opened += 1
        slot.session = session
        slot.move(SlotEvent.CONNECTED)
        if self._config.max_lifetime:
            slot.expires_at = now + self._config.max_lifetime * (1 - self._config.lifetime_jitter * self._jitter())
        self._edge.opened(slot, now - slot.opened_at)
        self._give(slot, now)

    def connect_failed(self, slot: Slot, error: BaseException, now: float, *, is_final: bool) -> None:
        """
        Note that a connect failed, and tell those callers that have nothing else to hope for.

        A caller with a deadline waits on, until then: the next attempt may succeed. *is_final* says that it will not,
        as a callback of the user's is at fault; then the first in the queue hears of it.
        """
        slot.move(SlotEvent.CONNECT_FAILED)
        self.connecting.discard(slot)
        self.slots.discard(slot)
        self.counters.connect_failures += 1
        self._edge.connect_failed(slot, error)
        if not is_final:
            self.last_error = error
            self._ramp.refused(now)
        self._tell_off(error, is_final=is_final)
        if slot in self.restoring:
            self.restoring.discard(slot)
            self._floor_pace.failed(now)
            self._wake_by(self._floor_pace.retry_at)
            if self.phase is Phase.OPEN:
                self._edge.floor_not_restored(error)
        self._return_permit()
        self.grow(now)

    def connect_cancelled(self, slot: Slot, now: float) -> None:
        """Note that somebody ended the connect's task; callers that still wait get another."""
        slot.move(SlotEvent.CONNECT_FAILED)
        self.connecting.discard(slot)
        self.restoring.discard(slot)
        self.slots.discard(slot)
        self._return_permit()
        self.grow(now)

    def _start_connect(self, now: float) -> Slot:
        slot = Slot(self._expiry.generation, now)
        self.slots.add(slot)
        self.connecting.add(slot)
        self._edge.open(slot)
        return slot

    def _demand_ended(self) -> None:
        self._ramp.demand_ended()
        if self._budget.has_claims:
            self._budget.drop_claim(self)

    def _look_for_donor(self, now: float) -> None:
        donor = self._budget.donor_for(self, now)
        if donor is not None:
            self._edge.ask(donor)
        elif self._budget.has_claims:
            self._wake_by(now + self._config.patience)

    def _tell_off(self, error: BaseException, *, is_final: bool) -> None:
        hopeless = self.size == 0 and not is_final
        for waiter, waiting in list(self.waiters.items()):
            if waiter.done() or (waiting.has_deadline and not is_final):
                continue
            del self.waiters[waiter]
            waiter.set_exception(error)
            if not hopeless:
                break
        if not self.waiters:
            self._demand_ended()

    # ---- closing ----

    def retire(self, slot: Slot, reason: str, *, politely: bool = True) -> None:
        """Close a connection that a caller has, or just had."""
        if slot.state not in (SlotState.CLOSING, SlotState.GONE):
            self._retire(slot, reason, politely=politely)

    def closed(self, slot: Slot, now: float) -> None:
        """Let go of a connection whose socket is gone."""
        if slot.state is SlotState.GONE:
            return
        slot.move(SlotEvent.CLOSED)
        self.closing.discard(slot)
        self.slots.discard(slot)
        self.counters.closed += 1
        self._edge.gone(slot, self._reasons.pop(slot, ""))
        self._return_permit()
        self.grow(now)
        self.restore_floor(now)

    def fail_waiters(self, error: Callable[[], BaseException]) -> None:
        """Tell every waiting caller that it will not be served."""
        while self.waiters:
            waiter, _ = self.waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(error())
        self._demand_ended()

    def shut(self) -> None:
        """Serve nobody any more, and close what is idle."""
        self.phase = Phase.CLOSED
        while self.idle:
            self._retire(self.idle.pop(), "pool closed")

    def resume(self, now: float) -> None:
        """Serve those who waited during a suspension."""
        if self.phase is Phase.SUSPENDED:
            self.phase = Phase.OPEN
            for slot in self.idle[::-1]:
                if not self.waiters:
                    return
                self.idle.remove(slot)
                self._give(slot, now)
            self.grow(now)

    def _retire(self, slot: Slot, reason: str, *, politely: bool = True) -> None:
        slot.move(SlotEvent.CLOSE_STARTED)
        self.closing.add(slot)
        self._reasons[slot] = reason
        self._edge.close(slot, politely=politely)

    def _found_dead(self, slot: Slot) -> None:
        self.counters.found_dead += 1
        self._retire(slot, "closed by the server", politely=False)

    def _drop_dead(self) -> None:
        """Discard every idle connection that is dead: where there is one, there are more."""
        for slot in self.idle[:]:
            if _session(slot).liveness() is Liveness.DEAD:
                self.idle.remove(slot)
                self._found_dead(slot)

    def _return_permit(self) -> None:
        claimant = self._budget.give_back(self)
        if claimant is not None:
            self._edge.tell(claimant)

    # ---- keeping ----

    def sweep(self, now: float) -> None:
        """Do what has become due, and say when to come again."""
        self._due = NEVER
        if self.phase is Phase.CLOSED:
            return
        self._sweep_idle(now)
        self._report_leases(now)
        self.restore_floor(now)
        self.grow(now)
        if self._floor_is_kept():
            self._wake_by(now + DEAD_CHECK_SECONDS)

    def keep_floor(self, now: float) -> None:
        """Look after `min_size` from now on."""
        self.keeps_floor = True
        self.restore_floor(now)

    def restore_floor(self, now: float) -> None:
        """Open what `min_size` lacks, on a loop that has opened the pool."""
        if self.phase is Phase.CLOSED or not self._floor_is_kept():
            return
        self._wake_by(now + DEAD_CHECK_SECONDS)
        missing = self._config.min_size - self._pool_size()
        if missing > 0 and now < self._floor_pace.retry_at:
            self._wake_by(self._floor_pace.retry_at)
            return
        for _ in range(missing):
            slot = self.open_one(now)
            if slot is None:
                return
            self.restoring.add(slot)

    def _floor_is_kept(self) -> bool:
        return self.keeps_floor and self._config.min_size > 0

    def _sweep_idle(self, now: float) -> None:
        """Close the idle that are dead, too old, or idle for too long; ping the others; oldest first."""
        self._drop_dead()
        for slot in self.idle[:]:
            reason = self._reason_to_close(slot, now)
            if reason:
                self.idle.remove(slot)
                self._retire(slot, reason, politely=_session(slot).is_settled)
            elif self._config.keepalive and now - slot.since >= self._config.keepalive:
                self.idle.remove(slot)
                slot.move(SlotEvent.RESET_STARTED)
                self._edge.ping(slot)
            else:
                self._wake_by(self._next_look(slot))

    def _reason_to_close(self, slot: Slot, now: float) -> str:
        """Say why an idle connection is to be closed; empty if it is not."""
        if slot.generation != self._expiry.generation:
            return "expired"
        if now >= slot.expires_at:
            return "max_lifetime"
        if now - slot.since >= (self._config.max_idle or NEVER) and self._pool_size() > self._config.min_size:
            return "idle"
        if now - slot.since >= RESET_ANSWER_SECONDS and not _session(slot).is_settled:
            return "reset not answered"
        return ""

    def _next_look(self, slot: Slot) -> float:
        """When an idle connection that stays is to be looked at again."""
        due = slot.expires_at
        if self._config.keepalive:
            due = min(due, slot.since + self._config.keepalive)
        if self._config.max_idle and self._pool_size() > self._config.min_size:
            due = min(due, slot.since + self._config.max_idle)
        if not _session(slot).is_settled:
            due = min(due, slot.since + RESET_ANSWER_SECONDS)
        return due

    def _report_leases(self, now: float) -> None:
        if self._lease_look is NEVER:
            return
        for slot in self.slots:
            if slot.state is SlotState.LENT and not slot.reported:
                if now - slot.since >= self._lease_look:
                    slot.reported = True
                    self._edge.overdue(slot)
                else:
                    self._wake_by(slot.since + self._lease_look)

    def _wake_by(self, due: float) -> None:
        if due < self._due:
            self._due = due
            self._edge.wake_at(due)

    # ---- counting ----

    @property
    def size(self) -> int:
        """Live connections: neither connecting nor closing."""
        return len(self.slots) - len(self.connecting) - len(self.closing)

    @property
    def spare(self) -> int:
        """Idle connections that nobody here waits for."""
        return len(self.idle) if not self.waiters else 0

    def count(self, *states: SlotState) -> int:
        """Count the slots in any of *states*."""
        return sum(slot.state in states for slot in list(self.slots))

    def stats(self, label: str) -> LoopStats:
        """Count everything, for a loop called *label*."""
        return LoopStats(
            loop=label,
            connecting=len(self.connecting),
            idle=len(self.idle),
            lent=self.count(SlotState.LENT, SlotState.RESERVED),
            resetting=self.count(SlotState.RESETTING),
            closing=len(self.closing),
            waiting=len(self.waiters),
            counters=_copy(self.counters),
        )


def _session(slot: Slot) -> Session:
    """The session of a slot that is past connecting."""
    session = slot.session
    if session is None:
        raise RuntimeError(f"{slot!r} has no session")
    return session


def _copy(counters: Counters) -> Counters:
    fields: dict[str, Any] = {name: getattr(counters, name) for name in Counters.__slots__}
    return Counters(**fields)
