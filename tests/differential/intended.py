"""The intended differences, and how each is told from a defect. docs/differences.md has a sentence for each key."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from differential.compare import Difference

__all__ = ["PAGE", "PROGRAMS", "ROWS", "Row", "explain", "keys_of_page"]

PROGRAMS = Path(__file__).with_name("programs")
PAGE = Path(__file__).parents[2] / "docs" / "differences.md"
# The recorders that programs, not callbacks of the pool, register.
_OF_LEASES = {"one", "two"}


@dataclass(frozen=True)
class Row:
    """
    An intended difference.

    Attributes:
        key: That of its row in docs/differences.md.
        explains: Whether a difference is this one.
        parts_ways: Whether what comes after it cannot be compared.
    """

    key: str
    explains: Callable[[Difference], bool]
    parts_ways: bool = False


def _raised(told: Any) -> str | None:
    return told.get("raised") if isinstance(told, dict) else None


def _message(told: Any) -> str:
    return told.get("message", "") if isinstance(told, dict) else ""


def _is_asyncpg(difference: Difference) -> bool:
    return difference.program.kind == "asyncpg"


def _is_refused_option(difference: Difference) -> bool:
    """An option that is no number where one is due, or a negative one: refused at construction."""
    return (
        difference.what == "made"
        and _raised(difference.ours) in ("TypeError", "ValueError")
        and any(
            _message(difference.ours).startswith(f"{name}={value!r}") and _is_odd(value)
            for name, value in difference.program.options.items()
        )
    )


def _is_odd(value: Any) -> bool:
    return value is None or isinstance(value, bool | str | dict) or (isinstance(value, int | float) and value < 0)


def _is_odd_timeout(difference: Difference) -> bool:
    return difference.step.get("kwargs", {}).get("timeout") is True


def _is_spent_timeout(difference: Difference) -> bool:
    timeout = difference.step.get("kwargs", {}).get("timeout", difference.program.options.get("timeout"))
    is_spent = isinstance(timeout, int | float) and timeout <= 0
    return is_spent and difference.what in ("outcome", "counts", "callbacks")


def _are_callbacks_of_leases(difference: Difference) -> bool:
    if difference.what != "callbacks" or not _is_asyncpg(difference):
        return False
    theirs, own = ([told for told in side or [] if told[0] not in _OF_LEASES] for side in _sides(difference))
    return theirs == own


def _sides(difference: Difference) -> tuple[Any, Any]:
    return difference.upstream, difference.ours


def _is_joined_later(difference: Difference) -> bool:
    """A caller's time was up while a connection was opened for it; the connection joins the pool."""
    if not _are_counts(difference) or difference.upstream is None or difference.ours is None:
        return False
    return _size(difference.ours) > _size(difference.upstream) and _has_impatient_caller(difference)


def _has_impatient_caller(difference: Difference) -> bool:
    steps = difference.program.steps
    return any(step["do"] == "cancel" or step.get("kwargs", {}).get("timeout") is not None for step in steps)


def _are_counts_while_closing(difference: Difference) -> bool:
    return _are_counts(difference) and (_has_step(difference, "close") or _has_step(difference, "terminate"))


def _are_counts(difference: Difference) -> bool:
    """Whether it is of how many connections there are: looked at after each step, or because the program asked."""
    if difference.step.get("name") in ("get_size", "get_idle_size", "get_stats", "pop_stats"):
        return difference.what in ("counts", "outcome")
    return difference.what == "counts"


def _size(counts: Any) -> int:
    if not isinstance(counts, dict):
        return counts
    return counts.get("size", counts.get("pool_size", 0))


def _is_returned_in_use(difference: Difference) -> bool:
    return "while a query was running" in str(difference.ours)


def _is_used_after_return(difference: Difference) -> bool:
    if difference.what == "complaints" and difference.step["do"] == "exit":
        return not _is_asyncpg(difference) and _has_step(difference, "putconn")
    return not _is_asyncpg(difference) and "has been returned to pool" in _message(difference.ours)


def _is_left_by_upstream(difference: Difference) -> bool:
    return difference.what == "sessions left" and difference.ours == 0


def _is_waiter_told(difference: Difference) -> bool:
    """The pool was closed; upstream leaves who waits to it until the end of the program cancels them."""
    return (
        _is_asyncpg(difference)
        and difference.step.get("on") == "pool"
        and _raised(difference.ours) == "InterfaceError"
        and "is" in difference.ours
        and (_has_step(difference, "close") or _has_step(difference, "terminate"))
    )


def _has_step(difference: Difference, name: str) -> bool:
    return any(name in (step.get("name"), step["do"]) for step in difference.program.steps)


def _is_out_of_queue(difference: Difference) -> bool:
    """A null pool of upstream's resets a connection for the caller who is gone."""
    if difference.what == "callbacks" and difference.program.kind == "psycopg null":
        return _without_resets(difference.upstream) == _without_resets(difference.ours)
    return _count(difference, "ours", "requests_waiting") < _count(difference, "upstream", "requests_waiting")


