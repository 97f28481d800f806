"""The intended differences, and how each is told from a defect. docs/differences.md has a sentence for each key."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from differential.stage import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from differential.compare import Difference
    from differential.program import Program, Step
    from differential.stage import Transcript

__all__ = ["PAGE", "PROGRAMS", "ROWS", "Row", "explain", "keys_of_page"]

PROGRAMS = Path(__file__).with_name("programs")
PAGE = Path(__file__).parents[2] / "docs" / "differences.md"
_ENDINGS = ("close", "terminate")
# What may differ because connects come at other times.
_OF_CONNECTIONS = {"size", "idle", "requests_waiting", "requests_queued", "requests_errors", "connections_num"}
_OF_CONNECTIONS |= {"connections_errors", "connections_lost"}
_COUNTS = {"get_size": "size", "get_idle_size": "idle", "pool_size": "size", "pool_available": "idle"}
# A timeout that does not run out in a program.
_LONG_SECONDS = 5
# How often a pool may try again in one step, which is slow; one that connects in a storm does so more often.
_CONNECTS_A_STEP = 4
# The recorders that programs, not callbacks of the pool, register.
_OF_LEASES = {"one", "two"}
_PID = re.compile(r"<pid [^>]+>")
# The pool's own.
_OF_POOLS = ("connect", "init", "setup", "configure", "check", "reset")
_TIMEOUTS = ("TimeoutError", "PoolTimeout")
# Methods of asyncpg's pool that lend a connection for themselves.
_LENDING = (
    "execute",
    "executemany",
    "fetch",
    "fetchval",
    "fetchrow",
    "fetchmany",
    "copy_from_table",
    "copy_from_query",
)
_LENDING += ("copy_to_table", "copy_records_to_table")


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
    """A step, or that which a waiting caller would have been served by."""
    steps = [difference.step, *difference.program.steps[difference.known : difference.known + 1]]
    if difference.step["do"] == "enter":
        steps.append(_maker(difference, difference.number, "lease"))
    return any(step.get("kwargs", {}).get("timeout") is True for step in steps)


def _is_spent_timeout(difference: Difference) -> bool:
    """A caller without time was served, or was lent a connection whose `setup` or `check` then took too long."""
    if difference.what == "callbacks":
        return _ran_more(difference, *_OF_POOLS, most=_times_spent(difference))
    if _are_leases(difference):  # of a caller that waited for the connection; upstream has closed it
        return _is_spent(difference, difference.known) and _is_first_lease(difference, difference.upstream, 0)
    if difference.what == "outcome" and _is_spent(difference, difference.number):
        has_served = difference.step.get("name") != "release" or difference.ours is None
        return has_served and _raised(difference.upstream) in _TIMEOUTS
    theirs, own = (_counted(difference, told) or {} for told in _sides(difference))
    names = {"size", "idle", "connections_num", "requests_errors", "requests_queued"}
    more = {own.get(name, 0) - theirs.get(name, 0) for name in names}
    others = {name for name in theirs.keys() | own.keys() if theirs.get(name) != own.get(name)}
    return others <= names and min(more) >= 0 < max(more) <= _times_spent(difference)


def _times_spent(difference: Difference) -> int:
    return sum(_is_spent(difference, number) for number in range(len(_steps_until(difference))))


def _is_spent(difference: Difference, number: int) -> bool:
    """Whether a step acquires or releases a connection, without time for it."""
    step = difference.program.steps[number] if 0 <= number < len(difference.program.steps) else {}
    if step.get("do") == "enter" and step.get("on") == "lease":
        step = _maker(difference, number, "lease")
    if step.get("on") != "pool" or step.get("name") not in ("acquire", "getconn", "connection", "release", *_LENDING):
        return False
    timeout = step.get("kwargs", {}).get("timeout")
    timeout = difference.program.options.get("timeout") if timeout is None else timeout
    return isinstance(timeout, int | float) and timeout <= 0


def _maker(difference: Difference, number: int, name: str) -> Step:
    """The last step before that kept something by that name."""
    return next((step for step in reversed(difference.program.steps[:number]) if step.get("keep") == name), {})


def _ran_more(difference: Difference, *names: str, most: int) -> bool:
    """Whether all that differs is that these callbacks ran more often, each at most so often."""
    missing, added = _callbacks(difference)
    return not missing and bool(added) and max(added.values()) <= most and all(name in names for name, _ in added)


def _ran_fewer(difference: Difference, *names: str) -> bool:
    """Whether all that differs is that these callbacks ran less often."""
    missing, added = _callbacks(difference)
    return not added and bool(missing) and all(name in names for name, _ in missing)


def _callbacks(difference: Difference, *, of_leases: bool = True) -> tuple[Counter[Any], Counter[Any]]:
    """Which calls of callbacks ours lacks, by name and arguments, and which it has in addition."""
    theirs, own = (
        Counter((name, str(arguments)) for name, arguments in told or [] if of_leases or name not in _OF_LEASES)
        for told in _sides(difference)
    )
    return theirs - own, own - theirs


def _are_callbacks_of_leases(difference: Difference) -> bool:
    if difference.what != "callbacks" or not _is_asyncpg(difference):
        return False
    return _ran_fewer(difference, *_OF_LEASES)


def _is_reset_unheard(difference: Difference) -> bool:
    """A query logger that stays hears of upstream's reset, which begins with a rollback if a transaction is open."""
    if difference.what != "callbacks" or not _is_asyncpg(difference):
        return False
    missing, added = _callbacks(difference, of_leases=False)
    resets = sum(times for (_, told), times in missing.items() if "SELECT pg_advisory_unlock_all()" in told)
    rollbacks = sum(times for (_, told), times in missing.items() if told.startswith("[['ROLLBACK'"))
    return not added and rollbacks <= resets == missing.total() - rollbacks > 0


def _sides(difference: Difference) -> tuple[Any, Any]:
    return difference.upstream, difference.ours


def _is_joined_later(difference: Difference) -> bool:
    """A caller's time was up while a connection was opened for it; the connection joins the pool, and is idle there."""
    return _is_asyncpg(difference) and _has_more(difference, most=_gone_callers(difference))


def _gone_callers(difference: Difference) -> int:
    """How many callers may have gone before they were served; at the end all that wait are cancelled."""
    at_the_end = TASKS if difference.step["do"] == "end" else 0
    return sum(map(_is_impatient, _steps_until(difference))) + at_the_end


def _may_have_gone(difference: Difference) -> bool:
    """Whether a caller may have gone before it was served."""
    timeout = difference.program.options.get("timeout")
    return _gone_callers(difference) > 0 or (isinstance(timeout, int | float) and timeout < _LONG_SECONDS)


def _is_impatient(step: Step) -> bool:
    """Whether a caller may have gone while a connection was opened for it."""
    timeout = step.get("kwargs", {}).get("timeout")
    return step["do"] == "cancel" or (isinstance(timeout, int | float) and timeout < _LONG_SECONDS)


