"""What `create_pool` takes beside the arguments of a connect."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal

import asyncpg
from asyncpg.connection import Connection

from loopaware_pool._core.checks import (
    check_callback,
    check_name,
    check_number,
    check_query,
    check_secret,
    check_whole,
    choice,
    count,
    fraction,
    or_none,
    seconds,
)
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.options import SharedOptions, option
from loopaware_pool.asyncpg.internals import has_own_reset

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from loopaware_pool.asyncpg.connect_arguments import Credentials

__all__ = ["Options", "SessionReset", "check_credentials"]

SessionReset = Literal["auto", "pipelined", "when_dirty", "confirmed", "awaited", "never"]

_seconds: Final = seconds("0 turns it off")
_seconds_or_none: Final = or_none(seconds("None turns it off"))


def _check_loop(name: str, loop: object) -> None:
    if loop is not None and not isinstance(loop, AbstractEventLoop):
        raise TypeError(f"{name}={loop!r}: expected an event loop, or None")


def check_credentials(name: str, function: object) -> None:
    """Refuse a value that is neither None nor a function. The `TypeError` names the type, not the value."""
    check_secret(name, function, (NoneType,), "a function that returns a dict, or None")


def _is_subclass(kind: object, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


def _subclass_of(base: type) -> Callable[[str, Any], None]:
    """Make a check for classes that fails with asyncpg's error."""

    def check(name: str, kind: object) -> None:
        if not _is_subclass(kind, base):
            raise TypeError(f"{name} is expected to be a subclass of asyncpg.{base.__name__}, got {kind!r}")

    return check


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(SharedOptions):
    """
    The arguments of the pool.

    Raises:
        ValueError, TypeError: One makes no sense. The error is asyncpg's where asyncpg has one.
    """

    init_size: int | None = option("Connections opened at first; None for *min_size*.", default=None)
    min_size: int = option(
        "Connections kept while idle, in the whole process. Loops that have awaited the pool open them.", default=10
    )
    max_size: int = option("Most connections of this process, on all loops together.", default=10)
    max_queries: int = option("Queries after which a connection is replaced, resets included.", default=50000)
    max_inactive_connection_lifetime: float = option(
        "Seconds after which an idle connection above *min_size* is closed; 0 never.", default=300.0
    )
    connect: Callable[..., Awaitable[Any]] | None = option(
        "Called instead of `asyncpg.connect`, with its arguments.", check=check_callback, default=None
    )
    credentials: Credentials | None = option(
        "A function, plain or async, called without arguments before each connect. It returns a dict of arguments of "
        "`asyncpg.connect`, such as *user*, *password*, *dsn* or *ssl*, which are used in place of those given here.",
        check=check_credentials,
        default=None,
        repr=False,  # it may be bound to a password
    )
    setup: Callable[[Any], Awaitable[Any]] | None = option(
        "Called with each connection before it is lent.", check=check_callback, default=None
    )
    init: Callable[[Any], Awaitable[Any]] | None = option(
        "Called with each new connection. What it sets with `SET`, and listeners for notifications and log messages, "
        "go with the first release, as in asyncpg. A role, a session authorization, query loggers, termination "
        "listeners and type codecs stay.",
        check=check_callback,
        default=None,
    )
    reset: Callable[[Any], Awaitable[Any]] | None = option(
        "Called at each release, instead of the reset query. The release awaits it.",
        check=check_callback,
        default=None,
    )
    loop: AbstractEventLoop | None = option(
        "Accepted for compatibility; the pool uses the running loop.", check=_check_loop, default=None
    )
    connection_class: type[Connection] = option(
        "A subclass of `asyncpg.Connection`. If it overrides the reset, its own is awaited.",
        check=_subclass_of(Connection),
        default=Connection,
    )
    record_class: type[asyncpg.Record] = option(
        "A subclass of `asyncpg.Record`.", check=_subclass_of(asyncpg.Record), default=asyncpg.Record
    )
    name: str | None = option(
        'In errors, logs, events and metrics; None for "pool-N".', check=or_none(check_name), default=None
    )
    acquire_timeout: float | None = option(
        "Seconds for an acquire without a timeout, and for `pool.fetch` and the like; None for ever.",
        check=_seconds_or_none,
        default=None,
    )
    session_reset: SessionReset = option(
        'When the session is reset, and when the connection is lent again: "auto", "pipelined", "when_dirty", '
        '"confirmed", "awaited" or "never".',
        check=choice(SessionReset),
        default="auto",
    )
    reset_query: str | None = option(
        'Sent to reset a session, as one simple query, in place of what fits the server; "" for nothing, None for what '
        "fits. It must be ASCII. One that discards prepared statements, as DISCARD ALL does, needs "
        "`statement_cache_size=0`.",
        check=or_none(check_query),
        default=None,
    )
    max_lifetime: float = option("Seconds after which a connection is replaced; 0 never.", check=_seconds, default=0.0)
    lifetime_jitter: float = option(
        "Largest fraction of *max_lifetime* taken off at random.", check=fraction, default=0.1
    )
    max_waiting: int = option(
        "Callers that may wait at once for others; more are refused with `TooManyWaiting`. Callers for which a "
        "connection is, or can be, opened do not count. 0 for no limit.",
        check=count(0),
        default=0,
    )
    close_timeout: float | None = option(
        "Seconds `close()` waits for leases before it terminates; None for ever.",
        check=_seconds_or_none,
        default=None,
    )

    def __post_init__(self) -> None:
        self._check_sizes()
        SharedOptions.__post_init__(self)  # `super()` does not work in a dataclass with slots
        self._check_reset_query()

    @property
    def judges_leases(self) -> bool:
        """Whether it matters what a lease has left, as its statements tell."""
        can_be_followed = self.session_reset in ("auto", "pipelined") and self.reset_query is None
        return can_be_followed or self.session_reset == "when_dirty"

    def _check_reset_query(self) -> None:
        """Refuse a query that would never be sent, or that the server could read as another one."""
        if not self.reset_query:
            return
        if not self.reset_query.isascii():
            raise ValueError(
                f"reset_query={self.reset_query!r}: expected ASCII, as a lease may have changed client_encoding; "
                "write other characters as in E'\\u00fc' or U&\"\\00fc\""
            )
        kind = self.connection_class
        for replaces_it, what in (
            (self.session_reset == "never", "session_reset='never' sends no reset"),
            (self.reset is not None, "the function given as reset is called instead"),
            (has_own_reset(kind), f"connection_class={kind.__name__} resets its sessions itself"),
        ):
            if replaces_it:
                raise ValueError(f"reset_query={self.reset_query!r} would not be sent: {what}; leave out one of them")

    def _check_sizes(self) -> None:
        """
        Raise asyncpg's errors, in its order and its words. For wrong types, which asyncpg does not check, the words are
        ours.
        """
        init_size, idle_seconds = self._init_size(), self.max_inactive_connection_lifetime
        check_whole("max_size", self.max_size)
        check_whole("min_size", self.min_size)
        check_whole("init_size", init_size)
        check_number("max_queries", self.max_queries)
        check_number("max_inactive_connection_lifetime", idle_seconds)
        for is_wrong, complaint in (
            (self.max_size <= 0, "max_size is expected to be greater than zero"),
            (self.min_size < 0, "min_size is expected to be greater or equal to zero"),
            (self.min_size > self.max_size, "min_size is greater than max_size"),
            (init_size < 0, "init_size is expected to be greater or equal to zero"),
            (init_size > self.max_size, "init_size is greater than max_size"),
            (init_size < self.min_size, "init_size is smaller than min_size"),
            (self.max_queries <= 0, "max_queries is expected to be greater than zero"),
            (idle_seconds < 0, "max_inactive_connection_lifetime is expected to be greater or equal to zero"),
        ):
            if is_wrong:
                raise ValueError(complaint)

    def _init_size(self) -> int:
        return self.min_size if self.init_size is None else self.init_size

    def config(self) -> PoolConfig:
        """Say the same in the core's terms."""
        idle_seconds = self.max_inactive_connection_lifetime
        named: dict[str, Any] = {} if self.name is None else {"name": self.name}
        return PoolConfig(
            **self.shared(),
            **named,
            min_size=self.min_size,
            init_size=self._init_size(),
            max_size=self.max_size,
            max_idle=0.0 if idle_seconds == float("inf") else idle_seconds,
            max_lifetime=self.max_lifetime,
            lifetime_jitter=self.lifetime_jitter,
            max_waiting=self.max_waiting,
            close_timeout=self.close_timeout,
        )
