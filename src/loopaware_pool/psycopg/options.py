"""What `AsyncConnectionPool` takes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal

from loopaware_pool._core.checks import check_callback, check_query, check_secret, check_whole, choice, or_none
from loopaware_pool._core.config import IdleOrder, PoolConfig
from loopaware_pool._core.options import SharedOptions, option
from loopaware_pool.psycopg.connection import LoopAwareConnection
from loopaware_pool.psycopg.likeness import check_seconds, check_sizes, check_span, span, waiting_limit

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg_pool.abc import AsyncConnectFailedCB, AsyncConnectionCB, AsyncConninfoParam, AsyncKwargsParam

__all__ = [
    "DiscardDead",
    "DiscardExpired",
    "Options",
    "Order",
    "SessionReset",
    "check_conninfo",
    "check_kwargs",
    "lends_expired",
]

SessionReset = Literal["never", "awaited"]
DiscardDead = Literal["on_check", "always"]
DiscardExpired = Literal["on_return", "always"]
Order = Literal["fifo", "lifo"]

# The largest fraction of a lifetime that psycopg_pool takes off at random.
_LIFETIME_JITTER: Final = 0.05


def check_conninfo(name: str, conninfo: object) -> None:
    """Refuse a value that is no connection string, and no function. The `TypeError` names the type, not the value."""
    check_secret(name, conninfo, (str, NoneType), "a string, or a function that gives one")


def check_kwargs(name: str, kwargs: object) -> None:
    """Refuse a value that is no mapping, and no function. The `TypeError` names the type, not the value."""
    check_secret(name, kwargs, (Mapping, NoneType), "a dict, a function that gives one, or None")


def _check_workers(name: str, number: Any) -> None:
    """Raise psycopg_pool's errors, although there are no workers."""
    check_whole(name, number)
    if number < 1:
        raise ValueError(f"{name} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(SharedOptions):
    """
    The arguments of a pool.

    Raises:
        ValueError, TypeError: One makes no sense. The error is psycopg_pool's where psycopg_pool has one.
    """

    conninfo: AsyncConninfoParam = option(
        "Where to connect; or a function, plain or async, that returns it, called before each connect.",
        check=check_conninfo,
        default="",
        repr=False,  # it may hold a password
    )
    connection_class: type[AsyncConnection[Any]] = option(
        "The class of connections. The default owns its registrations with the event loop; the pool looks after those "
        "of any other class.",
        default=LoopAwareConnection,
    )
    kwargs: AsyncKwargsParam | None = option(
        "Passed to `connection_class.connect`; or a function, plain or async, that returns them, called before each "
        "connect. Its *password* may be such a function, too, unlike psycopg_pool's.",
        check=check_kwargs,
        default=None,
        repr=False,  # likewise
    )
    min_size: int = option(
        "Connections kept while idle, in the whole process. Loops that have opened the pool open them.", default=4
    )
    max_size: int | None = option(
        "Most connections of this process, on all loops together; None for *min_size*.", default=None
    )
    open: bool | None = option(
        "True opens the pool here, which is deprecated. None does as well, and warns at the first use unless the pool "
        "is used as a context manager. False leaves it to `open()`.",
        default=None,
    )
    configure: AsyncConnectionCB[Any] | None = option(
        "Called with each new connection, which it must not leave in a transaction.",
        check=check_callback,
        default=None,
    )
    check: AsyncConnectionCB[Any] | None = option(
        "Called with each connection before it is lent. If it raises, another is tried.",
        check=check_callback,
        default=None,
    )
    reset: AsyncConnectionCB[Any] | None = option(
        "Called with each connection that comes back, which it must not leave in a transaction.",
        check=check_callback,
        default=None,
    )
    name: str | None = option('In errors, logs, events and metrics; None for "pool-N".', default=None)
    close_returns: bool = option("Whether a connection's `close()` returns it to the pool.", default=False)
    timeout: float = option("Seconds for a `connection()` or `getconn()` without a timeout.", default=30.0)
    max_waiting: int = option(
        "Callers that may wait at once; more are refused with `TooManyRequests`. 0 for no limit. A null pool's callers "
        "for which a connection is opened do not count.",
        default=0,
    )
    max_lifetime: float = option(
        "Seconds after which a connection is replaced, less up to 5 % at random; 0 replaces it each time it comes "
        "back, infinity never.",
        check=check_span,
        default=60 * 60.0,
    )
    max_idle: float = option(
        "Seconds after which the pool closes a connection above *min_size* that was not needed meanwhile; 0 closes it "
        "at once, infinity never.",
        check=check_span,
        default=10 * 60.0,
    )
    reconnect_timeout: float = option(
        "Seconds of failing connects after which *reconnect_failed* is called. Unlike psycopg_pool's, the pool goes on "
        "trying.",
        check=check_seconds,
        default=5 * 60.0,
    )
    reconnect_failed: AsyncConnectFailedCB | None = option(
        "Called with the pool; plain or async.", check=check_callback, default=None
    )
    num_workers: int = option("Accepted for compatibility; there are none.", check=_check_workers, default=3)
    session_reset: SessionReset = option(
        '"never": only transactions are rolled back. "awaited": settings, role, advisory locks, listeners, cursors and '
        "adapters are reset before the connection is lent again, which costs a round trip at each return, and prepared "
        "statements are read and planned anew. What *configure* has set with `SET` is reset too; a role or session "
        "authorization that it, or a connection class's own `connect`, has set is restored.",
        check=choice(SessionReset),
        default="never",
    )
    reset_query: str | None = option(
        'Sent by `session_reset="awaited"`, in autocommit mode, in place of what PostgreSQL itself needs; "" for '
        "nothing, None for PostgreSQL. A role or session authorization that *configure* has set is not restored then. "
        "One that discards prepared statements, as DISCARD ALL does, needs `prepare_threshold=None`: psycopg 3.2.0 "
        "does not notice.",
        check=or_none(check_query),
        default=None,
    )
    idle_order: Order = option(
        'Which idle connection is lent next: "fifo" uses all alike, as psycopg_pool does; "lifo" takes the one used '
        "last, so that the others can be closed.",
        check=choice(Order),
        default="fifo",
    )
    discard_dead: DiscardDead = option(
        'Whether the socket is checked, which takes a microsecond, before a connection is lent: "on_check" only if '
        'there is a *check*, as in psycopg_pool; "always".',
        check=choice(DiscardDead),
        default="on_check",
    )
    discard_expired: DiscardExpired = option(
        'When *max_lifetime* is checked: "on_return", as in psycopg_pool; "always", also before a connection is lent '
        "and while it is idle.",
        check=choice(DiscardExpired),
        default="on_return",
    )

    def __post_init__(self) -> None:
        SharedOptions.__post_init__(self)  # `super()` does not work in a dataclass with slots
        if self.reset_query and self.session_reset == "never":
            raise ValueError(
                f"reset_query={self.reset_query!r} would not be sent: session_reset='never' sends no reset; "
                "give session_reset='awaited'"
            )

    def config(self, name: str, *, keeps_idle: bool) -> PoolConfig:
        """
        Say the same in the core's terms.

        Args:
            name: That of the pool.
            keeps_idle: Whether it is not a null pool.
        """
        max_size = check_sizes(self.min_size, self.max_size, keeps_idle=keeps_idle)
        return PoolConfig(
            **self.shared(),
            name=name,
            min_size=self.min_size,
            init_size=self.min_size,
            max_size=max_size or sys.maxsize,
            max_idle=span(self.max_idle),
            max_lifetime=span(self.max_lifetime),
            lifetime_jitter=_LIFETIME_JITTER,
            max_waiting=waiting_limit(self.max_waiting),
            counts_growth=keeps_idle,
            idle_order=IdleOrder(self.idle_order) if keeps_idle else IdleOrder.NONE,
            lends_expired=lends_expired(self.discard_expired, self.max_lifetime),
            lends_dead=self.discard_dead == "on_check" and self.check is None,
        )


def lends_expired(discard_expired: str, max_lifetime: float) -> bool:
    """Whether a connection that is too old is still lent. With a lifetime of 0, every connection is too old."""
    return discard_expired == "on_return" or not max_lifetime