def _are_counts_while_closing(difference: Difference) -> bool:
    """Idle connections are not counted any more; those that come back are closed."""
    gone = _fewer(_without_more(difference, "requests_num", side="upstream"))
    if not _is_closing(difference) or gone is None:
        return False
    return gone["size"] in (0, gone["idle"]) if _is_asyncpg(difference) else gone["idle"] == 0


def _steps_until(difference: Difference) -> Sequence[Step]:
    """What the program has done by then: until the step that differs, or has ended in another way later."""
    return difference.program.steps[: max(difference.number, difference.known) + 1]


def _steps_of(difference: Difference, number: int) -> Sequence[Step]:
    return difference.program.steps[: number + 1]


def _has_more(difference: Difference, most: int) -> bool:
    """Whether all that differs is that ours has more idle connections, at most so many."""
    fewer = _fewer(difference)
    return fewer is not None and 0 < -fewer["idle"] <= most and fewer["size"] == fewer["idle"]


def _fewer(difference: Difference) -> dict[str, int] | None:
    """By how many ours has fewer connections, and idle ones; None if anything else differs."""
    theirs, own = (_counted(difference, told) for told in _sides(difference))
    if theirs is None or own is None or not theirs.keys() & {"size", "idle"}:
        return None
    others = {name for name in theirs.keys() | own.keys() if theirs.get(name, 0) != own.get(name, 0)}
    has_opened_more = theirs.get("connections_num", 0) > own.get("connections_num", 0)
    if not others <= ({"size", "idle", "connections_num"} if has_opened_more else {"size", "idle"}):
        return None
    fewer = {name: theirs[name] - own[name] for name in ("size", "idle") if name in theirs}
    return fewer if len(fewer) == 2 else dict.fromkeys(("size", "idle"), *fewer.values())  # asked for one of them only


def _counted(difference: Difference, told: Any) -> dict[str, Any] | None:
    """Counts, by names that all kinds of pools share; None if they are none."""
    if not _are_counts(difference) or told is None or _raised(told) is not None:
        return None
    if not isinstance(told, dict):
        told = {difference.step["name"]: told}
    return {_COUNTS.get(name, name): count for name, count in told.items()}


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
    """A connection came back, or was closed, while a query of another task ran on it."""
    if _is_asyncpg(difference) or difference.what != "outcome" or not _has_come_back_busy(difference):
        return False
    if _message(difference.upstream) == "connection socket closed":  # as a null pool's, of psycopg's own connections
        return _raised(difference.ours) == "OperationalError"
    return "while a query was running" in _message(difference.ours)


def _is_used_after_return(difference: Difference) -> bool:
    if difference.what == "complaints" and difference.step["do"] == "exit":
        return not _is_asyncpg(difference) and _has_step(difference, "putconn")
    if _is_asyncpg(difference):
        return False
    return "has been returned to pool" in _message(difference.ours) or _is_hit_by_use_after_return(difference)


def _is_hit_by_use_after_return(difference: Difference) -> bool:
    """Upstream lends a connection that the caller before still uses, or closes."""
    if not _has_step(difference, "putconn") or not _is_lease(difference.ours):
        return False
    is_in_use = _is_lease(difference.upstream) and "ACTIVE" in difference.upstream["remembered"]
    return is_in_use or (_has_step(difference, "close") and _message(difference.upstream) == "the connection is closed")


def _is_returned_twice(difference: Difference) -> bool:
    """Upstream takes a broken connection back any number of times, opens another, and counts one twice."""
    if not _is_asyncpg(difference) and difference.what == "counts" and isinstance(difference.upstream, dict):
        return difference.upstream.get("pool_available", 0) > difference.upstream.get("pool_size", 0)
    if _acquires(difference) and difference.what == "outcome":  # the other connection went to a caller who waited
        is_served = _is_lease(difference.upstream) and _raised(difference.ours) is not None
        return not _is_asyncpg(difference) and is_served and _has_returned_one_twice(difference)
    is_refused = "doesn't come from any pool" in _message(difference.ours) and difference.upstream is None
    return not _is_asyncpg(difference) and difference.step.get("name") == "putconn" and is_refused


def _has_returned_one_twice(difference: Difference) -> bool:
    returned: set[str] = set()
    for step in difference.program.steps:
        if step.get("name") == "putconn" and isinstance(step["args"][0], dict):
            name = step["args"][0].get("name")
            if name in returned:
                return True
            returned.add(name)
        returned.discard(step.get("keep", ""))
    return False


def _is_returned_twice_at_once(difference: Difference) -> bool:
    """While `reset` runs, or waits for its turn, upstream takes a connection back again, and resets it again."""
    if _is_asyncpg(difference) or "reset" not in difference.program.callbacks:
        return False
    returned: set[str] = set()
    times = 0
    for number, step in enumerate(_steps_of(difference, difference.known)):
        names = {argument["name"] for argument in step.get("args", ()) if step.get("name") == "putconn" and argument}
        times += bool(names & returned) and all(_has_succeeded(run, number) for run in _runs(difference))
        returned = (returned | names) - {step.get("keep")}
    if difference.what == "callbacks":
        missing, _ = _callbacks(difference)
        return _ran_fewer(difference, "reset") and missing.total() <= times
    is_of_lease = _are_leases(difference) or _differ_only_in(difference, _OF_CONNECTIONS | {"returns_bad"})
    return times > 0 and is_of_lease


def _has_succeeded(run: Transcript, number: int) -> bool:
    return (number, "outcome") in run.entries and run.outcome(number) is None


def _is_left_by_upstream(difference: Difference) -> bool:
    return difference.what == "sessions left" and difference.ours == 0


def _is_waiter_told(difference: Difference) -> bool:
    """The pool was closed; upstream lets who waits for it wait on, or opens a connection before it says so."""
    if difference.what == "callbacks" and _is_asyncpg(difference) and _is_closing(difference):
        return _ran_fewer(difference, "connect", "init")
    own = difference.runs.ours.outcome(difference.number)
    is_told = _is_asyncpg(difference) and difference.step.get("on") in ("pool", "lease") and _is_refused_by_us(own)
    if difference.what == "ended after":
        return is_told and _is_sooner(difference)
    if difference.what == "still busy":
        return is_told and difference.upstream
    return (
        is_told
        and difference.what == "outcome"
        and (_has_step(difference, "close") or _has_step(difference, "terminate"))
    )


def _is_refused_by_us(told: Any) -> bool:
    return _raised(told) == "InterfaceError" and "is" in told


def _is_sooner(difference: Difference) -> bool:
    """Whether a step ended sooner in ours."""
    return difference.what == "ended after" and (difference.ours or 0) < (difference.upstream or 0)


def _is_closing(difference: Difference) -> bool:
    return any(step.get("on") == "pool" and step.get("name") in _ENDINGS for step in _steps_until(difference))