def _count(difference: Difference, side: str, name: str) -> int:
    told = getattr(difference, side)
    return told.get(name, 0) if difference.what == "counts" and isinstance(told, dict) else 0


def _without_resets(told: Any) -> list[Any]:
    return [one for one in told or [] if one[0] != "reset"]


def _is_refused_for_the_gone(difference: Difference) -> bool:
    """Upstream's counts callers who are gone, and refuses others for that."""
    return _raised(difference.upstream) == "TooManyRequests" and _raised(difference.ours) != "TooManyRequests"


def _is_busy_in_setup(difference: Difference) -> bool:
    theirs, own = difference.upstream, difference.ours
    if "setup" not in difference.program.callbacks or not (isinstance(theirs, dict) and isinstance(own, dict)):
        return False
    return _are_counts(difference) and own.get("idle", 0) < theirs.get("idle", 0)


def _is_lost_or_closed(difference: Difference) -> bool:
    if _message(difference.upstream) == "the connection is lost" and _raised(difference.ours) == "OperationalError":
        return True
    messages = {"the connection is lost", "the connection is closed"}
    return {_message(difference.upstream), _message(difference.ours)} == messages


def _is_body_error_kept(difference: Difference) -> bool:
    """A method of the pool that lends a connection failed, and so did the release after it."""
    return (
        _is_asyncpg(difference)
        and difference.step.get("on") in ("pool", "lease")
        and (_is_of_reset(difference.upstream) or "reset" in difference.program.callbacks)
        and _raised(difference.upstream) is not None
        and _raised(difference.ours) is not None
    )


def _is_of_reset(told: Any) -> bool:
    """Whether an error may be the reset's: a timeout that the session had set."""
    return _raised(told) in ("QueryCanceledError", "LockNotAvailableError")


def _is_reset_failure_unraised(difference: Difference) -> bool:
    """The release has returned before the reset failed; the connection is still counted then."""
    if _are_counts(difference) and "generate_series(1, 9000)" in _sql_of_steps(difference):
        return _is_asyncpg(difference)
    return (
        _is_asyncpg(difference)
        and difference.what == "outcome"
        and difference.step.get("on") in ("pool", "lease")
        and _is_of_reset(difference.upstream)
        and _raised(difference.ours) is None
    )


_OF_AUTHORITY = ("user", "session user", "is_superuser", "session")
_AUTHORITIES = ("SET ROLE", "SET SESSION AUTHORIZATION")


def _is_role_reset(difference: Difference) -> bool:
    """A lease changed its role or authorization, which asyncpg's reset leaves; what `init` set must come back."""
    if not _is_asyncpg(difference) or "SET " not in _sql_of_steps(difference) or _sets_authority(difference):
        return False
    if difference.what != "outcome" or not any(one in _sql_of_steps(difference) for one in _AUTHORITIES):
        return False
    if _raised(difference.upstream) == "InsufficientPrivilegeError":
        return True
    return _without_authority(difference.upstream) == _without_authority(difference.ours)


def _sql_of_steps(difference: Difference) -> str:
    return " ".join(str(argument) for step in difference.program.steps for argument in step.get("args", []))


def _sets_authority(difference: Difference) -> bool:
    ran = [one for does in difference.program.callbacks.values() for one in does.get("run", [])]
    return any(one.startswith(_AUTHORITIES) for one in ran)


def _without_authority(told: Any) -> Any:
    """A description of a lease, less what tells who it is."""
    if isinstance(told, list):
        return [_without_authority(one) for one in told]
    if isinstance(told, dict):
        parts = {name: part for name, part in told.items() if name not in _OF_AUTHORITY}
        return {name: _without_authority(part) for name, part in parts.items()}
    return re.sub(r" ?(role|session_authorization)=\w+", "", told) if isinstance(told, str) else told


def _is_another_session(difference: Difference) -> bool:
    """Which of the idle connections is lent, if their sessions are alike."""
    theirs, own = difference.upstream, difference.ours
    if not (isinstance(theirs, dict) and isinstance(own, dict) and "session" in theirs and "session" in own):
        return False
    return theirs | {"session": None} == own | {"session": None}


def _is_complaint_of_upstream(difference: Difference) -> bool:
    if difference.what not in ("complaints", "warnings"):
        return False
    return not Counter(difference.ours or []) - Counter(difference.upstream or [])


def _is_cancelled_connect(difference: Difference) -> bool:
    return _raised(difference.upstream) == "CancelledError" and _message(difference.upstream) == "raised by a callback"


def _is_connect_retried(difference: Difference) -> bool:
    """Connecting failed for a caller who has time left."""
    return (
        _is_asyncpg(difference)
        and difference.step.get("name") == "acquire"
        and difference.step.get("kwargs", {}).get("timeout") is not None
        and _raised(difference.upstream) not in (None, "TimeoutError", "CancelledError")
    )


