"""What a pool reports about itself: frozen statistics, and events."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from loopaware_pool._platform.sockets import SocketIdentity

__all__ = [
    "BUCKETS_SECONDS",
    "AcquireFailed",
    "ConnectFailed",
    "ConnectionClosed",
    "ConnectionOpened",
    "ConnectionReport",
    "Counters",
    "EventHook",
    "FdLeaked",
    "FdLost",
    "Histogram",
    "LeaseDropped",
    "LeaseInfo",
    "LeaseOverdue",
    "LeaseReturned",
    "LoopEnded",
    "LoopStats",
    "PoolEvent",
    "PoolStats",
    "RegistrationLeft",
    "ResetFailed",
]


# The upper bounds of a histogram's buckets, each included, in seconds. One more bucket has what took longer.
BUCKETS_SECONDS: Final = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)

# Why a connection was closed whose permit another loop needed.
GIVEN_AWAY: Final = "given to another loop"


@dataclass(slots=True)
class Histogram:
    """
    How many times something took how long.

    Attributes:
        counts: How many durations fell into each bucket of `BUCKETS_SECONDS`, and how many were longer than all. Not
            cumulative.

    Raises:
        ValueError: There are not as many counts as buckets.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_SECONDS) + 1))

    def __post_init__(self) -> None:
        if len(self.counts) != len(BUCKETS_SECONDS) + 1:
            raise ValueError(f"counts={self.counts!r}: expected {len(BUCKETS_SECONDS) + 1} numbers")

    @property
    def count(self) -> int:
        """How many durations there are."""
        return sum(self.counts)

    def plus(self, other: Histogram) -> Histogram:
        """Return the sums."""
        return Histogram([one + another for one, another in zip(self.counts, other.counts, strict=True)])

    def minus(self, other: Histogram) -> Histogram:
        """Return the differences, none below zero."""
        return Histogram([max(one - another, 0) for one, another in zip(self.counts, other.counts, strict=True)])

    def percentile(self, percent: float) -> float | None:
        """
        Estimate the duration that *percent* of the durations do not exceed, in seconds.

        It is the upper bound of the bucket in which that duration lies; infinity if it is longer than all bounds. None
        if there are no durations.
        """
        at_most = list(accumulate(self.counts))
        if not at_most[-1]:
            return None
        rank = at_most[-1] * percent / 100
        return next(
            bound for bound, count in zip((*BUCKETS_SECONDS, float("inf")), at_most, strict=True) if count >= rank
        )


@dataclass(slots=True)
class Counters:
    """
    What happened on one loop since its first acquire. Only that loop writes it.

    Attributes:
        began_at_once: Leases begun without waiting in the queue. Those of a null pool's callers for which a connection
            can be opened are counted here, not in the next three.
        wait_times: How long the others waited in the queue.
        waited_seconds: The sum of that, in seconds.
        queued: Acquires that had to queue, served or not.
        gave_up_seconds: Time spent in the queue by callers that left it without a connection, in seconds.
        failed: Acquires that got an error while they waited, other than a timeout and `Overloaded`.
        refused: Acquires refused because of `max_waiting`.
        shed: Acquires refused, after they had waited, because of `shed_after`.
        used_seconds: Time connections were lent, in seconds, for leases that have ended by a return.
        use_times: The same, lease by lease.
        timed_out: Acquires that ended at their deadline.
        cancelled: Acquires cancelled while they waited.
        opened: Connections opened.
        connect_seconds: Time that took, in seconds.
        connect_times: The same, connection by connection.
        connect_failures: Connects that failed.
        closed: Connections closed, for whatever reason.
        closed_because: The same by reason, in the words of `ConnectionClosed.reason`.
        found_dead: Connections that the server had closed while they were idle.
        returned_dead: Connections that were closed, or in use, when they came back from a caller.
        resets_pipelined: Resets sent at a return, so that the connection could be lent again at once.
        resets_confirmed: Resets sent at a return, whose answer came before the connection was lent again.
        resets_awaited: Resets made by a task of the pool, and rollbacks.
        reset_failures: Connections closed because their session could not be reset.
        overdue: Leases that lasted for longer than `leak_threshold`.
        dropped: Connections closed because their holder dropped them without returning them.
        fds_leaked: Sockets found open some time after their connections had been closed, by `fd_check`.
        fds_lost: Idle connections found without their sockets: the fd was closed, or another file. By `fd_check`.
        registrations_left: Entries found in the loop's selector for sockets that were gone, by `fd_check`.
    """

    began_at_once: int = 0
    wait_times: Histogram = field(default_factory=Histogram)
    waited_seconds: float = 0.0
    queued: int = 0
    gave_up_seconds: float = 0.0
    failed: int = 0
    refused: int = 0
    shed: int = 0
    used_seconds: float = 0.0
    use_times: Histogram = field(default_factory=Histogram)
    timed_out: int = 0
    cancelled: int = 0
    opened: int = 0
    connect_seconds: float = 0.0
    connect_times: Histogram = field(default_factory=Histogram)
    connect_failures: int = 0
    closed: int = 0
    closed_because: dict[str, int] = field(default_factory=dict)
    found_dead: int = 0
    returned_dead: int = 0
    resets_pipelined: int = 0
    resets_confirmed: int = 0
    resets_awaited: int = 0
    reset_failures: int = 0
    overdue: int = 0
    dropped: int = 0
    fds_leaked: int = 0
    fds_lost: int = 0
    registrations_left: int = 0

    @property
    def acquired(self) -> int:
        """Leases begun."""
        return self.began_at_once + self.waited

    @property
    def waited(self) -> int:
        """Leases begun after waiting in the queue."""
        return self.wait_times.count

    @property
    def acquire_times(self) -> Histogram:
        """How long all leases waited before they began; those that did not wait are in the first bucket."""
        first, *others = self.wait_times.counts
        return Histogram([first + self.began_at_once, *others])

    @property
    def permits_moved(self) -> int:
        """Connections closed because another loop needed the permit."""
        return self.closed_because.get(GIVEN_AWAY, 0)

    def plus(self, other: Counters) -> Counters:
        """Return the sums."""
        return Counters(*(_sum(getattr(self, name), getattr(other, name)) for name in Counters.__slots__))

    def minus(self, other: Counters) -> Counters:
        """Return the differences, none below zero."""
        return Counters(*(_difference(getattr(self, name), getattr(other, name)) for name in Counters.__slots__))


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, Histogram):
        return one.plus(other)
    if isinstance(one, dict):
        return {key: one.get(key, 0) + other.get(key, 0) for key in one | other}
    return one + other


