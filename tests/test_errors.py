"""What errors say, and what they carry."""

from __future__ import annotations

import socket

import pytest

from loopaware_pool import errors
from loopaware_pool.stats import Counters, LeaseInfo, LoopStats, PoolStats


def loop_stats(**counts):
    empty = dict.fromkeys(("connecting", "idle", "lent", "resetting", "closing", "waiting"), 0)
    return LoopStats(loop="loop", counters=Counters(), **{**empty, **counts})


@pytest.fixture
def stats():
    loops = (loop_stats(lent=2, idle=1, waiting=4, resetting=1), loop_stats(lent=1, connecting=1, closing=1, waiting=1))
    return PoolStats(name="orders", min_size=1, max_size=7, loops=loops, ended=Counters())


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name not in ("ErrorFamily", "reason")])
def test_every_error_is_a_pool_error(name):
    """`except PoolError` catches all of them."""
    assert issubclass(getattr(errors, name), errors.PoolError)


@pytest.mark.parametrize("error_class", [errors.PoolError, errors.PoolClosed, errors.WrongLoop, errors.UnsupportedLoop])
def test_an_error_names_its_pool(error_class):
    """The name is an attribute; the message is what was given."""
    error = error_class("it went wrong", pool="orders")
    assert (str(error), error.pool) == ("it went wrong", "orders")


def test_errors_are_also_what_callers_expect():
    """A timeout is a `TimeoutError`; a wrong or missing loop is a `RuntimeError`, as asyncio's own."""
    assert issubclass(errors.PoolTimeout, TimeoutError)
    assert issubclass(errors.WrongLoop, RuntimeError)
    assert issubclass(errors.UnsupportedLoop, RuntimeError)


def test_a_refusal_tells_the_limit():
    """`TooManyWaiting` carries `max_waiting`, and says so."""
    error = errors.TooManyWaiting(pool="orders", max_waiting=12)
    assert (error.pool, error.max_waiting) == ("orders", 12)
    assert str(error) == "pool 'orders' has 12 callers waiting already, the limit that max_waiting sets"


def test_a_timeout_tells_how_the_pool_was(stats):
    """The message has the time, the counts of all loops, and who held connections, from where."""
    holders = (LeaseInfo(12.34, "Task-1", "app.py:12 in handler"),)
    error = errors.PoolTimeout(timeout=1.5, stats=stats, holders=holders)
    assert str(error) == (
        "couldn't get a connection in 1.50 s: pool 'orders' has 3 of 7 connections lent, 1 idle, 1 connecting, "
        "1 resetting, 1 closing and 5 other callers waiting on 2 loop(s); "
        "held by Task-1 for 12.3 s, from app.py:12 in handler"
    )
    assert (error.pool, error.timeout, error.stats, error.holders) == ("orders", 1.5, stats, holders)


def test_a_timeout_tells_what_it_happened_in(stats):
    """A phase other than the queue is named."""
    assert "in 2.00 s (in setup): pool" in str(
        errors.PoolTimeout(timeout=2, stats=stats, holders=(), during=" (in setup)")
    )


def test_a_timeout_names_three_holders_and_carries_all(stats):
    """A message stays readable; the attribute has the rest."""
    holders = tuple(LeaseInfo(float(number), f"Task-{number}", None) for number in range(5))
    error = errors.PoolTimeout(timeout=1, stats=stats, holders=holders)
    assert [f"Task-{number}" in str(error) for number in range(5)] == [True, True, True, False, False]
    assert error.holders == holders


def test_a_timeout_without_holders_says_so(stats):
    """The connections are then on other loops, or on their way."""
    assert str(errors.PoolTimeout(timeout=1, stats=stats, holders=())).endswith("held by nobody on this loop")


def test_a_lease_without_a_task_or_a_place_can_be_told():
    """The task may have ended, and the interpreter may not tell where."""
    assert str(LeaseInfo(0.04, None, None)) == "a task that has ended for 0.0 s, from unknown"


def test_counts_of_a_pool_are_those_of_its_loops(stats):
    """Live connections are idle, lent or resetting; connecting and closing ones are counted apart."""
    assert (stats.size, stats.idle, stats.lent, stats.connecting, stats.waiting) == (5, 1, 3, 1, 5)
    assert [loop.size for loop in stats.loops] == [4, 1]


class Refusal(Exception):
    """As asyncpg's: the text is the server's."""

    sqlstate = "53300"


LIBPQ = """connection to server at "10.0.0.1", port 5432 failed: FATAL:  sorry, too many clients already
Multiple connection attempts failed."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refusal("sorry, too many clients already\nHINT: wait"), "Refusal: sorry, too many clients already"),
        (RuntimeError(LIBPQ), "RuntimeError: sorry, too many clients already"),
        (socket.gaierror(-2, "Name or service not known"), "gaierror: Name or service not known"),
        (TimeoutError(), "TimeoutError"),
        (ValueError("invalid dsn: postgresql://me:secret@host"), "ValueError"),
    ],
    ids=["server", "libpq", "system", "silence", "argument"],
)
def test_a_timeout_tells_why_connecting_failed(stats, error, said):
    """In the server's words or the system's; a driver's own may quote a password. The error itself is the cause."""
    timeout = errors.PoolTimeout(timeout=1, stats=stats, holders=(), cause=error)
    assert str(timeout).endswith(f"held by nobody on this loop; connecting failed last with {said}")
    assert timeout.__cause__ is error
