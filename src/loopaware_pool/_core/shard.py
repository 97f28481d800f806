"""
Decides for one loop's part of a pool. Plain and synchronous: `now` is an argument, and `ShardEffects` does all I/O.

A decision is never re-entered. It changes the shard's own state, and queues with `ShardEffects` what is to be done.
Closing a connection, telling another loop or calling a listener may call the shard again, which would then find itself
half changed. So the runner does what is queued after the decision is complete.

Only one thread at a time touches a shard: its loop's, or one that acts for a loop that is not running. So nothing here
takes a lock. Each connection is in one place: `connecting` and `closing` hold connections that are being opened and
closed; `idle` is a stack (the one used last on top, so that the rest can expire); `unanswered` holds connections that
become idle when the server answers their reset; all others are with a caller or a task.

Callers wait in `waiters`, first come, first served. A connection that comes free is handed to the first waiter
directly, so that a running task cannot take it in between.
"""

from __future__ import annotations

import itertools
import math
import weakref
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Generic

from loopaware_pool._core.config import IdleOrder
from loopaware_pool._core.connect_pacing import STEP_SECONDS, MinSizeBackoff, SlowStart
from loopaware_pool._core.load_shedding import LoadShedding
from loopaware_pool._core.slot import Host, Slot, SlotEvent, SlotState
from loopaware_pool._core.wait_queue import WaitQueue
from loopaware_pool.driver import Liveness, ReturnCheck, S
from loopaware_pool.stats import BUCKETS_SECONDS, GIVEN_AWAY, Counters, LoopStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool._core.config import PoolConfig
    from loopaware_pool._core.interfaces import ShardEffects, Waiter
    from loopaware_pool._core.permits import Claimant, Permits
    from loopaware_pool._core.state import SharedState

__all__ = ["GOODBYE_GRACE_SECONDS", "NEVER", "RESET_ANSWER_SECONDS", "Shard"]

NEVER: Final = float("inf")
# How often a loop that keeps `min_size` looks for dead idle connections.
DEAD_CHECK_SECONDS: Final = 1.0
# The longest that a reset may stay unanswered.
RESET_ANSWER_SECONDS: Final = 30.0
# The lower bound where a caller allows less: no caller waits for the answer, and a new connect would take as long.
LEAST_ANSWER_SECONDS: Final = 1.0
# How long callers without a connection wait, at most, for the answers that are due, before they have one opened.
LONGEST_ANSWER_SECONDS: Final = 0.25
# How often to look for dropped leases while a caller waits and no connection can be opened.
DROPPED_LOOK_SECONDS: Final = 1.0
# The longest from one look for other loops' idle connections to the next, while a claim stands.
LONGEST_DONOR_PAUSE_SECONDS: Final = 0.4

# How long a connection may take to close politely once a waiting caller needs its permit.
GOODBYE_GRACE_SECONDS: Final = 0.1
# A server that leaves a reset or a ping unanswered for this long is silent, not slow. Callers that wait for its answer
# then count towards `max_waiting`. A connection that has been idle for less than this is not pinged because of another.
SILENT_SECONDS: Final = 1.0
# If it has answered anything meanwhile, it is silent when it has answered nothing for this long.
SLOW_SECONDS: Final = 5.0
# A loop must have been there for so long to read an answer before that counts as missing. After a loop was blocked, or
# the whole process was stopped, the answers have come, and have not been read yet.
READ_SECONDS: Final = 0.1
# Bound once: on Python 3.11 looking up an enum member costs more than most of what is done with it.
_ALIVE, _DEAD, _UNREAD = Liveness
_READY, _RESET_SENT, _RESET = ReturnCheck.READY, ReturnCheck.RESET_SENT, ReturnCheck.RESET
_SHORTEST: Final = BUCKETS_SECONDS[0]
_RESET_PIPELINED = ReturnCheck.RESET_PIPELINED
_TAKEN, _CLAIMED, _RESERVED, _RETURNED = SlotEvent.TAKEN, SlotEvent.CLAIMED, SlotEvent.RESERVED, SlotEvent.RETURNED
_RESET_STARTED = SlotEvent.RESET_STARTED


def answer_limit(seconds: float | None) -> float:
    """Return how long a reset's answer may take, in seconds. *seconds* is the caller's limit; None if there is none."""
    return RESET_ANSWER_SECONDS if seconds is None else min(max(seconds, LEAST_ANSWER_SECONDS), RESET_ANSWER_SECONDS)