def _has_step(difference: Difference, name: str) -> bool:
    return any(name in (step.get("name"), step["do"]) for step in difference.program.steps)


def _is_out_of_queue(difference: Difference) -> bool:
    """A null pool of upstream's resets a connection for the caller who is gone, and opens another if that fails."""
    if difference.what == "callbacks" and difference.program.kind == "psycopg null":
        missing, _ = _callbacks(difference)
        return _ran_fewer(difference, "reset", "configure") and missing.total() <= _gone_callers(difference)
    theirs, own = difference.upstream, difference.ours
    if not _are_counts(difference) or not (isinstance(theirs, dict) and isinstance(own, dict)):
        return False
    if own.get("requests_waiting", 0) >= theirs.get("requests_waiting", 0) or not _may_have_gone(difference):
        return False
    rest = replace(difference, upstream=theirs | {"requests_waiting": own["requests_waiting"]})
    return rest.upstream == own or explain(rest) is not None


def _is_refused_for_the_gone(difference: Difference) -> bool:
    """Upstream's counts callers who are gone, and refuses others for that."""
    if difference.what == "at once" and "max_waiting" in difference.program.options:
        has_gone = any(map(_is_impatient, difference.program.steps[: difference.number]))
        return has_gone and _sides(difference) == (None, "pending")
    return _raised(difference.upstream) == "TooManyRequests" and _raised(difference.ours) != "TooManyRequests"


def _is_of_another_reset(difference: Difference) -> bool:
    """A null pool of upstream's calls `reset` for those who are gone, so it raises for another connection."""
    if difference.program.kind != "psycopg null" or not _are_leases(difference):
        return False
    times = [_times_called(run, "reset") for run in _runs(difference)]
    is_for_the_gone = times[0] > times[1] and _gone_callers(difference) > 0 and _has_raised(difference, "reset")
    is_new = [_is_first_lease(difference, told, side) for side, told in enumerate(_sides(difference))]
    return is_for_the_gone and is_new[0] != is_new[1]


def _is_busy_in_setup(difference: Difference) -> bool:
    fewer = _fewer(difference)
    if "setup" not in difference.program.callbacks or fewer is None or fewer["idle"] <= 0:
        return False
    return fewer["size"] == 0 or difference.step.get("name") == "get_idle_size"


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
        and (_is_of_reset(difference.upstream) or _is_of_own_reset(difference))
        and _raised(difference.upstream) is not None
        and _raised(difference.ours) is not None
    )


def _is_of_own_reset(difference: Difference) -> bool:
    """Whether an error may be that of a `reset` of the program's."""
    does = difference.program.callbacks.get("reset", {})
    return "run" in does or ("raises" in does and _message(difference.upstream) == "raised by a callback")


def _is_of_reset(told: Any) -> bool:
    """Whether an error may be the reset's: a timeout that the session had set."""
    return _raised(told) in ("QueryCanceledError", "LockNotAvailableError")


def _is_reset_failure_unraised(difference: Difference) -> bool:
    """The release has returned before the reset failed; the connection is still counted then."""
    if "generate_series(1, 9000)" in _sql_of_steps(difference) and _is_asyncpg(difference):
        if _are_leases(difference):  # upstream's reset took longer than the lease had allowed
            is_kept = not _is_first_lease(difference, difference.ours, 1)
            return is_kept and _is_first_lease(difference, difference.upstream, 0)
        if _are_counts(difference):
            return _differ_only_in(difference, {"size", "idle"})
        if difference.what == "callbacks":  # called when the connection was nobody's any more
            missing, added = _callbacks(difference)
            as_own = {
                (name, told.replace("PoolConnectionProxy", "Connection")): n for (name, told), n in missing.items()
            }
            return bool(missing) and as_own == added
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
    if not _is_asyncpg(difference) or "SET " not in _sql_of_steps(difference):
        return False
    if _sets_authority(difference) and not _is_lowly(difference.ours):
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


def _is_lowly(told: Any) -> bool:
    """Whether a lease began as the role that callbacks set."""
    return _is_lease(told) and told["remembered"][1]["is_superuser"] == "off"


def _without_authority(told: Any) -> Any:
    """A description of a lease, less what tells who it is."""
    if isinstance(told, list):
        return [_without_authority(one) for one in told]
    if isinstance(told, dict):
        parts = {name: part for name, part in told.items() if name not in _OF_AUTHORITY}
        return {name: _without_authority(part) for name, part in parts.items()}
    return re.sub(r" ?(role|session_authorization)=\w+", "", told) if isinstance(told, str) else told


def _is_another_session(difference: Difference) -> bool:
    """Which of the idle connections is lent, if their sessions are alike; or what tells later that it was another."""
    theirs, own = difference.upstream, difference.ours
    if difference.what == "outcome" and "<pid " in str(theirs):
        is_alike = _PID.sub("<pid>", str(theirs)) == _PID.sub("<pid>", str(own))
        return is_alike and _have_leased_others(difference)
    return _are_leases(difference) and theirs | {"session": None} == own | {"session": None} and _had_choice(difference)


def _had_choice(difference: Difference) -> bool:
    """Whether several connections may have come free; or one, but another, as another was lent before."""
    number = difference.number
    if any(_served_at(run, difference.known) > 1 for run in _runs(difference)):
        return True
    if _have_leased_others(difference):
        return True
    return any(_idle_at_most(difference.program, run, number) > 1 for run in _runs(difference))


def _have_leased_others(difference: Difference) -> bool:
    """Whether the leases before were of other sessions in the one pool than in the other."""
    theirs, own = (_leased(run, difference.number) for run in _runs(difference))
    return theirs != own


def _served_at(run: Transcript, known: int) -> int:
    """How many leases began during a step."""
    then = [key for key in run.entries if key[1] == "outcome" and run.known[key] == known]
    return sum(_is_lease(run.entries[key]) for key in then)


def _leased(run: Transcript, number: int) -> list[int]:
    """Which sessions were lent before a step, in order."""
    told = sorted((step, told) for (step, what), told in run.entries.items() if what == "outcome" and step < number)
    return [one["session"] for _, one in told if _is_lease(one)]


def _idle_at_most(program: Program, run: Transcript, number: int) -> int:
    """How many connections may be idle when a step begins: those last counted, and those given back since."""
    last, idle = _last_counted(run, number)
    return idle + sum(map(_is_return, program.steps[last + 1 : number]))


def _last_counted(run: Transcript, number: int) -> tuple[int, int]:
    """The last step before another after which connections were counted, and how many were idle."""
    last = max((step for step, what in run.entries if what == "counts" and step < number), default=-1)
    counts = run.entries.get((last, "counts"))
    return last, 0 if counts is None or _raised(counts) else counts.get("idle", counts.get("pool_available", 0))


