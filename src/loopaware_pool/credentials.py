"""
Secrets that run out: fetched when one is needed, renewed before it has run out, for all loops and threads together.

A `RenewedSecret` is a function: give it to a pool wherever the pool takes a function for a password or for all
arguments of a connect.

No task that asks for a secret runs the fetch, because it may be cancelled, and its loop may end. A plain function is
run in a thread of its own, an async one in a task of its own on the loop of whoever asked first. A loop may stop in the
middle of that task and say nothing, so those that wait look for themselves whether the fetch still goes on.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool._core.checks import check_name, check_number, number, or_none
from loopaware_pool._core.reporter import logger
from loopaware_pool._platform import event_loops
from loopaware_pool._platform.frames import let_go_of_frames
from loopaware_pool._platform.log_fields import error_type, fields
from loopaware_pool.driver import PROGRAMMING_ERRORS
from loopaware_pool.errors import reason

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Expiring", "FetchFailed", "RenewedSecret"]

# By default a secret is renewed when a fifth of its lifetime is left, or so many seconds.
_RENEW_FRACTION: Final = 0.2
_RENEW_LONGEST_SECONDS: Final = 300.0
# How often a task that waits looks whether the fetch still goes on.
_LOOK_SECONDS: Final = 0.1
# The pauses after renewals, which grow while they fail, as long as the old secret lives.
_RETRY_FIRST_SECONDS: Final = 1.0
_RETRY_LONGEST_SECONDS: Final = 30.0
# The year 5138 in seconds since 1970, 1973 in milliseconds.
_NO_SECONDS_SINCE_1970: Final = 1e11

_more_than_zero: Final = number("a finite number of seconds, more than 0", lambda value: 0 < value < float("inf"))
_not_negative: Final = number("a finite number of seconds, 0 or more", lambda value: 0 <= value < float("inf"))
_seconds_or_none: Final = or_none(_more_than_zero)


class FetchFailed(ConnectionError):
    """
    A secret could not be fetched, and there is no old one that still lives. The fetch function's error is the cause.

    It is an `OSError`: a pool tries again, as after a connect that failed.

    Attributes:
        strerror: What happened, without the error's own text, which may quote a secret.
    """

    strerror: str

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.strerror = message


class Expiring:
    """
    What a fetch function returns if it knows when the secret runs out.

    Args:
        value: The secret: a string, or a dict of arguments.
        lifetime: How long it lives from now on: seconds, or a `timedelta`.
        expires_at: When it runs out: seconds since 1970 (UTC), or a `datetime` with a time zone.

    Raises:
        TypeError, ValueError: Neither or both are given, or one makes no sense.

    Attributes:
        value: As given.
        seconds: How long it lived when this was made; 0 or less if it had run out.
    """

    __slots__ = ("seconds", "value")

    value: Any
    seconds: float

    def __init__(
        self,
        value: Any,
        *,
        lifetime: float | timedelta | None = None,
        expires_at: float | datetime | None = None,
    ) -> None:
        if (lifetime is None) == (expires_at is None):
            raise TypeError("expected either lifetime or expires_at")
        self.value = value
        self.seconds = _seconds_left(lifetime, expires_at)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self.seconds:.0f} s>"

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} cannot be pickled or copied")


def _seconds_left(lifetime: float | timedelta | None, expires_at: float | datetime | None) -> float:
    if isinstance(expires_at, datetime):
        if expires_at.tzinfo is None:
            raise ValueError(
                f"expires_at={expires_at!r}: expected a datetime with a time zone; if it is in UTC, pass "
                "expires_at.replace(tzinfo=datetime.timezone.utc)"
            )
        return expires_at.timestamp() - time.time()
    if expires_at is not None:
        check_number("expires_at", expires_at, "seconds since 1970, or a datetime with a time zone")
        if _NO_SECONDS_SINCE_1970 < expires_at < math.inf:  # it would never be renewed
            raise ValueError(f"expires_at={expires_at!r}: expected seconds since 1970, not milliseconds")
        return expires_at - time.time()
    seconds = lifetime.total_seconds() if isinstance(lifetime, timedelta) else lifetime
    check_number("lifetime", seconds, "a number of seconds, or a timedelta")
    assert seconds is not None, "or it would be no number"
    return seconds


class _Kept:
    """
    A secret that was fetched, and when it must be renewed.

    By two clocks: the monotonic one may stand still while a virtual machine is suspended, and the other may be set.
    """

    __slots__ = ("_ends", "_ends_at", "_renew_seconds", "value")

    def __init__(self, value: object, seconds: float, renew_before: float | None) -> None:
        self.value: Any = value
        self._ends, self._ends_at = time.monotonic() + seconds, time.time() + seconds
        if renew_before is None:
            renew_before = min(seconds * _RENEW_FRACTION, _RENEW_LONGEST_SECONDS)
        self._renew_seconds = renew_before

    def left(self) -> float:
        """How many seconds it lives."""
        return min(self._ends - time.monotonic(), self._ends_at - time.time())

    def is_due(self) -> bool:
        return self.left() <= self._renew_seconds


class _Fetch:
    """
    One call of the fetch function.

    Args:
        gives_up: When it has taken too long, monotonic seconds.

    Attributes:
        waiting: A future of each task that waits for it.
        task: Where it runs; None for a thread.
        is_over: Whether it has ended, or nobody counts on it any more.
        kept, error: What it has ended with; neither if it was interrupted.
    """

    def __init__(self, gives_up: float) -> None:
        self.gives_up = gives_up
        self.waiting: set[asyncio.Future[None]] = set()
        self.task: asyncio.Task[None] | None = None
        self.is_over = False
        self.kept: _Kept | None = None
        self.error: BaseException | None = None

    def is_interrupted(self) -> bool:
        """Whether its task was cancelled, or the loop of its task has stopped."""
        return self.task is not None and (self.task.done() or not self.task.get_loop().is_running())

    def end(self, kept: _Kept | None, error: BaseException | None) -> None:
        """Wake those that wait."""
        self.is_over = True
        self.kept, self.error = kept, error
        waiting, self.waiting = self.waiting, set()
        for future in list(waiting):  # a caller that is cancelled at this moment takes its own out
            event_loops.post(future.get_loop(), _wake, future)


class _AnswerRefused(TypeError):
    """A fetch function has returned what is no secret. The text is ours."""


class _Renewal:
    """
    What a `RenewedSecret` does.

    Attributes:
        name: The secret's name.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        lifetime: float | None,
        renew_before: float | None,
        fetch_timeout: float,
        name: str,
    ) -> None:
        self.name = name
        self._function = function
        self._is_async = _is_async(function)
        self._lifetime = lifetime
        self._renew_before = renew_before
        self._fetch_timeout = fetch_timeout
        self._kept: _Kept | None = None
        self.start_afresh_in_child()
        event_loops.call_in_child(self)

    def start_afresh_in_child(self) -> None:
        """In a forked child, forget the fetch under way: it goes on in the parent only."""
        self._lock = threading.Lock()  # guards what follows, and `_kept`; never held while waiting
        self._fetch: _Fetch | None = None
        self._failures = 0  # in a row
        self._retry_at = 0.0  # monotonic seconds; no renewal before it while the old secret lives
        self._to_be_logged: BaseException | None = None

    def left(self) -> float | None:
        """How many seconds the secret lives; None if there is none."""
        kept = self._kept
        return None if kept is None else max(0.0, kept.left())

    def expire(self) -> None:
        """Forget the secret."""
        with self._lock:
            self._kept = self._fetch = None

    async def valid(self) -> Any:
        """Return a secret that is valid now; as `RenewedSecret.__call__`."""
        fetch: _Fetch | None = None
        while True:
            with self._lock:
                found = self._look(fetch)
                if isinstance(found, _Fetch):
                    fetch = found
                    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    fetch.waiting.add(future)
            self._log_failure()
            if isinstance(found, _Kept):
                return found.value
            assert fetch is not None
            if fetch.error is not None:
                raise self._failure(fetch.error)
            try:
                await asyncio.wait([future], timeout=_LOOK_SECONDS)
            finally:
                fetch.waiting.discard(future)

    # ---- with the lock ----

    def _look(self, waited_for: _Fetch | None) -> _Kept | _Fetch:
        """Return a secret to use; or the fetch that is under way, or one that was waited for and has failed."""
        if waited_for is not None:
            self._end_if_lost(waited_for)
            if waited_for.kept is not None or waited_for.error is not None:
                return waited_for.kept or waited_for
        kept = self._kept
        if kept is None or kept.left() <= 0:
            return self._fetch_under_way()
        if kept.is_due() and time.monotonic() >= self._retry_at:
            with suppress(FetchFailed):
                self._fetch_under_way()
        return kept

    def _fetch_under_way(self) -> _Fetch:
        """Return the fetch under way; one that begins now, if there is none."""
        if self._fetch is not None:
            self._end_if_lost(self._fetch)
        if self._fetch is None or self._fetch.is_over:
            begin = self._begin_task if self._is_async else self._begin_thread
            begin(_Fetch(time.monotonic() + self._fetch_timeout))
        assert self._fetch is not None
        return self._fetch

    def _begin_task(self, fetch: _Fetch) -> None:
        loop = asyncio.get_running_loop()
        if event_loops.is_shutting_down(loop):  # it has cancelled its tasks already, and would not this one
            raise FetchFailed(f"{self.name}: the secret cannot be fetched on an event loop that shuts down")
        self._fetch = fetch
        # Not `create_task`: an eager task factory would call the fetch function here, with the lock held.
        fetch.task = asyncio.Task(self._run_in_task(fetch), loop=loop)

    def _begin_thread(self, fetch: _Fetch) -> None:
        self._fetch = fetch
        run = copy_context().run
        try:
            threading.Thread(target=run, args=(self._run_in_thread, fetch), name=self.name, daemon=True).start()
        except RuntimeError as error:  # the system has no thread left, or the interpreter ends
            self._end(fetch, None, error)

    def _end_if_lost(self, fetch: _Fetch) -> None:
        """End a fetch that takes too long, or whose loop runs no more and cannot say so."""
        if fetch.is_over:
            return
        if time.monotonic() >= fetch.gives_up:
            self._end(fetch, None, TimeoutError(f"the fetch function has not answered for {self._fetch_timeout:g} s"))
        elif fetch.is_interrupted():
            fetch.end(None, None)

    def _end(self, fetch: _Fetch, kept: _Kept | None, error: BaseException | None) -> None:
        if fetch.is_over:
            return
        fetch.end(kept, error)
        if fetch is not self._fetch:  # `expire` was called in the middle of it
            return
        if kept is not None:
            self._kept, self._failures = kept, 0
            self._retry_at = time.monotonic() + _RETRY_FIRST_SECONDS  # it may be due already
            return
        pause = min(_RETRY_FIRST_SECONDS * 2**self._failures, _RETRY_LONGEST_SECONDS)
        self._retry_at = time.monotonic() + pause
        self._failures = min(self._failures + 1, 16)
        if self._failures == 1:
            self._to_be_logged = error

    # ---- without the lock ----

    def _run_in_thread(self, fetch: _Fetch) -> None:
        try:
            kept = self._checked(self._function())
        except BaseException as error:  # noqa: BLE001 - there is nobody else to tell
            self._failed(fetch, error)
        else:
            self._succeeded(fetch, kept)

    async def _run_in_task(self, fetch: _Fetch) -> None:
        try:
            async with asyncio.timeout(self._fetch_timeout):  # its timer also keeps the task alive
                kept = self._checked(await self._function())
        except GeneratorExit as error:
            if not _is_run_by(fetch.task):  # its loop is closed
                raise
            self._failed(fetch, error)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
            if not event_loops.is_cancelled():
                self._failed(fetch, error)
            raise
        except BaseException as error:  # noqa: BLE001 - there is nobody else to tell
            self._failed(fetch, error)
        else:
            self._succeeded(fetch, kept)

    def _checked(self, answer: Any) -> _Kept:
        """Take what the fetch function has returned."""
        if isinstance(answer, Expiring):
            answer, seconds = answer.value, answer.seconds
        elif self._lifetime is None and not inspect.isawaitable(answer):
            raise _AnswerRefused(
                "the fetch function does not say how long its secret lives: give lifetime, or return Expiring"
            )
        else:
            seconds = self._lifetime
        if inspect.iscoroutine(answer):
            answer.close()
        if answer is None or inspect.isawaitable(answer):
            raise _AnswerRefused(f"the fetch function returned {type(answer).__name__}; one that awaits must be async")
        return _Kept(answer, seconds, self._renew_before)

    def _succeeded(self, fetch: _Fetch, kept: _Kept) -> None:
        with self._lock:
            self._end(fetch, kept, None)

    def _failed(self, fetch: _Fetch, error: BaseException) -> None:
        let_go_of_frames(error)
        with self._lock:
            self._end(fetch, None, error)
        self._log_failure()

    def _failure(self, error: BaseException) -> Exception:
        """
        Make the error for one caller. Callers of several threads cannot share one: each changes its traceback.
        """
        kind: type[Exception] = TypeError if isinstance(error, PROGRAMMING_ERRORS) else FetchFailed
        failure = kind(f"{self.name}: the secret could not be fetched: {self._words(error)}")
        failure.__cause__ = error
        return failure

    def _words(self, error: BaseException) -> str:
        """Say what happened without the text of the user's own errors, which may quote a secret."""
        return str(error) if isinstance(error, _AnswerRefused) else reason(error)

    def _log_failure(self) -> None:
        with self._lock:
            error, self._to_be_logged = self._to_be_logged, None
        if error is None:
            return
        left = self.left()
        then = f"the old one is used for another {left:.0f} s" if left else "there is no other"
        told = fields("secret_not_renewed", None, pool_secret=self.name, pool_error=error_type(error))
        logger.warning("%s: the secret could not be fetched: %s; %s", self.name, self._words(error), then, extra=told)