class Shard(Generic[S]):
    """
    One loop's share of a pool.

    Args:
        shared: What the pool's loops share, its settings among it.
        permits: The pool's permits.
        effects: Does what is decided here.
        pool_size: Counts the pool's connections on all loops, connecting ones included.
        jitter: Draws a number between 0 and 1, for lifetimes.
        pool_idle_size: Counts the pool's idle connections on all loops; None if this is the only loop.

    Attributes:
        is_open: Whether callers are served, now or after a suspension. A loop may end before the pool does.
    """

    def __init__(
        self,
        shared: SharedState,
        permits: Permits,
        effects: ShardEffects[S],
        *,
        pool_size: Callable[[], int],
        jitter: Callable[[], float],
        pool_idle_size: Callable[[], int] | None = None,
    ) -> None:
        self.is_open: bool = True
        self.idle: list[Slot[S]] = []
        self.slots: set[Slot[S]] = set()
        self.connecting: set[Slot[S]] = set()
        self.closing: dict[Slot[S], float] = {}  # when a waiting caller may cut the close short; in order of closing
        self.unanswered: dict[Slot[S], float] = {}  # when the reset counts as failed; in order of return
        self.asked: dict[Slot[S], float] = {}  # since when a task, and no caller, waits for an answer; in that order
        self._hosts: weakref.WeakValueDictionary[object, Host] = weakref.WeakValueDictionary()  # by address
        self._last_opened = Host(), -NEVER  # where the newest connection leads to, and since when
        self._answer_seconds = 0.0  # how long its last answer took, to a reset in passing or to a ping
        self.waiters: WaitQueue = WaitQueue()
        self.counters: Counters = Counters()
        self._use_counts = self.counters.use_times.counts
        self.last_error: BaseException | None = None
        self.keeps_floor: bool = False
        self.is_ending = False
        self.least_idle: int = 0
        self._shared = shared
        self._permits = permits
        self._effects = effects
        self._jitter = jitter
        config = shared.config
        self._keeps_idle = config.idle_order is not IdleOrder.NONE
        self._limits_idle = _limits_idle(config)
        self._pool_idle_size = pool_idle_size or self.idle.__len__
        self._lends_dead = config.lends_dead
        self._next = 0 if config.idle_order is IdleOrder.FIFO else -1
        self._due = NEVER
        self._slow_start = SlowStart(_connect_ceiling(config), jitter)
        self._shedding = None if config.shed_after is None else LoadShedding(config.shed_after)
        self._idle_look = _idle_look(config)
        self._lease_look = config.leak_threshold if config.leak_threshold is not None else NEVER
        self._reasons: dict[Slot[S], str] = {}
        self.restoring: set[Slot[S]] = set()  # connects that are for `min_size`
        self._min_size_slow_start = SlowStart(_connect_ceiling(config), jitter, waits_for_answers=True)
        self._min_size_backoff = MinSizeBackoff(jitter)
        self._pool_size = pool_size
        self._look_at = 0.0  # when to look for dropped leases again
        self._donor_look_at = 0.0  # when to look for other loops' idle connections again, while a claim stands
        self._asked_donor: Claimant | None = None  # the loop that was asked last, for the claim that stands
        self._donor_pause = 0.0  # seconds from one such look to the next

    # ---- lending ----

    def take(self, now: float) -> Slot[S] | None:
        """Lend an idle connection at once. None if there is none, or if other callers wait for one."""
        shared = self._shared
        if self.waiters or shared.is_suspended:
            return None
        while self.idle:
            try:
                slot = self.idle.pop(self._next)
            except IndexError:  # another thread gave the last one away as this loop began to run
                break
            self.least_idle = min(self.least_idle, len(self.idle))
            if slot.generation != shared.generation or (now >= slot.expires_at and not shared.config.lends_expired):
                self._retire_old(slot)
            elif self._lends_dead or (liveness := slot.session.liveness()) is _ALIVE:
                slot.move(_TAKEN)
                self.counters.began_at_once += 1
                self._lend(slot, now)
                return slot
            else:
                self._quarantine(slot, liveness)
        return None

    def enqueue(self, waiter: Waiter, now: float, *, has_deadline: bool) -> bool:
        """
        Queue a caller, and open connections if that helps.

        Returns:
            Whether the caller counts as queued. A null pool's caller does not if a connection can be opened for it.
        """
        self.waiters.join(waiter, now, has_deadline=has_deadline)
        self.grow(now)
        is_counted = self._keeps_idle or self.waiting_in_line(now) > self.growth_left
        self.counters.queued += is_counted
        return is_counted

    def requeue(self, waiter: Waiter, since: float, now: float, *, has_deadline: bool) -> None:
        """Queue a caller again, at its old place: it has waited *since* then, and lost the connection it was handed."""
        self.waiters.rejoin(waiter, since, has_deadline=has_deadline)
        self.grow(now)

    def claim(self, slot: Slot[S], waited: float | None, now: float) -> None:
        """Begin the lease of a caller that was handed *slot* and has woken; *waited* is None if it was not queued."""
        slot.move(_CLAIMED)
        if waited is None:
            self.counters.began_at_once += 1
        else:
            self.counters.waited_seconds += waited
            self.counters.wait_times.counts[bisect_left(BUCKETS_SECONDS, waited)] += 1
        self._lend(slot, now)

    def abandon(self, slot: Slot[S], now: float) -> None:
        """Take *slot* back from a caller that cannot use it, because it was cancelled or came too late."""
        if slot.state is SlotState.RESERVED:
            slot.move(SlotEvent.ABANDONED)
            self._offer(slot, now)

    def is_to_get_a_connect(self, waiter: Waiter) -> bool:
        """Whether a connection is being opened for this waiting caller, or can be, so that it waits for no other."""
        before = itertools.takewhile(lambda other: other is not waiter, self.waiters)
        return sum(1 for _ in before) < len(self.connecting) + self.growth_left

    def dequeue(self, waiter: Waiter) -> None:
        """Take a caller out of the queue."""
        self.waiters.pop(waiter, None)
        if not self.waiters:
            self._demand_ended()

    def _lend(self, slot: Slot[S], now: float) -> None:
        slot.since = now
        if self._lease_look is not NEVER:
            self.wake_by(now + self._lease_look)

    def _quarantine(self, slot: Slot[S], liveness: Liveness) -> None:
        """Keep callers from *slot*: it is dead, or has unread data that may say so."""
        if liveness is _UNREAD:
            slot.move(SlotEvent.RESET_STARTED)
            self._effects.begin_read(slot)
        else:
            self._found_dead(slot)
            self.drop_dead()

    # ---- taking back ----

    def returned(self, slot: Slot[S], check: ReturnCheck, now: float, answer_seconds: float | None = None) -> None:
        """
        Take a connection back from its caller.

        Args:
            slot: The connection's slot.
            check: What the connection needs before it can be lent again.
            now: Monotonic seconds.
            answer_seconds: Seconds that the answer to a reset already sent may take; None for `RESET_ANSWER_SECONDS`.
        """
        held_seconds = now - slot.since
        self.counters.used_seconds += held_seconds
        # The comparison costs a fifth of what the search does.
        self._use_counts[0 if held_seconds <= _SHORTEST else bisect_left(BUCKETS_SECONDS, held_seconds)] += 1
        if check is _RESET_PIPELINED:
            self.counters.resets_pipelined += 1
            check = _READY
        if self.is_ending and check is not _READY:
            check = ReturnCheck.STRANDED
        if check is _READY or check is _RESET_SENT:
            slot.host.heard_at = now  # by the caller
        if check is _READY or (check is _RESET_SENT and self._is_past_use(slot, now)):
            slot.move(_RETURNED)
            self._offer(slot, now)
        elif check is _RESET_SENT:
            self.counters.resets_confirmed += 1
            slot.move(_RESET_STARTED)
            slot.since = now
            self.unanswered[slot] = due = now + answer_limit(answer_seconds)
            self.wake_by(due - READ_SECONDS)
        elif check is _RESET:
            self.counters.resets_awaited += 1
            slot.move(_RESET_STARTED)
            self._effects.begin_reset(slot)
        else:
            self.counters.returned_dead += check is ReturnCheck.BROKEN
            self._retire(slot, check.value, politely=check is ReturnCheck.WORN_OUT)
            if check is ReturnCheck.BROKEN:
                self.suspect(now)
        if slot.reported is not None:
            self._effects.report_late_return(slot, held_seconds)

    def reset_answered(self, slot: Slot[S], now: float) -> None:
        """Make a connection available again after the answer to its reset, if the shard waits for that."""
        if slot in self.unanswered:
            if now - slot.since >= SILENT_SECONDS and self._moved_on(slot, slot.since):
                self._retire(slot, "answered late")
                return
            del self.unanswered[slot]
            slot.host.heard_at = now
            self._answer_seconds = now - slot.since
            slot.move(SlotEvent.RESET_FINISHED)
            self._offer(slot, now)

    def serviced(self, slot: Slot[S], now: float) -> None:
        """Take back a connection that a task has reset, pinged or read from."""
        if slot.state is SlotState.RESETTING:
            asked_at = self.asked.pop(slot, now)
            if now - asked_at >= SILENT_SECONDS and self._moved_on(slot, asked_at):
                self._retire(slot, "answered late")
                return
            slot.host.heard_at = now
            if asked_at == slot.pinged_at:
                self._answer_seconds = now - slot.pinged_at
            slot.move(SlotEvent.RESET_FINISHED)
            idle_since = slot.since
            self._offer(slot, now)
            if slot.pinged_at > idle_since and self.idle[-1:] == [slot]:
                slot.since = idle_since  # else no connection that is pinged now and then would be idle for too long
                self.wake_by(idle_since + (self._shared.config.max_idle or NEVER))

    def _moved_on(self, slot: Slot[S], since: float) -> bool:
        """
        Whether the newest connection leads to another server, and was opened while this one's said nothing.

        A primary that comes back after a failover believes that it is still the primary.
        """
        host, opened_at = self._last_opened
        return host is not slot.host and opened_at > since

    def left_to_pool(self, slot: Slot[S], now: float, *, is_late: bool) -> None:
        """
        Note that the caller of *slot* does not wait for its reset any more.

        Args:
            slot: The connection's slot.
            now: Monotonic seconds.
            is_late: Whether a healthy server would have answered by now.
        """
        if slot.state is SlotState.RESETTING:
            self.asked.setdefault(slot, now)
            if is_late:
                self.suspect(now)
            self.grow(now)

    def suspect(self, now: float) -> None:
        """
        Look which idle connections are still of use: another one was found useless.

        A server that has closed them can be seen. One that is frozen, or out of reach, has to be asked; otherwise each
        idle connection would cost a caller its time limit.
        """
        self.drop_dead()
        for slot in self.idle[:]:
            if now - slot.unheard_since >= SILENT_SECONDS:
                self.ping_idle(slot, now)

    def discard(self, slot: Slot[S], reason: str) -> None:
        """Close a connection that has become useless, in whatever state it is."""
        if slot.state in (SlotState.CLOSING, SlotState.GONE, SlotState.CONNECTING):
            return
        if slot.state is SlotState.IDLE and slot in self.idle:
            self.idle.remove(slot)
        self._retire(slot, reason, politely=False)

    def _offer(self, slot: Slot[S], now: float) -> None:
        """Put an idle connection to use: into the first waiter's hands, or on the stack."""
        if not self.is_open:
            self._retire(slot, "pool closed")
        elif slot.generation != self._shared.generation or now >= slot.expires_at:
            self._retire_old(slot)
        elif self.waiters and self._hand_on(slot, now):
            pass
        elif self.is_ending:
            self._retire(slot, "the loop ends", politely=False)
        elif not self._keeps_idle:
            self._retire(slot, "nobody waits for it")
        elif self._limits_idle and self._has_idle_to_spare():
            self._retire(slot, "more than max_idle_size are idle")
        else:
            slot.since = now
            self.idle.append(slot)
            self._effects.park_when_idle(slot)
            if now + self._idle_look < self._due or slot.expires_at < self._due:
                self.wake_by(min(now + self._idle_look, slot.expires_at))
            if self._permits.claims:
                self.permit_requested(now)

    def _has_idle_to_spare(self) -> bool:
        """Whether as many connections are idle as may be. They are only counted, on all loops, if so many are open."""
        most = self._shared.config.max_idle_size
        return self._permits.in_use > most and self._pool_idle_size() >= most

    def is_outdated(self, slot: Slot[S]) -> bool:
        """Whether *slot* was opened before the last `expire()`."""
        return slot.generation != self._shared.generation

    def _is_past_use(self, slot: Slot[S], now: float) -> bool:
        """Whether *slot* is closed as soon as it is back, so that its reset's answer does not matter."""
        return slot.generation != self._shared.generation or now >= slot.expires_at or not self.is_open

    def _hand_on(self, slot: Slot[S], now: float) -> bool:
        """
        Hand *slot* to the first waiter, give its permit to another loop, or close it. False if it is to become idle.
        """
        if self._shared.is_suspended:
            return False
        if self._permits.claims and self._has_served(slot, now):
            self._retire(slot, GIVEN_AWAY)
            return True
        if not self._lends_dead and (liveness := slot.session.liveness()) is not _ALIVE:
            self._quarantine(slot, liveness)
            return True
        waiter = self._first_to_serve(now)
        if not self.waiters:
            self._demand_ended()
        if waiter is not None:
            slot.move(_RESERVED)
            waiter.set_result(slot)
        return waiter is not None

    def _first_to_serve(self, now: float) -> Waiter | None:
        """
        Take the first caller out of the queue. While the queue is backed up, refuse callers that have waited too long.
        """
        while (first := self.waiters.next()) is not None:
            waiter, waited = first[0], now - first[1]
            # Refusing the last caller in the queue would help no caller.
            if self._shedding is None or not self.waiters or not self._shedding.refuses(waited, now):
                return waiter
            self.counters.shed += 1
            error = self._effects.errors.overloaded(
                pool=self._shared.config.name, shed_after=self._shedding.limit, waited=waited, waiting=len(self.waiters)
            )
            waiter.set_exception(error)
        return None

    def _has_served(self, slot: Slot[S], now: float) -> bool:
        """
        Whether *slot* has served this loop long enough to be given to another loop that waits.

        Without a minimum time two loops would pass one permit back and forth, and serve no caller with it.
        """
        age_seconds = now - slot.opened_at
        return age_seconds >= self._shared.config.patience and self._permits.promise(self, now, donor_has_waiters=True)

    def _retire_old(self, slot: Slot[S]) -> None:
        self._retire(slot, "expired" if self.is_outdated(slot) else "max_lifetime")

    def _serves(self) -> bool:
        """Whether callers are served now."""
        return self.is_open and not self._shared.is_suspended

    # ---- growing ----

    def open_one(self, now: float) -> Slot[S] | None:
        """Start a connect, if a permit is free."""
        return self._start_connect(now) if self._permits.take(self) else None

    def grow(self, now: float) -> None:
        """Start connects for waiting callers, as many as `SlowStart` and the permits allow."""
        # Connections are idle beside waiters while a resumption has yet to reach this loop.
        wanted = len(self.waiters) - len(self.connecting) - len(self.idle)
        if wanted <= 0 or self._shared.is_suspended or not self.is_open:
            return
        if not self._effects.is_awake():
            self.wake_by(now)
            return
        if len(self.slots) >= self._shared.config.max_size:
            self._take_from_silent_server(now)
            if now >= self._look_at:
                self._reclaim_dropped(now)
            return
        if now < self._slow_start.probe_at:
            self.wake_by(self._slow_start.probe_at)
            return
        if self.unanswered or self.asked:
            wanted -= self._about_to_be_idle(now)
        if now < self._donor_look_at and self in self._permits.claims:
            self._take_from_silent_server(now)
            self.wake_by(self._donor_look_at)
        else:
            self._open(wanted, now)

    def _open(self, wanted: int, now: float) -> None:
        """Start connects, *wanted* at most, or claim a permit for one."""
        for _ in range(min(wanted, self._slow_start.allowance(now) - len(self.connecting))):
            if not self._permits.take_or_claim(self, self.waiters.oldest):
                self._look_for_donor(now)
                return
            self._start_connect(now)
        if wanted > 0 and len(self.waiters) > len(self.connecting):
            self.wake_by(now + STEP_SECONDS)

    def _about_to_be_idle(self, now: float) -> int:
        """Count connections that will be answered any moment. 0 once one of them has taken too long."""
        # A server far away takes longer, and to connect to it takes longer still.
        answer_seconds = min(max(STEP_SECONDS, 2 * self._answer_seconds), LONGEST_ANSWER_SECONDS)
        late_at = self._unanswered_since() + answer_seconds
        if now >= late_at:
            return 0
        self.wake_by(late_at)
        return len(self.unanswered) + len(self.asked)

    def _unanswered_since(self) -> float:
        """Since when the server owes an answer on a connection that no caller has; infinity if it owes none."""
        # Copies: this may be another thread. The first of each has waited longest.
        asked, unanswered = list(self.asked.values()), list(self.unanswered)
        return min(asked[0] if asked else NEVER, unanswered[0].since if unanswered else NEVER)

    def permit_granted(self, now: float) -> None:
        """Use, or return, a permit that another loop gave up for this one's claim."""
        self._asked_donor = None
        is_wanted = self._serves() and len(self.waiters) > len(self.connecting) and now >= self._slow_start.probe_at
        if is_wanted and self._effects.is_awake():
            self._start_connect(now)
        else:
            self._return_permit()
        self.grow(now)

    def permit_requested(self, now: float) -> None:
        """Close an unused connection if another loop should have its permit."""
        is_unused = bool(self.idle or (self.unanswered and not self.waiters))
        if is_unused and self._permits.promise(self, now, donor_has_waiters=False):
            slot = self._take_unused()
            if slot is not None:
                self._retire(slot, GIVEN_AWAY)
        elif self._permits.claims:
            self._take_from_silent_server(now)
            if is_unused and (ripe_at := self._permits.ripe_at) > now:
                self.wake_by(ripe_at)  # the claim's loop may look much later

    def _take_unused(self) -> Slot[S] | None:
        try:
            return self.idle.pop(0)
        except IndexError:  # empty by now: this may be another thread, and the loop may run
            return next(iter(list(self.unanswered)), None)  # a loop that is not running reads no answers

    def connected(self, slot: Slot[S], session: S, now: float, address: object = None) -> None:
        """Add a connection that has been opened, to the server at *address*; None if that is not known."""
        self.connecting.discard(slot)
        if slot in self.restoring:
            self.restoring.discard(slot)
            if self._pool_size() < self._shared.config.min_size:
                self.wake_by(now + STEP_SECONDS)  # to open the next ones soon
        self._min_size_backoff.succeeded()
        self._min_size_slow_start.succeeded()
        self.last_error = None
        self._slow_start.succeeded()
        self.counters.opened += 1
        slot.session = session
        slot.host = self._hosts.setdefault(address, Host())
        self._last_opened = slot.host, now
        slot.move(SlotEvent.CONNECTED)
        config = self._shared.config
        if config.max_lifetime:
            lifetime = config.max_lifetime * (1 - config.lifetime_jitter * self._jitter())
            slot.expires_at = max(now + lifetime, math.nextafter(now, NEVER))  # not before now: a caller waits for it
        connect_seconds, slot.opened_at = now - slot.opened_at, now
        self.counters.connect_seconds += connect_seconds
        self.counters.connect_times.counts[bisect_left(BUCKETS_SECONDS, connect_seconds)] += 1
        self._effects.report_opened(slot, connect_seconds)
        self._offer(slot, now)
        self.grow(now)

    def connect_failed(self, slot: Slot[S], error: BaseException, now: float, *, is_final: bool) -> None:
        """
        Note that a connect failed, and raise its error in callers that have nothing else to hope for.

        A caller with a deadline keeps waiting: the next attempt may succeed. So does a caller that came after this
        connect had begun: the failure may predate this caller. *is_final* means that no attempt will succeed, because a
        callback of the user's is at fault; then the first caller in the queue gets the error.
        """
        slot.move(SlotEvent.CONNECT_FAILED)
        self.connecting.discard(slot)
        self.slots.discard(slot)
        self.counters.connect_failures += 1
        self._effects.report_connect_failed(slot, error)
        if not is_final:
            self.last_error = error
            self._slow_start.refused(now)
        hopeless = self.size == 0 and not is_final
        # Where a caller's timeout does not cover connecting, a caller that has come since gets a connect of its own.
        since = now if is_final and self._shared.config.timeout_covers_connecting else slot.opened_at
        fail = self.waiters.fail_all if hopeless else self.waiters.fail_first
        fail(error, since, patient_too=is_final)
        if not self.waiters:
            self._demand_ended()
        self._floor_connect_failed(slot, error, now)
        self._return_permit()
        self.grow(now)

    def connect_cancelled(self, slot: Slot[S], now: float) -> None:
        """Note that a connect's task was cancelled. Callers that still wait get another connect."""
        slot.move(SlotEvent.CONNECT_FAILED)
        self.connecting.discard(slot)
        self.restoring.discard(slot)
        self.slots.discard(slot)
        self._return_permit()
        self.grow(now)

    def _start_connect(self, now: float) -> Slot[S]:
        slot: Slot[S] = Slot(self._shared.generation, now)
        self.slots.add(slot)
        self.connecting.add(slot)
        self._effects.begin_connect(slot)
        return slot

    def _demand_ended(self) -> None:
        self._asked_donor = None
        self._slow_start.demand_ended()
        if self._shedding is not None:
            self._shedding.emptied()
        if self._permits.claims:
            self._permits.drop_claim(self)

    def _look_for_donor(self, now: float) -> None:
        self._take_from_silent_server(now)
        donor = self._asked_donor = self._permits.donor_for(self, now, self._asked_donor)
        if donor is not None:
            self._effects.ask_for_permit(donor)
        else:
            self._effects.run_errands_of_idle_loops()
        if self._permits.claims:
            self._look_for_donor_later(now, is_in_vain=donor is None)
        if now >= self._look_at:
            self._reclaim_dropped(now)

    def _look_for_donor_later(self, now: float, *, is_in_vain: bool) -> None:
        """
        Have the timer look again: a claim may be overdue then, and a loop may have stopped before it was asked.

        A loop that has a connection to spare from now on sees the claim by itself, and when it is overdue. So there is
        less and less reason to look, and where many loops wait, each look at all of them takes time from all.
        """
        patience = self._shared.config.patience
        shortest = patience or STEP_SECONDS
        if is_in_vain and now - self.waiters.oldest >= patience:
            self._donor_pause = min(max(2 * self._donor_pause, shortest), LONGEST_DONOR_PAUSE_SECONDS)
        else:
            self._donor_pause = shortest
        self.wake_by(now + self._donor_pause)
        self._donor_look_at = now + self._donor_pause if is_in_vain else now

    def _reclaim_dropped(self, now: float) -> None:
        """Look for dropped leases on every loop: a caller waits, and no connection can be opened."""
        self._look_at = now + DROPPED_LOOK_SECONDS
        self.wake_by(self._look_at)
        self._effects.reclaim_dropped_on_all_loops()

    # ---- closing ----

    def retire(self, slot: Slot[S], reason: str, *, politely: bool = True) -> None:
        """Close a connection that a caller has, or just had."""
        if slot.state not in (SlotState.CLOSING, SlotState.GONE):
            self._retire(slot, reason, politely=politely)

    def closed(self, slot: Slot[S], now: float) -> None:
        """Let go of a connection whose socket is gone."""
        if slot.state is SlotState.GONE:
            return
        slot.move(SlotEvent.CLOSED)
        self.closing.pop(slot, None)
        self.slots.discard(slot)
        reason = self._reasons.pop(slot, "")
        self.counters.closed += 1
        self.counters.closed_because[reason] = self.counters.closed_because.get(reason, 0) + 1
        self._effects.report_gone(slot, reason)
        self._return_permit()
        self.grow(now)
        self.restore_floor(now)

    def shut(self, error: Callable[[], BaseException]) -> None:
        """Stop serving: raise *error*'s result in waiting callers, and close idle connections."""
        self.waiters.dismiss(error)
        self._demand_ended()
        self.is_open = False
        while self.idle:
            self._retire(self.idle.pop(), "pool closed")
        for slot in list(self.unanswered):
            self._retire(slot, "pool closed")

    def resume(self, now: float) -> None:
        """Serve the callers that queued during a suspension, unless the pool has been suspended again meanwhile."""
        while self.waiters and self.idle and self._serves():
            self._offer(self.idle.pop(), now)
        self.grow(now)

    def _retire(self, slot: Slot[S], reason: str, *, politely: bool = True) -> None:
        slot.move(SlotEvent.CLOSE_STARTED)
        self.unanswered.pop(slot, None)
        self.asked.pop(slot, None)
        self.closing[slot] = NEVER
        self._reasons[slot] = reason
        self._effects.begin_close(slot, politely=politely)

    def _take_from_silent_server(self, now: float) -> None:
        """
        Free permits that wait for a server that says nothing, while callers wait for them, the oldest first.

        A healthy server hangs up, and answers, within milliseconds. A frozen one would keep the permits for as long as
        a polite close, a ping or a reset may take, although a server that has replaced it could serve the callers.
        """
        wanted = self._permits_wanted() if self.closing or self.asked or self.unanswered else 0
        if not wanted:
            return
        self._cut_goodbyes_short(wanted, now)
        earliest = self._unanswered_since() + SILENT_SECONDS - READ_SECONDS
        if now < earliest:
            self.wake_by(earliest)
        else:
            self._give_up_silent(wanted - len(self.closing), now)

    def _give_up_silent(self, wanted: int, now: float) -> None:
        """Close so many connections, at most, of a server that is silent."""
        for slot, since in [*self.asked.items(), *((slot, slot.since) for slot in self.unanswered)]:
            # A server that was heard since is slow, and to connect anew would make it slower. But a caller may bring
            # a connection back without having heard the server of late.
            heard_at = slot.host.heard_at
            silent_at = since + SILENT_SECONDS if heard_at <= since else heard_at + SLOW_SECONDS
            if wanted > 0 and self.look_whether_missing(slot, silent_at, now):
                self._retire(slot, "did not answer", politely=False)
                wanted -= 1

    def look_whether_missing(self, slot: Slot[S], due: float, now: float) -> bool:
        """
        Look whether the answer that *slot* waits for is missing: it was *due* (monotonic seconds), and this loop would
        have read it. If not, the timer is set to look again.
        """
        look_at = due - READ_SECONDS
        if look_at <= now and slot.looked_at < look_at:
            slot.looked_at = now
        missing_at = look_at if now < look_at else max(due, slot.looked_at + READ_SECONDS)
        if now < missing_at:
            self.wake_by(missing_at)
        return now >= missing_at

    def _cut_goodbyes_short(self, wanted: int, now: float) -> None:
        """Cut so many polite closes short, once they have had a moment."""
        for slot in list(self.closing):
            if not wanted:
                return
            if self.closing[slot] is NEVER:
                self.closing[slot] = now + GOODBYE_GRACE_SECONDS if self._effects.is_awake() else now
            if now >= self.closing[slot]:
                self._effects.cut_goodbye(slot)
                wanted -= 1
            else:
                self.wake_by(self.closing[slot])

    def _permits_wanted(self) -> int:
        return max(0, len(self.waiters) - len(self.connecting)) + len(self._permits.claims)

    def _found_dead(self, slot: Slot[S]) -> None:
        self.counters.found_dead += 1
        self._retire(slot, "closed by the server", politely=False)

    def _return_permit(self) -> None:
        claimant = self._permits.give_back(self)
        if claimant is not None:
            self._effects.tell_granted(claimant)

    # ---- min_size ----

    def keep_floor(self, now: float) -> None:
        """Keep `min_size` connections open from now on."""
        self.keeps_floor = True
        self.restore_floor(now)

    def restore_floor(self, now: float) -> None:
        """Open the connections that `min_size` lacks, if this loop has opened the pool."""
        min_size = self._shared.config.min_size
        if not (self.is_open and self.keeps_floor and min_size > 0):
            return
        self.wake_by(now + DEAD_CHECK_SECONDS)
        missing = min_size - self._pool_size()
        if missing <= 0 or not self._effects.is_awake():
            self._min_size_slow_start.demand_ended()
        elif now < self._min_size_backoff.retry_at:
            self.wake_by(self._min_size_backoff.retry_at)
        else:
            self._open_for_floor(missing, now)

    def _open_for_floor(self, missing: int, now: float) -> None:
        """Open one, then more with each that is open: when a server comes back, every process reconnects."""
        allowance = self._min_size_slow_start.allowance(now)
        for _ in range(min(missing, allowance - len(self.connecting))):
            slot = self.open_one(now)
            if slot is None:
                return
            self.restoring.add(slot)
            missing -= 1
        if missing and allowance > 1:  # 1 means that the server has not answered yet: wait for the connect under way
            self.wake_by(now + STEP_SECONDS)

    def _floor_connect_failed(self, slot: Slot[S], error: BaseException, now: float) -> None:
        """Schedule another connect for `min_size`, if this one was for it."""
        if slot in self.restoring:
            self.restoring.discard(slot)
            self._min_size_backoff.failed(now)
            self._min_size_slow_start.refused(now)
            self.wake_by(self._min_size_backoff.retry_at)
            if self.is_open:
                self._effects.report_floor_not_restored(error)

    def refill(self, now: float) -> None:
        """
        Open what `min_size` lacks, and at least one connection, without waiting for the backoff, if the loop runs.
        """
        self._min_size_backoff.succeeded()
        self.restore_floor(now)
        if not self.slots and self._effects.is_awake():
            self.open_one(now)

    # ---- housekeeping ----

    def woke(self) -> None:
        """Note that the timer has fired."""
        self._due = NEVER

    def catch_up(self, now: float) -> None:
        """Open connections for waiting callers and for `min_size`. Free permits that callers of any loop wait for."""
        if self.is_open and now < self._look_at:
            self.wake_by(self._look_at)
        self.restore_floor(now)
        if self._permits.claims:
            self.permit_requested(now)
        self.grow(now)

    def expired(self) -> None:
        """Close connections that wait for a reset's answer and are too old to be lent again."""
        for slot in list(self.unanswered):
            if self.is_outdated(slot):
                self._retire_old(slot)

    def settings_changed(self, now: float) -> None:
        """Close what may not be idle any more, and have the housekeeper do the rest that the pool's settings demand."""
        config = self._shared.config
        self._slow_start.ceiling = self._min_size_slow_start.ceiling = _connect_ceiling(config)
        self._idle_look = _idle_look(config)
        self._limits_idle = _limits_idle(config)
        surplus = self._pool_idle_size() - config.max_idle_size
        for slot in self.idle[: max(0, surplus)]:
            self.retire_idle(slot, "more than max_idle_size are idle")
        self.wake_by(now)

    def drop_dead(self) -> None:
        """Close every dead idle connection: where one is dead, others often are."""
        for slot in self.idle[:]:
            if slot.session.liveness() is _DEAD:
                self.idle.remove(slot)
                self._found_dead(slot)

    def retire_idle(self, slot: Slot[S], reason: str, *, politely: bool = True) -> None:
        """Close an idle connection."""
        self.idle.remove(slot)
        self._retire(slot, reason, politely=politely)

    def ping_idle(self, slot: Slot[S], now: float) -> None:
        """Make a round trip on an idle connection, later if its loop is not running: nothing would read the answer."""
        if not self._effects.is_awake():
            self.wake_by(0.0)  # as soon as it runs
            return
        self.idle.remove(slot)
        slot.move(SlotEvent.RESET_STARTED)
        self.asked[slot] = slot.pinged_at = now
        self._effects.begin_ping(slot)

    def wake_by(self, due: float) -> None:
        """Have the housekeeper called at *due* (monotonic seconds), or earlier."""
        if due < self._due:
            self._due = due
            self._effects.wake_at(due)

    # ---- counting ----

    @property
    def size(self) -> int:
        """Live connections: neither connecting nor closing."""
        return len(self.slots) - len(self.connecting) - len(self.closing)

    @property
    def idle_size(self) -> int:
        """Connections that are idle, or will be when the server answers their reset."""
        return len(self.idle) + len(self.unanswered)

    def waiting_in_line(self, now: float) -> int:
        """
        Count callers that wait for another caller to finish, not just for the server's answer or a connect under way.
        """
        served_soon = 0 if self._is_silent(now) else len(self.unanswered) + len(self.asked)
        if not self._shared.config.counts_growth:
            served_soon += len(self.connecting)
        return max(0, len(self.waiters) - served_soon)

    def _is_silent(self, now: float) -> bool:
        """Whether the server has left a reset, or a ping, unanswered for too long."""
        return now - self._unanswered_since() >= SILENT_SECONDS

    @property
    def growth_left(self) -> int:
        """Connections that can still be opened for waiting callers; none while connecting fails."""
        if self._shared.config.counts_growth or not self._serves() or self.last_error is not None:
            return 0
        return self._permits.free

    def is_in_use(self) -> bool:
        """Whether callers, or tasks of the pool, use connections."""
        return len(self.slots) > len(self.idle) + len(self.connecting) + len(self.closing)

    @property
    def unused(self) -> int:
        """Connections that can be closed at once for another loop, and that no caller here waits for."""
        return self.idle_size if not self.waiters else 0

    @property
    def spare(self) -> int:
        """Connections that are idle, about to be, or closing, and that no caller here waits for."""
        if self.waiters:
            return 0
        return len(self.idle) + len(self.unanswered) + len(self.asked) + len(self.closing)

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
            counters=self.counters.plus(Counters()),
        )


def _connect_ceiling(config: PoolConfig) -> int:
    """Return how many connects may be in flight."""
    return config.max_connecting or config.max_size


def _idle_look(config: PoolConfig) -> float:
    """Seconds after which a connection that has become idle is looked at."""
    answer_seconds = RESET_ANSWER_SECONDS if config.resets_in_passing else NEVER
    return min(config.max_idle or NEVER, config.keepalive or NEVER, answer_seconds)


def _limits_idle(config: PoolConfig) -> bool:
    """Whether a connection may be closed for being one too many that is idle."""
    return config.max_idle_size < config.max_size