def _is_failure_for_another(difference: Difference) -> bool:
    """A `configure` failed, for one of several callers that waited at that time."""
    if _is_asyncpg(difference) or difference.what != "outcome" or not _has_raised(difference, "configure"):
        return False
    is_told = [_message(told) == "raised by a callback" for told in _sides(difference)]
    return (
        _acquires(difference)
        and is_told[0] != is_told[1]
        and any(_waiting_at(difference, run) > 1 for run in _runs(difference))
    )


def _waiting_at(difference: Difference, run: Transcript) -> int:
    """How many callers waited for a connection when a difference came to be known."""
    steps = enumerate(difference.program.steps)
    waiting = [number for number, step in steps if step.get("on") in ("pool", "lease") and "keep" in step]
    return sum(number == difference.number or run.is_busy(number, difference.known) for number in waiting)


def _are_leases(difference: Difference) -> bool:
    return all(_is_lease(told) for told in _sides(difference))


def _is_lease(told: Any) -> bool:
    return isinstance(told, dict) and "session" in told


def _is_of_another_age(difference: Difference) -> bool:
    """One of them is new, and what was set when it was opened lasts until its first reset; or upstream's is dead."""
    if not _are_leases(difference):
        return False
    theirs, own = difference.upstream, difference.ours
    states = [told.get("seen", {}).get("state") for told in (theirs, own)]
    if sorted(map(str, states)) == ["['idle']", "[]"]:
        return _has_lost_sessions(difference) and _had_choice(difference)
    # What leases of psycopg's pool set lasts; so does what `init` sets, until asyncpg's first reset.
    is_set_up = any("run" in difference.program.callbacks.get(name, {}) for name in ("connect", "init"))
    is_one_new = _is_first_lease(difference, theirs, 0) != _is_first_lease(difference, own, 1)
    return (is_set_up or not _is_asyncpg(difference)) and is_one_new and _had_choice(difference)


def _are_warnings_of_others(difference: Difference) -> bool:
    """A release warns of listeners that `init` has added, until the first reset; another connection was lent."""
    if difference.what != "warnings" or not _is_asyncpg(difference):
        return False
    callbacks = [difference.program.callbacks.get(name, {}) for name in ("connect", "init")]
    adds_listeners = any("listener" in added for does in callbacks for added in does.get("add", []))
    are_alike = {*(difference.upstream or []), *(difference.ours or [])} == {"InterfaceWarning"}
    is_of_another = _have_leased_others(difference) or _has_lost_sessions(difference)
    return are_alike and adds_listeners and is_of_another


def _is_first_lease(difference: Difference, lease: Any, side: int) -> bool:
    return lease["session"] not in _leased(_runs(difference)[side], difference.number)


def _is_another_dead(difference: Difference) -> bool:
    """A pool without a `check` lends the dead as well; one side lends one of them, the other a live one."""
    if _is_asyncpg(difference) or "check" in difference.program.callbacks or not _has_lost_sessions(difference):
        return False
    is_one_dead = any(_raised(told) in ("AdminShutdown", "OperationalError") for told in _sides(difference))
    return is_one_dead and any(map(_is_lease, _sides(difference))) and _had_choice(difference)


def _is_complaint_of_upstream(difference: Difference) -> bool:
    if difference.what not in ("complaints", "warnings"):
        return False
    return not Counter(difference.ours or []) - Counter(difference.upstream or [])


def _is_cancelled_connect(difference: Difference) -> bool:
    """A callback raised a `CancelledError`, while a connection was opened or reset."""
    reset = difference.program.callbacks.get("reset", {})
    if "raises" in reset and reset.get("error") == "cancelled" and difference.what == "outcome":
        is_returned = _is_asyncpg(difference) and difference.step.get("on") in ("pool", "lease")
        return is_returned and _raised(difference.upstream) == "CancelledError" and _raised(difference.ours) is None
    is_told = _message(difference.ours).startswith("a callback, or what it awaits, raised CancelledError")
    theirs = difference.upstream
    has_raised = _raised(theirs) == "CancelledError" and _message(theirs) == "raised by a callback"
    return has_raised and (is_told or _has_time(difference))


def _has_time(difference: Difference) -> bool:
    """Whether a caller gave a timeout, so that another connect is tried."""
    return difference.step.get("kwargs", {}).get("timeout") is not None


def _is_connect_retried(difference: Difference) -> bool:
    """Connecting failed for a caller who has time left."""
    if not _is_asyncpg(difference) or difference.step.get("kwargs", {}).get("timeout") is None:
        return False
    if difference.what == "at once":
        return _may_be_refused(difference) and _sides(difference) == (None, "pending")
    has_failed = _raised(difference.upstream) not in (None, "TimeoutError", "CancelledError")
    return difference.step.get("name") == "acquire" and has_failed and _may_be_refused(difference)


def _is_paced(difference: Difference) -> bool:
    """A connect was refused; the next caller's is not tried at once, and that caller hears of it later."""
    if not _is_asyncpg(difference) or difference.step.get("on") not in ("pool", "lease"):
        return False
    if difference.what == "at once":
        return _may_be_refused(difference) and _sides(difference) == (None, "pending")
    is_later = difference.what == "ended after" and (difference.ours or 0) > (difference.upstream or 0)
    return is_later and _may_be_refused(difference)


def _may_be_refused(difference: Difference) -> bool:
    """Whether connecting may fail: the program has given another address, or has a callback that fails."""
    callbacks = [difference.program.callbacks.get(name, {}) for name in ("connect", "init")]
    has_moved = any(step.get("name") == "set_connect_args" for step in _steps_until(difference))
    return has_moved or any("raises" in does for does in callbacks)


def _has_connected_sooner(difference: Difference) -> bool:
    """A connect failed, of `configure`, or a `check`; upstream tries again after a second."""
    if _is_asyncpg(difference) or not (_has_failed_to_connect(difference) or _has_failed_check(difference)):
        return False
    if difference.what == "callbacks":
        missing, added = _callbacks(difference)
        most = _CONNECTS_A_STEP * (len(difference.program.steps) + 1)
        return added.total() <= most and all(name in ("configure", "check", "reset") for name, _ in missing | added)
    return _differ_only_in(difference, _OF_CONNECTIONS)


def _is_served_sooner(difference: Difference) -> bool:
    """And so a caller was served that waits for longer, or in vain, with upstream's."""
    if _is_asyncpg(difference) or not (_has_failed_to_connect(difference) or _has_failed_check(difference)):
        return False
    if difference.what in ("at once", "still busy", "ended after"):
        return _acquires(difference) and (_is_sooner(difference) or difference.upstream in (True, "pending"))
    is_late = _raised(difference.upstream) in ("PoolTimeout", "CancelledError")
    return is_late and _acquires(difference) and (difference.ours is None or _is_lease(difference.ours))


def _acquires(difference: Difference) -> bool:
    """Whether a step waits for a connection."""
    step = difference.step
    return step["do"] == "enter" or (
        step.get("on") == "pool" and step.get("name") in ("acquire", "getconn", "wait", "open")
    )


