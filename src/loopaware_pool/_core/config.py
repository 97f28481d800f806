"""The settings of one pool, in the core's terms. Whatever the flavour, times are finite here, and 0 turns them off."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from enum import Enum
from typing import Final

from loopaware_pool._core.checks import check_name, count, fraction, or_none, seconds
from loopaware_pool._core.options import SharedOptions, option

__all__ = ["IdleOrder", "PoolConfig"]

_seconds: Final = seconds("0 turns it off")
_seconds_or_none: Final = or_none(seconds("None turns it off"))
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
class PoolConfig(SharedOptions):
    """
    What the core of a pool needs to know. Times are in seconds, sizes are numbers of connections.

    Raises:
        ValueError, TypeError: A value makes no sense. The message names the argument, the value and what is allowed.
    """

    name: str = option(
        "In errors, logs, events and metrics; by default `pool-N`.", check=check_name, default_factory=_next_name
    )
    min_size: int = option("Connections kept open while idle, in the whole process.", check=count(0))
    init_size: int = option("Connections opened when the pool is opened; at least *min_size*.", check=count(0))
    max_size: int = option(
        "Most connections open at once in the whole process, connecting and closing ones included.", check=count(1)
    )
    max_idle_size: int = option(
        "Most connections kept idle, on all loops together; one that is returned above that is closed, unless a caller "
        "waits for it.",
        check=count(0),
        default=sys.maxsize,
    )
    max_idle: float = option(
        "Seconds after which an idle connection above *min_size* is closed; 0 never.", check=_seconds, default=0.0
    )
    max_lifetime: float = option(
        "Seconds after which a connection is replaced once it is not in use; 0 never.", check=_seconds, default=0.0
    )
    lifetime_jitter: float = option(
        "Largest fraction of *max_lifetime* taken off at random, so that not all end at once.",
        check=fraction,
        default=0.1,
    )
    max_waiting: int = option(
        "Callers that may wait at once; more are refused. 0 for no limit.", check=count(0), default=0
    )
    counts_growth: bool = option(
        "Whether callers for which a connection is, or can be, opened count towards *max_waiting*.", default=False
    )
    close_timeout: float | None = option(
        "Seconds `close()` waits for leases before it terminates; None waits as long as it takes.",
        check=_seconds_or_none,
        default=None,
    )
    timeout_covers_connecting: bool = option(
        "Whether a caller's timeout goes on while a connection is, or can be, opened for it. If not, it passes only "
        "while the caller waits for other callers.",
        default=True,
    )
    patience: float = option(
        "Seconds a loop's first waiter gives way to loops that have connections.", check=_seconds, default=0.05
    )
    idle_order: IdleOrder = option("Which idle connection is lent next.", default=IdleOrder.LIFO)
    parks_at_once: bool = option(
        "Whether a returned connection leaves the selector before the loop polls, if no connection is in use. "
        "Otherwise it does 10 ms later, which is cheaper for callers that go round the loop before they acquire again.",
        default=True,
    )
    resets_in_passing: bool = option(
        "Whether a connection may be idle while the answer to its reset is due.", default=True
    )
    lends_expired: bool = option(
        "Whether an idle connection may outlive *max_lifetime*, until it is lent and comes back.", default=False
    )
    lends_dead: bool = option("Whether an idle connection is lent without a look at its socket.", default=False)

    def __post_init__(self) -> None:
        SharedOptions.__post_init__(self)  # `super()` does not work in a dataclass with slots
        if not self.min_size <= self.init_size <= self.max_size:
            raise ValueError(
                f"min_size={self.min_size}, init_size={self.init_size}, max_size={self.max_size}: "
                "expected min_size <= init_size <= max_size"
            )