def _difference(one: Any, other: Any) -> Any:
    if isinstance(one, Histogram):
        return one.minus(other)
    if isinstance(one, dict):
        return {key: max(count - other.get(key, 0), 0) for key, count in one.items()}
    return max(one - other, 0)


@dataclass(frozen=True, slots=True)
class LoopStats:
    """
    One loop's share of a pool at one moment.

    Attributes:
        loop: Label of the loop.
        connecting: Connections being opened.
        idle: Connections ready to be lent.
        lent: Connections in the hands of callers, or handed to one that has not run since.
        resetting: Connections whose session the pool resets or checks, out of reach of callers.
        closing: Connections being closed. They count towards `max_size` until they are gone.
        waiting: Callers in the queue.
        counters: What happened so far.
    """

    loop: str
    connecting: int
    idle: int
    lent: int
    resetting: int
    closing: int
    waiting: int
    counters: Counters

    @property
    def size(self) -> int:
        """Live connections: idle, lent or resetting."""
        return self.idle + self.lent + self.resetting


@dataclass(frozen=True, slots=True)
class PoolStats:
    """
    A pool at one moment; the numbers of all its loops are in `loops`.

    Attributes:
        name: Name of the pool.
        min_size: Connections kept while idle.
        max_size: Most connections the process may have open through this pool.
        loops: One entry per event loop that the pool serves, or still has connections on.
        ended: The counters of the loops that have ended.
        state: Where the pool is in its life: "new", "opening", "open", "closing" or "closed".
        process_fds: Fds that the whole process had open at the last `fd_check`; None if not known.
        max_idle_size: Most connections that may be idle at once; None if not known.
    """

    name: str
    min_size: int
    max_size: int
    loops: tuple[LoopStats, ...]
    ended: Counters
    state: str = "open"
    process_fds: int | None = None
    max_idle_size: int | None = None

    @property
    def totals(self) -> Counters:
        """What happened on all loops since the pool was made. None of these numbers ever falls."""
        return functools.reduce(Counters.plus, (loop.counters for loop in self.loops), self.ended)

    @property
    def size(self) -> int:
        """Live connections on all loops."""
        return sum(loop.size for loop in self.loops)

    @property
    def idle(self) -> int:
        """Idle connections on all loops."""
        return sum(loop.idle for loop in self.loops)

    @property
    def lent(self) -> int:
        """Lent connections on all loops."""
        return sum(loop.lent for loop in self.loops)

    @property
    def connecting(self) -> int:
        """Connections being opened on all loops."""
        return sum(loop.connecting for loop in self.loops)

    @property
    def resetting(self) -> int:
        """Connections being reset or checked on all loops."""
        return sum(loop.resetting for loop in self.loops)

    @property
    def closing(self) -> int:
        """Connections being closed on all loops."""
        return sum(loop.closing for loop in self.loops)

    @property
    def waiting(self) -> int:
        """Callers in the queues of all loops."""
        return sum(loop.waiting for loop in self.loops)

    def summary(self, callers: str = "callers") -> str:
        """Return the counts in one line; *callers* is the word for those that wait."""
        return (
            f"pool {self.name!r} has {self.lent} of {self.max_size} connections lent, {self.idle} idle, "
            f"{self.connecting} connecting, {self.resetting} resetting, {self.closing} closing "
            f"and {self.waiting} {callers} waiting on {len(self.loops)} loop(s)"
        )


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """
    Who holds a connection.

    Attributes:
        held_seconds: For how long, in seconds.
        task: Name of the task that acquired it; None when it has ended.
        where: File, line and function of the acquire; None where the interpreter does not tell.
        stack: File, line and function of each call that the task is in now, innermost first, twenty at most; empty
            except in `LeaseOverdue`, or if the task has ended.
    """

    held_seconds: float
    task: str | None
    where: str | None
    stack: tuple[str, ...] = ()

    def __str__(self) -> str:
        stands = f"; now at {' < '.join(self.stack)}" if self.stack else ""
        who = self.task or "a task that has ended"
        return f"{who} for {self.held_seconds:.1f} s, from {self.where or 'unknown'}{stands}"