def _differ_only_in(difference: Difference, names: set[str]) -> bool:
    theirs, own = (_counted(difference, told) for told in _sides(difference))
    if theirs is None or own is None:
        return False
    return {name for name in theirs.keys() | own.keys() if theirs.get(name, 0) != own.get(name, 0)} <= names


def _has_failed_to_connect(difference: Difference) -> bool:
    """Whether a `configure` raised, or left a transaction open."""
    does = difference.program.callbacks.get("configure", {})
    return ("run" in does and "await" not in does) or _has_raised(difference, "configure")


def _has_failed_check(difference: Difference) -> bool:
    """Whether a `check` raised, of itself, of its statement, or of a session that was lost."""
    does = difference.program.callbacks.get("check")
    if does is None:
        return False
    return _has_raised(difference, "check") or "run" in does or _has_lost_sessions(difference)


def _has_raised(difference: Difference, name: str) -> bool:
    """Whether a callback was called so often that it raised."""
    raises = difference.program.callbacks.get(name, {}).get("raises", ())
    first = 1 if raises == "always" else min(raises, default=99)
    return any(first <= _times_called(run, name) for run in _runs(difference))


def _times_called(run: Transcript, name: str) -> int:
    return sum(called == name for (_, what), told in run.entries.items() if what == "callbacks" for called, _ in told)


def _runs(difference: Difference) -> tuple[Transcript, Transcript]:
    return difference.runs.upstream, difference.runs.ours


def _is_program_at_fault(difference: Difference) -> bool:
    """What another connect would fail of as well, from `configure` or libpq."""
    told = (_raised(difference.upstream), _raised(difference.ours))
    return not _is_asyncpg(difference) and told in (("PoolTimeout", "TypeError"), ("PoolTimeout", "ProgrammingError"))


def _is_reset_of_the_closed(difference: Difference) -> bool:
    """A connection came back that could not be rolled back, or that a query was running on: upstream resets it too."""
    if difference.what != "callbacks" or _is_asyncpg(difference) or "reset" not in difference.program.callbacks:
        return False
    # A transaction in two phases, and a block of the program's, cannot be rolled back by the pool.
    blocks = ("tpc_begin", "transaction", "pipeline")
    cannot_be_rolled_back = _has_lost_sessions(difference) or any(_has_step(difference, name) for name in blocks)
    may_be_closed = cannot_be_rolled_back or "pg_sleep" in _sql_of_steps(difference)
    missing, _ = _callbacks(difference)
    return may_be_closed and _ran_fewer(difference, "reset") and missing.total() <= _returns(difference)


def _returns(difference: Difference) -> int:
    """How often connections have come back by then; at the end all do."""
    steps = _steps_until(difference)
    back = sum(map(_is_return, steps))
    return back + (len(steps) if difference.step["do"] == "end" else 0)


def _is_counted_as_returned(difference: Difference) -> bool:
    """A connection failed its `check`, and then its `reset`: upstream counts it as lost, ours as returned."""
    theirs, own = difference.upstream, difference.ours
    is_counted = _are_counts(difference) and isinstance(theirs, dict) and isinstance(own, dict)
    if not is_counted or not _has_failed_check(difference) or "reset" not in difference.program.callbacks:
        return False
    more = own.get("returns_bad", 0) - theirs.get("returns_bad", 0)
    fewer = theirs.get("connections_lost", 0) - own.get("connections_lost", 0)
    equal = {name: own.get(name, 0) for name in ("returns_bad", "connections_lost")}
    rest = replace(difference, upstream=theirs | equal)
    return 0 < more == fewer and (_differ_only_in(rest, set()) or explain(rest) is not None)


def _is_stuck_in_copy(difference: Difference) -> bool:
    """A COPY's output failed when all data had come: upstream's release waits for the answer to a cancel request."""
    failed = [
        step
        for number, step in enumerate(_steps_until(difference))
        if _message(difference.runs.ours.outcome(number)) == "the sink fails"
    ]
    is_of_pool = difference.step in failed and difference.step["on"] == "pool"
    if not _is_asyncpg(difference) or not failed or not (is_of_pool or _is_return(difference.step)):
        return False
    if difference.what == "outcome":
        return _raised(difference.upstream) in ("CancelledError", "TimeoutError")
    is_timed = difference.what in ("at once", "still busy", "ended after")
    return is_timed and (_is_sooner(difference) or difference.upstream in (True, "pending"))


def _is_dead_not_lent(difference: Difference) -> bool:
    """A session was lost, and the `check`, which makes no round trip, has not noticed."""
    if _is_asyncpg(difference) or "check" not in difference.program.callbacks or not _has_lost_sessions(difference):
        return False
    if _are_leases(difference):
        is_dead = difference.upstream.get("seen", {"state": []})["state"] == []
        was_lent = not _is_first_lease(difference, difference.upstream, 0)
        return is_dead and was_lent and _is_first_lease(difference, difference.ours, 1)
    return _raised(difference.upstream) in ("AdminShutdown", "OperationalError") and _is_lease(difference.ours)


def _is_stuck_upstream(difference: Difference) -> bool:
    """A callback runs for long: upstream's `close()` waits for it; a query of `reset` that is cut runs on."""
    if difference.what == "sessions left":
        ran = str(difference.program.callbacks.get("reset"))
        return "pg_sleep" in ran and difference.upstream == 0 and difference.ours <= _most_connections(difference)
    return difference.what == "closed" and difference.upstream == "hangs"


def _most_connections(difference: Difference) -> int:
    sizes = [step["args"] for step in difference.program.steps if step.get("name") == "resize"]
    return max([difference.program.options["max_size"] or 99, *(int(size or 0) for args in sizes for size in args)])


def _is_closed_alone(difference: Difference) -> bool:
    """One of two `close()` was cancelled: upstream's other one ends as if it had been, too."""
    closes = [number for number, step in enumerate(difference.program.steps) if step.get("name") == "close"]
    others = [difference.runs.ours.outcome(number) for number in closes if number != difference.number]
    is_close = _is_asyncpg(difference) and difference.number in closes and difference.what == "outcome"
    is_spared = _raised(difference.upstream) == "CancelledError" and difference.ours is None
    return is_close and is_spared and any(_raised(other) == "CancelledError" for other in others)


def _is_of_left_codec(difference: Difference) -> bool:
    """A lease has set a codec, which upstream keeps for the next."""
    has_set = any("codec" in step.get("name", "") for step in _steps_until(difference))
    if not _is_asyncpg(difference) or not has_set or difference.what != "outcome":
        return False
    # By the codec of hstore an integer 0 is an empty dictionary.
    if _has_step(difference, "set_builtin_type_codec") and "{}" in str(difference.upstream):
        return str(difference.upstream).replace("{}", "0") == str(difference.ours)
    return "decoded " in str(difference.upstream) and _decoded(difference.upstream) == _decoded(difference.ours)