def _is_connected_sooner(difference: Difference) -> bool:
    """A connect failed, of `configure`, or a `check`; upstream tries again after a second."""
    callbacks = difference.program.callbacks
    has_failed = "raises" in callbacks.get("configure", {}) or callbacks.get("check")
    return (
        not _is_asyncpg(difference)
        and bool(has_failed)
        and (
            _raised(difference.upstream) == "PoolTimeout"
            or _are_counts(difference)
            or difference.what in ("ended after", "callbacks")
        )
    )


def _is_program_at_fault(difference: Difference) -> bool:
    """What another connect would fail of as well, from `configure` or libpq."""
    told = (_raised(difference.upstream), _raised(difference.ours))
    return not _is_asyncpg(difference) and told in (("PoolTimeout", "TypeError"), ("PoolTimeout", "ProgrammingError"))


def _is_stuck_upstream(difference: Difference) -> bool:
    return difference.what == "closed" and difference.upstream == "hangs"


def _is_grown_by_check(difference: Difference) -> bool:
    return not _is_asyncpg(difference) and _are_counts(difference) and _has_step(difference, "check")


def _is_resized(difference: Difference) -> bool:
    if difference.what in ("at once", "outcome", "ended after") and _has_step(difference, "resize"):
        return difference.step.get("on") in ("pool", "lease") or "skipped" in _sides(difference)
    return _are_counts(difference) and _has_step(difference, "resize") and _opened_fewer(difference)


def _opened_fewer(difference: Difference) -> bool:
    """Fewer connections, and nobody waits for one."""
    if not isinstance(difference.ours, dict) or not isinstance(difference.upstream, dict):
        return False
    return _size(difference.ours) < _size(difference.upstream) and not difference.ours.get("requests_waiting")


def _is_grown_less(difference: Difference) -> bool:
    if difference.what == "callbacks" and not _is_asyncpg(difference):
        missing = Counter(map(repr, difference.upstream or [])) - Counter(map(repr, difference.ours or []))
        return all("configure" in one for one in missing) and len(difference.ours or []) < len(
            difference.upstream or []
        )
    return not _is_asyncpg(difference) and _are_counts(difference) and _opened_fewer(difference)


def _is_misused_lease(difference: Difference) -> bool:
    """What `connection()` gave was left before it was entered, or entered twice."""
    if difference.step.get("on") != "lease" or difference.step["do"] not in ("enter", "exit"):
        return False
    return _raised(difference.upstream) is not None and _raised(difference.ours) is not None


def _is_infinite(difference: Difference) -> bool:
    return _raised(difference.upstream) == "OverflowError"


def _is_death_noticed_later(difference: Difference) -> bool:
    """Sessions were ended from outside; the death of an idle one is noticed at its next lease, or once a second."""
    return _are_counts(difference) and _has_step(difference, "kill")


ROWS: tuple[Row, ...] = (
    Row("options-checked", _is_refused_option, parts_ways=True),
    Row("timeouts-checked", _is_odd_timeout, parts_ways=True),
    Row("timeout-spent", _is_spent_timeout, parts_ways=True),
    Row("lease-callbacks-end", _are_callbacks_of_leases),
    Row("connect-joins", _is_joined_later),
    Row("closing-counts", _are_counts_while_closing),
    Row("returned-in-use", _is_returned_in_use, parts_ways=True),
    Row("use-after-return", _is_used_after_return, parts_ways=True),
    Row("close-tells-waiters", _is_waiter_told, parts_ways=True),
    Row("timed-out-callers", _is_out_of_queue),
    Row("timed-out-callers", _is_refused_for_the_gone, parts_ways=True),
    Row("setup-counts", _is_busy_in_setup),
    Row("lost-or-closed", _is_lost_or_closed),
    Row("deaths-seen-later", _is_death_noticed_later),
    Row("body-error-kept", _is_body_error_kept, parts_ways=True),
    Row("reset-failure-unraised", _is_reset_failure_unraised),
    Row("role-reset", _is_role_reset, parts_ways=True),
    Row("which-connection", _is_another_session),
    Row("complaints", _is_complaint_of_upstream),
    Row("cancelled-connect", _is_cancelled_connect, parts_ways=True),
    Row("connect-retried", _is_connect_retried, parts_ways=True),
    Row("program-at-fault", _is_program_at_fault, parts_ways=True),
    Row("connects-sooner", _is_connected_sooner, parts_ways=True),
    Row("check-opens-none", _is_grown_by_check),
    Row("resize-opens-missing", _is_resized, parts_ways=True),
    Row("growth", _is_grown_less),
    Row("lease-misuse", _is_misused_lease, parts_ways=True),
    Row("infinite-timeouts", _is_infinite, parts_ways=True),
    Row("nothing-left", _is_left_by_upstream),
    Row("close-ends", _is_stuck_upstream),
)


def explain(difference: Difference) -> Row | None:
    """The row that a difference is of, if any."""
    return next((row for row in ROWS if row.explains(difference)), None)


def keys_of_page() -> list[str]:
    """The keys of the rows in docs/differences.md."""
    return re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text(), re.MULTILINE)