@dataclass(frozen=True, slots=True)
class ConnectionReport:
    """
    One connection, as `Pool.fd_report()` lists it.

    Attributes:
        identity: The socket's fd, device and inode; None while connecting or where the driver hides it.
        loop: Label of the loop that owns it.
        state: Name of its state.
        registered: Whether that loop's selector watches the fd; None where the loop does not tell.
        lease: Who holds it; None unless lent.
    """

    identity: SocketIdentity | None
    loop: str
    state: str
    registered: bool | None
    lease: LeaseInfo | None


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """
    Something that happened.

    Attributes:
        pool: Name of the pool.
        loop: Label of the loop it happened on.
    """

    pool: str
    loop: str


@dataclass(frozen=True, slots=True)
class ConnectionOpened(PoolEvent):
    """
    A connection was opened and initialised.

    Attributes:
        seconds: How long that took, in seconds.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class ConnectFailed(PoolEvent):
    """
    A connection could not be opened.

    Attributes:
        error: Why.
    """

    error: BaseException


@dataclass(frozen=True, slots=True)
class ConnectionClosed(PoolEvent):
    """
    A connection left the pool.

    Attributes:
        reason: Why, in a word or two.
        age_seconds: How long it had been open, in seconds.
    """

    reason: str
    age_seconds: float


@dataclass(frozen=True, slots=True)
class ResetFailed(PoolEvent):
    """
    A session could not be reset; its connection is closed.

    Attributes:
        error: Why.
    """

    error: BaseException


@dataclass(frozen=True, slots=True)
class AcquireFailed(PoolEvent):
    """
    A caller left the queue without a connection.

    Attributes:
        error: The caller's error: a timeout, a refusal, a connect error, a closed pool. None if it was cancelled.
        waited_seconds: How long it had waited, in seconds.
    """

    error: BaseException | None
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class LeaseOverdue(PoolEvent):
    """
    A connection has been held for longer than `leak_threshold`. Reported once per lease.

    `LeaseReturned` follows when it comes back; `LeaseDropped` or just `ConnectionClosed` if it never does.

    Attributes:
        lease: Who holds it, and where that task stands.
    """

    lease: LeaseInfo


@dataclass(frozen=True, slots=True)
class LeaseReturned(PoolEvent):
    """
    A connection came back whose lease had been reported as overdue.

    Attributes:
        lease: Who held it, and for how long in all.
    """

    lease: LeaseInfo


@dataclass(frozen=True, slots=True)
class LeaseDropped(PoolEvent):
    """
    A connection was dropped without being returned. It is closed.

    Attributes:
        lease: Who held it, and for how long until that was noticed.
    """

    lease: LeaseInfo


@dataclass(frozen=True, slots=True)
class LoopEnded(PoolEvent):
    """
    A loop ended while the pool had connections on it.

    Attributes:
        connections: How many were closed for that.
    """

    connections: int


@dataclass(frozen=True, slots=True)
class FdLeaked(PoolEvent):
    """
    A socket is still open, some time after its connection was closed. Reported once, by `fd_check`.

    Attributes:
        identity: The socket: its fd, device and inode.
        owner: Label of the loop that its connection belonged to, which may have ended.
        reason: Why the connection was closed, as in `ConnectionClosed`.
    """

    identity: SocketIdentity
    owner: str
    reason: str


@dataclass(frozen=True, slots=True)
class FdLost(PoolEvent):
    """
    The fd of an idle connection is closed, or means another file: some code closes fds by number. Reported once, by
    `fd_check`.

    Attributes:
        identity: The socket that was opened.
    """

    identity: SocketIdentity


@dataclass(frozen=True, slots=True)
class RegistrationLeft(PoolEvent):
    """
    A loop's selector still has an entry for a connection whose socket is gone. Reported once, by `fd_check`.

    Attributes:
        identity: The socket of that connection.
        reason: Why the connection was closed, as in `ConnectionClosed`.
    """

    identity: SocketIdentity
    reason: str


class EventHook(Protocol):
    """Called after the fact, on the loop concerned. An exception that it raises is logged and dropped."""

    def __call__(self, event: PoolEvent, /) -> None: ...