def _decoded(told: Any) -> str:
    """A description less what the codec of `values.py` adds."""
    return repr(told).replace("decoded ", "").replace("'", "")


def _is_of_ended_statement(difference: Difference) -> bool:
    """A lease had cached statements ended; upstream still uses them, ours has them prepared again after some leases."""
    sql = f"{_sql_of_steps(difference)} {difference.program.callbacks}"
    has_ended = any(one in sql for one in ("DEALLOCATE ALL", "DISCARD ALL"))
    has_changed = any(f"SET {name} " in sql for name in ("client_encoding", "TimeZone", "standard_conforming_strings"))
    has_changed |= any("codec" in step.get("name", "") for step in _steps_until(difference))
    is_unknown = [_raised(told) == "InvalidSQLStatementNameError" for told in _sides(difference)]
    return _is_asyncpg(difference) and has_ended and has_changed and is_unknown == [True, False]


def _is_grown_by_check(difference: Difference) -> bool:
    checks = sum(step.get("on") == "pool" and step.get("name") == "check" for step in _steps_until(difference))
    fewer = _fewer(difference)
    return not _is_asyncpg(difference) and fewer is not None and all(0 <= one <= checks for one in fewer.values())


def _is_resized(difference: Difference) -> bool:
    if not any(step.get("name") == "resize" for step in _steps_of(difference, difference.known)):
        return False
    if difference.what in ("at once", "still busy", "ended after"):
        return _acquires(difference)
    if _are_leases(difference):
        is_new = [_is_first_lease(difference, told, side) for side, told in enumerate(_sides(difference))]
        if is_new == [False, True]:  # waited as `max_size` grew: ours got one of its own, upstream's one that came back
            return _has_raised_max_size(difference, since=difference.number)
        return is_new == [True, False]  # upstream's got the one above `max_size`, ours one that came back
    if difference.what == "outcome":
        return _acquires(difference) and _is_lease(difference.upstream) != _is_lease(difference.ours)
    return _are_counts(difference) and (_opened_fewer(difference) or _has_served_waiting(difference))


def _opened_fewer(difference: Difference) -> bool:
    """Fewer connections, and nobody waits for one."""
    if not isinstance(difference.ours, dict) or not isinstance(difference.upstream, dict):
        return False
    return _size(difference.ours) < _size(difference.upstream) and not difference.ours.get("requests_waiting")


def _has_served_waiting(difference: Difference) -> bool:
    """Callers waited as `max_size` grew: ours got connections of their own, upstream's wait on."""
    theirs, own = (_counted(difference, told) for told in _sides(difference))
    if theirs is None or own is None or not _has_raised_max_size(difference):
        return False
    served = theirs.get("requests_waiting", 0) - own.get("requests_waiting", 0)
    is_only_that = _differ_only_in(difference, {"size", "requests_waiting", "connections_num"})
    return is_only_that and 0 < served == own.get("size", 0) - theirs.get("size", 0)


def _has_raised_max_size(difference: Difference, since: int = 0) -> bool:
    """Whether the pool took a `resize` from a step on, and by then, that raised its `max_size`."""
    sizes = _max_sizes(difference)
    return any(number >= since and later > earlier for (_, earlier), (number, later) in pairwise(sizes))


def _max_sizes(difference: Difference) -> list[tuple[int, float]]:
    """Each `max_size` that the pool had by then, and the step that set it; the opening is -1."""
    sizes = [(-1, difference.program.options["max_size"] or math.inf)]  # 0 means no limit
    for number, step in enumerate(_steps_until(difference)):
        if step.get("name") == "resize" and _has_succeeded(difference.runs.ours, number):
            sizes.append((number, step["kwargs"].get("max_size") or step["args"][0] or math.inf))
    return sizes


def _is_grown_less(difference: Difference) -> bool:
    """Connections that nobody waits for, and that are not missing of `min_size`, are not there."""
    if _is_asyncpg(difference) or not _has_had_to_grow(difference):
        return False
    if difference.what == "callbacks":
        missing, _ = _callbacks(difference)
        most = _acquires_until(difference) + _returns(difference)
        return _ran_fewer(difference, "configure") and missing.total() <= most
    fewer = _fewer(_without_more(difference, "requests_queued", side="ours"))
    if fewer is None or not fewer["size"] >= fewer["idle"] >= 0:
        return False
    own = _counted(difference, difference.ours) or {}
    return not own.get("requests_waiting") and own.get("size", _floor(difference)) >= _floor(difference)


def _has_had_to_grow(difference: Difference) -> bool:
    """Whether a caller found no idle connection, or connections were closed, which upstream replaces."""
    program = difference.program
    has_closed = _has_lost_sessions(difference) or any(_has_step(difference, name) for name in ("close", "drain"))
    if has_closed or "reset" in program.callbacks or program.options.keys() & {"max_lifetime", "max_idle"}:
        return True
    return any(
        step.get("name") in ("getconn", "connection") and not _last_counted(difference.runs.upstream, number)[1]
        for number, step in enumerate(_steps_until(difference))
    )


def _without_more(difference: Difference, name: str, *, side: str) -> Difference:
    """The same but for one of the counts, if it is the one side's that is the larger."""
    told = {"upstream": difference.upstream, "ours": difference.ours}
    if not all(isinstance(counts, dict) for counts in told.values()):
        return difference
    counts = {one: told[one].get(name, 0) for one in told}
    if counts[side] < max(counts.values()):
        return difference
    return replace(difference, upstream=told["upstream"] | {name: counts["ours"]})


def _is_spared_a_failure(difference: Difference) -> bool:
    """A connection came back for a caller of a null pool, for whom upstream's opened one, and `configure` raised."""
    has_failed = "raises" in difference.program.callbacks.get("configure", {})
    is_told = _message(difference.upstream) == "raised by a callback" and _is_lease(difference.ours)
    return difference.program.kind == "psycopg null" and has_failed and is_told


def _has_got_the_returned(difference: Difference) -> bool:
    """While a null pool opened a connection for a caller, another came back: ours was lent that, upstream's not."""
    if difference.program.kind != "psycopg null" or not _are_leases(difference) or not _has_room(difference):
        return False
    is_new = [_is_first_lease(difference, told, side) for side, told in enumerate(_sides(difference))]
    since = difference.program.steps[difference.number + 1 : difference.known + 1]
    return is_new == [True, False] and any(map(_is_return, since))


def _has_room(difference: Difference) -> bool:
    """Whether `max_size` allowed to open a connection for the caller at once."""
    last, _ = _last_counted(difference.runs.upstream, difference.number)
    size = _size(difference.runs.upstream.entries[last, "counts"])
    added = sum(step.get("name") == "getconn" for step in difference.program.steps[last + 1 : difference.number + 1])
    return size + added <= [most for number, most in _max_sizes(difference) if number < difference.number][-1]