class RenewedSecret:
    """
    A function that returns a secret which is valid now, for all loops and threads of the process.

    It is async, and takes no arguments. The secret is fetched when the first caller asks for it. One that is about to
    run out is renewed in the background while callers still get it. There is one fetch at a time.

    If a renewal fails, the old secret is used while it lives. That is logged, once until a renewal succeeds.

    A forked child keeps the secret, and renews it by itself.

    Args:
        fetch: Called without arguments. It returns the secret, or an `Expiring`. A plain function is called in a thread
            of its own; an async one in a task of its own, on the loop of the caller that found the secret missing or
            due, which need not be the loop of the call before.
        lifetime: Seconds that a secret lives, unless *fetch* returns an `Expiring`.
        renew_before: Seconds before its end from which on a secret is renewed, at most once a second; None for a fifth
            of its lifetime, or 300 if that is less.
        fetch_timeout: Seconds after which a fetch has failed. A thread cannot be ended: it is left to itself.
        name: In errors and logs; None for the name of *fetch*.

    Raises:
        TypeError, ValueError: An argument makes no sense.
    """

    def __init__(
        self,
        fetch: Callable[[], object],
        *,
        lifetime: float | None = None,
        renew_before: float | None = None,
        fetch_timeout: float = 30.0,
        name: str | None = None,
    ) -> None:
        if not callable(fetch):
            raise TypeError(f"fetch: expected a function, not {type(fetch).__name__}")
        _seconds_or_none("lifetime", lifetime)
        or_none(_not_negative)("renew_before", renew_before)
        _more_than_zero("fetch_timeout", fetch_timeout)
        or_none(check_name)("name", name)
        self.name: str = name or str(getattr(fetch, "__qualname__", type(fetch).__qualname__))
        self._renewal = _Renewal(fetch, lifetime, renew_before, fetch_timeout, self.name)

    def __repr__(self) -> str:
        left = self._renewal.left()
        state = "nothing fetched" if left is None else f"{left:.0f} s left"
        return f"<{type(self).__name__} {self.name!r}: {state}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} cannot be pickled or copied")

    async def __call__(self) -> Any:
        """
        Return a secret that is valid now.

        Raises:
            FetchFailed: It could not be fetched.
            TypeError: Likewise, and the fetch function is to blame: it would fail again.

        Cancellation: ends the waiting. The fetch goes on for others.
        """
        return await self._renewal.valid()

    def expire(self) -> None:
        """Forget the secret: the next caller waits for a new one. From any thread."""
        self._renewal.expire()


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _is_run_by(task: asyncio.Task[None] | None) -> bool:
    """Whether *task* is at work, as against being closed."""
    with suppress(RuntimeError):  # no loop is running
        return asyncio.current_task() is task
    return False


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
