"""The settings of one pool, validated once, before anything is opened."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import TypeGuard

    from loopaware_pool.stats import EventHook

__all__ = ["IdleOrder", "PoolConfig", "check_callbacks", "check_number", "check_secret", "check_whole"]

_INFINITY: Final = float("inf")
_LARGEST: Final = sys.float_info.max
_SOME_SECONDS = "a finite number of seconds, more than 0; None turns it off"
_numbers = itertools.count(1)


def _next_name() -> str:
    return f"pool-{next(_numbers)}"


class IdleOrder(Enum):
    """Which idle connection is lent next."""

    LIFO = "lifo"
    """The one used last, so that the others can age and be closed."""

    FIFO = "fifo"
    """The one used longest ago: all are used alike. One at a time is closed while some were always spare."""

    NONE = "none"
    """None: a connection that no caller waits for is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """
    What the core of a pool needs to know. Times are in seconds, sizes are numbers of connections.

    Attributes:
        name: In errors, logs, events and metrics; by default `pool-N`.
        min_size: Connections kept open while idle, in the whole process.
        init_size: Connections opened when the pool is opened; at least *min_size*.
        max_size: Most connections open at once in the whole process, connecting and closing ones included.
        max_idle: Seconds after which an idle connection above *min_size* is closed; 0 never.
        max_lifetime: Seconds after which a connection is replaced once it is not in use; 0 never.
        lifetime_jitter: Largest fraction of *max_lifetime* taken off at random, so that not all end at once.
        keepalive: Seconds after which an idle connection is pinged; 0 never.
        acquire_timeout: Seconds for an acquire that gives no timeout; None waits as long as it takes.
        max_waiting: Callers that may wait at once; more are refused. 0 for no limit.
        counts_growth: Whether callers for which a connection is, or can be, opened count towards *max_waiting*.
        shed_after: Load shedding: while the queue is backed up, callers that have waited longer than this many seconds
            are refused. None never refuses.
        max_connecting: Connects in flight at once; None for up to *max_size*.
        leak_threshold: Seconds a lease may last before it is reported; None never reports.
        fd_check: Seconds between two checks whether fds have outlived their connections; None never checks.
        close_timeout: Seconds `close()` waits for leases before it terminates; None waits as long as it takes.
        on_event: Called with each event; None for no listener.
        patience: Seconds a loop's first waiter gives way to loops that have connections.
        idle_order: Which idle connection is lent next.
        lends_expired: Whether an idle connection may outlive *max_lifetime*, until it is lent and comes back.
        lends_dead: Whether an idle connection is lent without a look at its socket.

    Raises:
        ValueError: A number makes no sense. The message names the argument, the value and what is allowed.
        TypeError: A value is of the wrong type.
    """

    name: str = field(default_factory=_next_name)
    min_size: int
    init_size: int
    max_size: int
    max_idle: float = 0.0
    max_lifetime: float = 0.0
    lifetime_jitter: float = 0.1
    keepalive: float = 0.0
    acquire_timeout: float | None = None
    max_waiting: int = 0
    counts_growth: bool = False
    shed_after: float | None = None
    max_connecting: int | None = None
    leak_threshold: float | None = None
    fd_check: float | None = None
    close_timeout: float | None = None
    on_event: EventHook | None = None
    patience: float = 0.05
    idle_order: IdleOrder = IdleOrder.LIFO
    lends_expired: bool = False
    lends_dead: bool = False

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not name:
            raise TypeError(f"name={self.name!r}: expected a non-empty string, or None for 'pool-N'")
        if self.on_event is not None and not callable(self.on_event):
            raise TypeError(f"on_event={self.on_event!r}: expected a callable that takes one event, or None")
        self._check_counts()
        self._check_times()

    def _check_counts(self) -> None:
        for name, least in (("min_size", 0), ("init_size", 0), ("max_size", 1), ("max_waiting", 0)):
            _check_count(name, getattr(self, name), least)
        if self.max_connecting is not None:
            _check_count("max_connecting", self.max_connecting, 1)
        if not self.min_size <= self.init_size <= self.max_size:
            raise ValueError(
                f"min_size={self.min_size}, init_size={self.init_size}, max_size={self.max_size}: "
                "expected min_size <= init_size <= max_size"
            )

    def _check_times(self) -> None:
        for name in ("max_idle", "max_lifetime", "keepalive", "patience"):
            _check_seconds(name, getattr(self, name), "0 turns it off")
        for name in ("acquire_timeout", "shed_after", "leak_threshold", "close_timeout"):
            if getattr(self, name) is not None:
                _check_seconds(name, getattr(self, name), "None turns it off")
        if self.fd_check is not None:
            check_number("fd_check", self.fd_check, _SOME_SECONDS)
            if not 0 < self.fd_check < float("inf"):
                raise ValueError(f"fd_check={self.fd_check!r}: expected {_SOME_SECONDS}")
        check_number("lifetime_jitter", self.lifetime_jitter, "a fraction, 0 <= x < 1")
        if not 0 <= self.lifetime_jitter < 1:
            raise ValueError(f"lifetime_jitter={self.lifetime_jitter!r}: expected a fraction, 0 <= x < 1")


def check_number(name: str, value: object, what: str = "a number") -> None:
    """
    Refuse a value that is not a number; *what* says which kind is expected.

    Raises:
        TypeError: It is of another type.
        ValueError: It is NaN, or a whole number too large for arithmetic with seconds.
    """
    if not _is_number(value):
        raise TypeError(f"{name}={value!r}: expected {what}")
    if value != value:  # noqa: PLR0124 - only NaN is not itself
        raise ValueError(f"{name}={value!r}: expected {what}")
    if _INFINITY > abs(value) > _LARGEST:  # arithmetic with seconds would raise OverflowError, somewhere
        raise ValueError(f"{name} is too large: expected {what}, at most {_LARGEST}")


def check_whole(name: str, value: object) -> None:
    """
    Refuse a value that is not a whole number.

    Raises:
        TypeError: It is of another type.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: expected a whole number")


def check_callbacks(**callbacks: object) -> None:
    """
    Refuse values that are neither None nor callable.

    Raises:
        TypeError: One is neither.
    """
    for name, value in callbacks.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name}={value!r}: expected a callable, or None")


def check_secret(name: str, value: object, kinds: tuple[type, ...], what: str) -> None:
    """
    Refuse a value that is of none of the *kinds* and not callable. The error does not show it: it may hold a password.

    Raises:
        TypeError: It is of another type.
    """
    if not isinstance(value, kinds) and not callable(value):
        raise TypeError(f"{name}: expected {what}, not {type(value).__name__}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_count(name: str, value: int, least: int) -> None:
    check_whole(name, value)
    if value < least:
        raise ValueError(f"{name}={value!r}: expected {least} or more")


def _check_seconds(name: str, value: float, off: str) -> None:
    check_number(name, value, f"a finite number of seconds, 0 or more; {off}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value!r}: expected a finite number of seconds, 0 or more; {off}")