def _is_counted_sooner(difference: Difference) -> bool:
    """A null pool of ours counts connections that are being opened for callers."""
    fewer = _fewer(difference)
    if difference.program.kind != "psycopg null" or fewer is None or fewer["idle"]:
        return False
    under_way = [number for number, step in enumerate(_steps_of(difference, difference.number)) if "keep" in step]
    connecting = sum(difference.runs.ours.is_busy(number, difference.number) for number in under_way)
    return 0 < -fewer["size"] <= connecting


def _is_served_by_floor(difference: Difference) -> bool:
    """Connections were closed; upstream opens one for each caller beside those for `min_size`, which are idle."""
    fewer = _fewer(difference)
    if not _is_asyncpg(difference) or not _has_closed_some(difference):
        return False
    if difference.what == "callbacks":
        missing, _ = _callbacks(difference)
        return (
            _floor(difference) > 0
            and _ran_fewer(difference, "connect", "init")
            and missing.total() <= _acquires_until(difference)
        )
    if fewer is None:
        return False
    own = _counted(difference, difference.ours) or {}
    return fewer["size"] == fewer["idle"] > 0 and own.get("size", 0) >= _floor(difference) > 0


def _is_failure_of_another_connect(difference: Difference) -> bool:
    """The connect that failed was for a caller in the one pool, for `min_size` in the other."""
    if not _is_asyncpg(difference) or not _acquires(difference) or not _has_closed_some(difference):
        return False
    has_raised = _has_raised(difference, "init") or _has_raised(difference, "connect")
    is_told = [_message(told) == "raised by a callback" for told in _sides(difference)]
    are_leases = [_is_lease(told) for told in _sides(difference)]
    return _floor(difference) > 0 and has_raised and any(is_told) and are_leases == [not one for one in is_told]


def _acquires_until(difference: Difference) -> int:
    """How often callers have asked for a connection by then."""
    names = ("acquire", "getconn", "connection", *_LENDING)
    return sum(step.get("on") == "pool" and step.get("name") in names for step in _steps_until(difference))


def _waiting_at_the_end(difference: Difference, run: Transcript) -> int:
    """How many steps of the pool's are cancelled at the end of the program."""
    end = len(difference.program.steps)
    steps = enumerate(difference.program.steps)
    return sum(step.get("on") == "pool" and run.is_busy(number, end) for number, step in steps)


def _is_served_in_order(difference: Difference) -> bool:
    """Several callers waited, and upstream served another one first, as a connection for `min_size` came between."""
    if not _is_asyncpg(difference) or _floor(difference) == 0 or not _has_closed_some(difference):
        return False
    if difference.what == "callbacks":  # of leases that were cancelled at the end, while `setup` ran
        missing, added = _callbacks(difference)
        calls = missing | added
        is_of_one = calls.total() == 1 and {name for name, _ in calls} <= {"setup", "init", "connect"}
        return is_of_one and all(_waiting_at_the_end(difference, run) > 1 for run in _runs(difference))
    if difference.what != "outcome":
        return False
    if difference.step.get("on") == "pool" and difference.step.get("name") in _LENDING:
        is_in_vain = [_raised(told) in ("CancelledError", "TimeoutError") for told in _sides(difference)]
        return is_in_vain[0] != is_in_vain[1] and all(_served_at(run, difference.known) for run in _runs(difference))
    return any(
        _is_lease(difference.runs.upstream.outcome(number)) == _is_lease(difference.ours)
        and _is_lease(difference.runs.ours.outcome(number)) == _is_lease(difference.upstream)
        and _is_lease(difference.upstream) != _is_lease(difference.ours)
        and _is_lease(difference.ours) == (difference.number < number)
        for number in range(len(difference.program.steps))
    )


def _has_closed_some(difference: Difference) -> bool:
    """Whether asyncpg's pool may have closed connections that `min_size` then lacks."""
    program = difference.program
    has_ended = any(
        step.get("name") in ("close", "terminate", "expire_connections") for step in _steps_until(difference)
    )
    wears_out = program.options.keys() & {"max_queries", "max_inactive_connection_lifetime"}
    fails = any("raises" in does or "run" in does for does in program.callbacks.values())
    return _has_lost_sessions(difference) or has_ended or bool(wears_out) or fails or _has_come_back_busy(difference)


def _floor(difference: Difference) -> int:
    """The pool's `min_size` by then."""
    resizes = [step for step in _steps_until(difference) if step.get("name") == "resize"]
    asked = [difference.program.options, *({"min_size": step["args"][0]} for step in resizes if step.get("args"))]
    return int(asked[-1]["min_size"])


def _is_busy_returned(difference: Difference) -> bool:
    """A connection came back while a query ran on it, to a pool with a `reset`, which upstream takes for its reset."""
    if not _is_asyncpg(difference) or "reset" not in difference.program.callbacks or difference.what != "outcome":
        return False
    if difference.step.get("name") == "release":
        is_refused = _message(difference.ours) == "cannot perform operation: another operation is in progress"
        return is_refused and difference.upstream is None
    is_cut = _message(difference.ours) == "connection was closed in the middle of operation"
    return is_cut and _has_come_back_busy(difference)


def _has_come_back_busy(difference: Difference) -> bool:
    """Whether the connection of a step was given back before that step had ended."""
    steps = enumerate(_steps_of(difference, difference.known))
    returns = [number for number, step in steps if _is_return(step) or step.get("name") == "close"]
    at_the_end = [len(difference.program.steps)] if difference.known == len(difference.program.steps) else []
    return any(difference.runs.ours.is_busy(difference.number, number) for number in (*returns, *at_the_end))


def _is_return(step: Step) -> bool:
    return step.get("name") in ("release", "putconn") or step["do"] == "exit"


def _is_closed_when_expired(difference: Difference) -> bool:
    """Connections were made too old: ours are closed soon, and those of `min_size` replaced."""
    expiries = sum(step.get("name") == "expire_connections" for step in _steps_until(difference))
    if not _is_asyncpg(difference) or not expiries:
        return False
    if difference.what == "callbacks":
        return _ran_more(difference, "connect", "init", most=expiries * _floor(difference))
    fewer = _fewer(difference)
    return fewer is not None and fewer["size"] == fewer["idle"] > 0


def _is_unneeded(difference: Difference) -> bool:
    """With `max_idle=0` upstream lends a connection that has just come back, before it closes it."""
    if _is_asyncpg(difference) or difference.program.options.get("max_idle") != 0 or not _is_lease(difference.ours):
        return False
    is_new = _is_first_lease(difference, difference.ours, 1)
    if _raised(difference.upstream) in ("AdminShutdown", "OperationalError"):
        return is_new and _has_lost_sessions(difference)
    return is_new and _is_lease(difference.upstream) and not _is_first_lease(difference, difference.upstream, 0)


