"""
Defects that are known and not yet mended: the search passes over them.

Each has a program that shows it, in programs/; a test fails when it no longer does, so that the entry is removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from differential.intended import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from differential.compare import Difference

__all__ = ["OPEN"]


def _is_init_forgotten(difference: Difference) -> bool:
    return difference.what == "callbacks" and any("add" in does for does in difference.program.callbacks.values())


def _is_zero(name: str) -> Callable[[Difference], bool]:
    def is_zero(difference: Difference) -> bool:
        value = difference.program.options.get(name)
        return value is not None and value == 0

    return is_zero


def _is_nobody_waiting(difference: Difference) -> bool:
    return difference.program.kind == "psycopg null" and bool(difference.program.options.get("max_waiting"))


def _is_own_query_told(difference: Difference) -> bool:
    return difference.what == "callbacks" and "current_setting('role')" in str(difference.ours)


def _is_idle_while_reset(difference: Difference) -> bool:
    """A release waits for its reset, and the connection is counted as idle."""
    theirs, own = difference.upstream, difference.ours
    return (
        isinstance(theirs, dict)
        and isinstance(own, dict)
        and theirs.get("size") == own.get("size")
        and theirs.get("idle", 0) < own.get("idle", 0)
    )


def _is_authorization_forgotten(difference: Difference) -> bool:
    ran = [one for does in difference.program.callbacks.values() for one in does.get("run", [])]
    return (
        difference.program.kind == "asyncpg"
        and difference.what == "outcome"
        and "SET SESSION AUTHORIZATION lowly" in ran
    )


def _is_impossible_connect_retried(difference: Difference) -> bool:
    """Arguments that no connect can work with, or none that upstream's can."""
    return difference.program.kind == "asyncpg" and any(
        difference.program.options.get(name) == -1
        for name in ("statement_cache_size", "command_timeout", "max_cached_statement_lifetime")
    )


def _is_setup_cut(difference: Difference) -> bool:
    """The query of a `setup` that was cancelled runs on at the server, in a session that nobody counts."""
    return difference.what == "sessions left" and bool(difference.program.callbacks.get("setup"))


def _is_lost_unsaid(difference: Difference) -> bool:
    return _message(difference.upstream) == "the connection is lost" and "ProgrammingError" in str(difference.ours)


def _message(told: object) -> str:
    return str(told.get("message", "")) if isinstance(told, dict) else ""


def _is_reset_though_expired(difference: Difference) -> bool:
    steps = difference.program.steps
    return difference.what == "callbacks" and any(step.get("name") == "expire_connections" for step in steps)


def _is_connecting_counted_as_waiting(difference: Difference) -> bool:
    theirs, own = difference.upstream, difference.ours
    if not (isinstance(theirs, dict) and isinstance(own, dict) and "requests_queued" in theirs | own):
        return False
    return difference.program.kind == "psycopg null" and (
        theirs | {"requests_queued": None} == own | {"requests_queued": None}
    )


def _is_worn_by_us(difference: Difference) -> bool:
    return "max_queries" in difference.program.options


def _is_close_without_timeout(difference: Difference) -> bool:
    steps = difference.program.steps
    return any(step.get("name") in ("close", "wait") and "timeout" in step.get("kwargs", {}) for step in steps)


OPEN: tuple[Row, ...] = (
    Row("own-query-told", _is_own_query_told),
    Row("idle-while-reset", _is_idle_while_reset),
    Row("init-authorization-forgotten", _is_authorization_forgotten, parts_ways=True),
    Row("impossible-connect-retried", _is_impossible_connect_retried, parts_ways=True),
    Row("setup-query-runs-on", _is_setup_cut),
    Row("lost-connection-unsaid", _is_lost_unsaid),
    Row("reset-though-expired", _is_reset_though_expired),
    Row("init-callbacks-vanish", _is_init_forgotten),
    Row("max-lifetime-0", _is_zero("max_lifetime"), parts_ways=True),
    Row("max-idle-0", _is_zero("max_idle"), parts_ways=True),
    Row("null-pool-max-waiting", _is_nobody_waiting, parts_ways=True),
    Row("null-pool-queued", _is_connecting_counted_as_waiting),
    Row("own-query-counted", _is_worn_by_us, parts_ways=True),
    Row("close-without-timeout", _is_close_without_timeout, parts_ways=True),
)
