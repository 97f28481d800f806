"""psycopg_pool's errors, warnings and statistics, so that ours are the same."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_origin

import psycopg
from psycopg import AsyncConnection
from psycopg_pool.base import BasePool

from loopaware_pool._core.checks import Check, check_number, check_whole, number
from loopaware_pool.psycopg.connection import LoopAwareConnection

if TYPE_CHECKING:
    from loopaware_pool.stats import PoolStats

__all__ = [
    "as_given",
    "check_seconds",
    "check_sizes",
    "check_span",
    "checked_class",
    "checked_name",
    "counted",
    "span",
    "waiting_limit",
    "warn_of_open",
]

Class = TypeVar("Class", bound="type[AsyncConnection[Any]]")

_FIRST_THAT_CLOSES_INTO_POOLS: Final = (3, 3)
# The shortest time there is: 0 means "at once" to psycopg_pool, and "never" to our core.
_AT_ONCE: Final = sys.float_info.min


def check_sizes(min_size: int, max_size: int | None, *, keeps_idle: bool) -> int:
    """
    Raise psycopg_pool's errors for sizes that make no sense. For wrong types, which it does not check, the words are
    ours.

    Returns:
        *max_size*, or its default.
    """
    check_whole("min_size", min_size)
    if max_size is None:
        max_size = min_size
    check_whole("max_size", max_size)
    for is_wrong, complaint in (
        (min_size != 0 and not keeps_idle, "null pools must have min_size = 0"),
        (min_size < 0, "min_size cannot be negative"),
        (max_size < min_size, "max_size must be greater or equal than min_size"),
        (min_size == max_size == 0 and keeps_idle, "if min_size is 0 max_size must be greater than 0"),
    ):
        if is_wrong:
            raise ValueError(complaint)
    return max_size


def checked_class(kind: Class, *, close_returns: bool) -> Class:
    """Refuse a class that is no connection class, or whose `close()` cannot return a connection to its pool."""
    given: object = get_origin(kind) or kind  # `MyConnection[MyRow]` connects as `MyConnection` does
    if not isinstance(given, type) or not issubclass(given, AsyncConnection):
        raise TypeError(f"connection_class={kind!r}: expected psycopg.AsyncConnection or a subclass of it")
    version = tuple(int(part) for part in psycopg.__version__.split(".")[:2])
    if close_returns and version < _FIRST_THAT_CLOSES_INTO_POOLS and not issubclass(given, LoopAwareConnection):
        raise TypeError(
            "Using 'close_returns=True' and a non-standard 'connection_class' requires psycopg 3.3 or newer, "
            "or a subclass of loopaware_pool.psycopg.LoopAwareConnection"
        )
    return kind


def checked_name(name: str | None) -> str:
    """Return *name*, or the next of psycopg_pool's default names."""
    if name not in (None, ""):
        return name
    BasePool._num_pool += 1
    return f"pool-{BasePool._num_pool}"


def check_seconds(name: str, value: object) -> None:
    """Refuse a value that is no number of seconds."""
    check_number(name, value, "a number of seconds")


check_span: Check = number("a number of seconds, 0 or more; infinity turns it off", lambda value: value >= 0)


def span(seconds: float) -> float:
    """Convert a time from psycopg_pool's form, 0 for "at once" and infinity for "never", to our core's."""
    return 0.0 if seconds == float("inf") else seconds or _AT_ONCE


def waiting_limit(number: float | None) -> int:
    """Convert psycopg_pool's values for "no limit" to 0, our core's."""
    return 0 if number is None or number == float("inf") else number  # type: ignore[return-value]  # checked later


def as_given(span: float) -> float:
    """Convert a time from our core's form back to psycopg_pool's."""
    return 0.0 if span == _AT_ONCE else span or float("inf")


def warn_of_open(kind: type, *, stacklevel: int) -> None:
    """Warn that the constructor opens a pool."""
    warnings.warn(
        f"opening the async pool {kind.__name__} in the constructor is deprecated and will not be supported anymore "
        f"in a future release. Please use `await pool.open()`, or use the pool as context manager using: "
        f"`async with {kind.__name__}(...) as pool: `...",
        RuntimeWarning,
        stacklevel=stacklevel,
    )


def counted(stats: PoolStats, rechecks: int) -> dict[str, int]:
    """
    Count as psycopg_pool does, since the pool was made.

    Args:
        stats: Our counts.
        rechecks: How often a check has failed. psycopg_pool counts each request once, whatever its checks.
    """
    totals = stats.totals

    def total(*names: str) -> Any:
        return sum(getattr(totals, name) for name in names)

    gave_up = total("timed_out", "cancelled", "failed", "refused", "shed")
    return {
        "usage_ms": int(1000 * total("used_seconds")),
        "requests_num": total("acquired") + gave_up + stats.waiting - rechecks,
        "requests_queued": total("queued"),
        "requests_wait_ms": int(1000 * total("waited_seconds", "gave_up_seconds")),
        "requests_errors": gave_up,
        "returns_bad": total("returned_dead", "reset_failures"),
        "connections_num": total("opened", "connect_failures") + stats.connecting,
        "connections_ms": int(1000 * total("connect_seconds")),
        "connections_errors": total("connect_failures"),
        "connections_lost": total("found_dead"),
    }