def _is_lent_in_pipeline(difference: Difference) -> bool:
    """A connection came back in pipeline mode: ours is closed, upstream's lent again, still in that mode."""
    steps = list(_steps_of(difference, difference.known))
    entered = [
        _maker(difference, number, "context").get("name") == "pipeline"
        for number, step in enumerate(steps)
        if step["do"] == "enter" and step.get("on") == "context"
    ]
    if _is_asyncpg(difference) or not any(entered) or not any(map(_is_return, steps)):
        return False
    fewer = _fewer(difference)
    if fewer is not None:
        return fewer["size"] == fewer["idle"] == 1
    is_new = _is_lease(difference.ours) and _is_first_lease(difference, difference.ours, 1)
    if _message(difference.upstream) == "'NoneType' object is not iterable":  # a cursor has no answer before the sync
        return is_new
    return is_new and _is_lease(difference.upstream) and not _is_first_lease(difference, difference.upstream, 0)


def _is_waiting_for_the_lent(difference: Difference) -> bool:
    """Upstream's `wait()` does not count connections that are lent, and closes the pool if they stay so."""
    if difference.program.kind != "psycopg" or difference.step.get("name") not in ("open", "wait"):
        return False
    return _is_anything_lent(difference) and _waits_longer(difference)


def _waits_longer(difference: Difference) -> bool:
    """Whether upstream's step ended later, or in vain."""
    if difference.what == "outcome":
        return difference.ours is None and _raised(difference.upstream) in ("PoolTimeout", "CancelledError")
    return _is_sooner(difference) or difference.upstream in (True, "pending")


def _is_anything_lent(difference: Difference) -> bool:
    """Whether a connection of upstream's was lent when a step began."""
    counted = [step for step, what in difference.runs.upstream.entries if what == "counts" and step < difference.number]
    counts = difference.runs.upstream.entries[max(counted, default=-1), "counts"]
    return counts.get("pool_size", 0) > counts.get("pool_available", 0)


def _is_misused_lease(difference: Difference) -> bool:
    """What `connection()` gave was entered twice, or left without being entered, or twice."""
    if _is_asyncpg(difference) or difference.step.get("on") != "lease":
        return False
    if "already running" in _message(difference.upstream):  # left while another task is still entering it
        return _raised(difference.ours) == "RuntimeError" or difference.ours is False
    before = "call"
    for step in difference.program.steps[: difference.number]:
        if step.get("keep") == "lease":
            before = "call"
        elif step.get("on") == "lease" and step["do"] in ("enter", "exit"):
            before = step["do"]
    return (before, difference.step["do"]) not in (("call", "enter"), ("enter", "exit"))


def _is_infinite(difference: Difference) -> bool:
    return _raised(difference.upstream) == "OverflowError"


def _is_death_noticed_later(difference: Difference) -> bool:
    """Sessions were ended from outside; the death of an idle one is noticed at its next lease, or once a second."""
    if not _is_asyncpg(difference) or not _has_lost_sessions(difference):
        return False
    if difference.what == "callbacks":
        return _ran_fewer(difference, "connect", "init")
    return _has_more(difference, most=difference.program.options["max_size"])


def _has_lost_sessions(difference: Difference) -> bool:
    has_killed = any(step["do"] == "kill" for step in _steps_until(difference))
    return has_killed or "pg_terminate_backend" in _sql_of_steps(difference)


ROWS: tuple[Row, ...] = (
    Row("options-checked", _is_refused_option, parts_ways=True),
    Row("timeouts-checked", _is_odd_timeout, parts_ways=True),
    Row("timeout-spent", _is_spent_timeout, parts_ways=True),
    Row("lease-callbacks-end", _are_callbacks_of_leases),
    Row("reset-unheard", _is_reset_unheard),
    Row("floor-serves-callers", _is_served_by_floor),
    Row("floor-serves-callers", _is_failure_of_another_connect, parts_ways=True),
    Row("connect-joins", _is_joined_later),
    Row("closing-counts", _are_counts_while_closing),
    Row("returned-in-use", _is_returned_in_use, parts_ways=True),
    Row("busy-not-kept", _is_busy_returned, parts_ways=True),
    Row("served-in-order", _is_served_in_order, parts_ways=True),
    Row("close-cancelled-alone", _is_closed_alone),
    Row("codecs-end", _is_of_left_codec),
    Row("statements-prepared-anew", _is_of_ended_statement, parts_ways=True),
    Row("expired-closed-soon", _is_closed_when_expired),
    Row("unneeded-closed-at-once", _is_unneeded, parts_ways=True),
    Row("pipeline-not-lent", _is_lent_in_pipeline, parts_ways=True),
    Row("wait-counts-lent", _is_waiting_for_the_lent, parts_ways=True),
    Row("returned-twice", _is_returned_twice, parts_ways=True),
    Row("returned-twice", _is_returned_twice_at_once, parts_ways=True),
    Row("use-after-return", _is_used_after_return, parts_ways=True),
    Row("close-tells-waiters", _is_waiter_told, parts_ways=True),
    Row("timed-out-callers", _is_out_of_queue),
    Row("timed-out-callers", _is_refused_for_the_gone, parts_ways=True),
    Row("timed-out-callers", _is_of_another_reset, parts_ways=True),
    Row("setup-counts", _is_busy_in_setup),
    Row("lost-or-closed", _is_lost_or_closed),
    Row("deaths-seen-later", _is_death_noticed_later),
    Row("body-error-kept", _is_body_error_kept, parts_ways=True),
    Row("reset-failure-unraised", _is_reset_failure_unraised),
    Row("role-reset", _is_role_reset, parts_ways=True),
    Row("which-connection", _is_another_session),
    Row("which-connection", _is_of_another_age, parts_ways=True),
    Row("which-connection", _are_warnings_of_others),
    Row("which-connection", _is_another_dead, parts_ways=True),
    Row("which-connection", _is_failure_for_another, parts_ways=True),
    Row("complaints", _is_complaint_of_upstream),
    Row("cancelled-connect", _is_cancelled_connect, parts_ways=True),
    Row("connect-retried", _is_connect_retried, parts_ways=True),
    Row("program-at-fault", _is_program_at_fault, parts_ways=True),
    Row("refusals-paced", _is_paced),
    Row("failed-check-and-reset", _is_counted_as_returned),
    Row("failed-copy-ends", _is_stuck_in_copy, parts_ways=True),
    Row("check-opens-none", _is_grown_by_check),
    Row("resize-opens-missing", _is_resized, parts_ways=True),
    Row("growth", _is_grown_less),
    Row("growth", _is_spared_a_failure, parts_ways=True),
    Row("growth", _has_got_the_returned, parts_ways=True),
    Row("growth", _is_counted_sooner),
    Row("connects-sooner", _has_connected_sooner),
    Row("connects-sooner", _is_served_sooner, parts_ways=True),
    Row("dead-not-lent", _is_dead_not_lent, parts_ways=True),
    Row("reset-of-the-closed", _is_reset_of_the_closed),
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
