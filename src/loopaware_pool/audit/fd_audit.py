"""
Finds out whether a piece of a program leaves fds, or registrations with an event loop, behind. Any driver, any library.

    async with assert_zero_fd_delta():
        await whatever_should_clean_up_after_itself()

What counts as left behind
--------------------------
What is open afterwards and was not before. Files are told apart by inode, because a number is soon reused. Not counted
are: a connection that replaced one to the same address; what closes within a moment, as in another thread, or in the
loop's next iteration; what only waits for the garbage collector, unless the audit must not run it; and the few fds that
Python and uvloop open once and keep for the life of a process.

Beside fds: a reader or writer whose fd is closed, or means another file by now. It was left in the selector.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakKeyDictionary

from loopaware_pool.audit.exemptions import kept_for_life, open_what_is_kept
from loopaware_pool.audit.open_files import EPOLL, SOCKET, AuditUnavailable, OpenFd, blind_spots, open_fds
from loopaware_pool.audit.registrations import (
    Registration,
    Registrations,
    closing_fds,
    held_by,
    left,
    open_loops,
    stale_registrations,
    watches,
)
from loopaware_pool.audit.tracing import opened_at, running_loop, start_tracing, stop_tracing

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
    from types import TracebackType

__all__ = [
    "AuditUnavailable",
    "FdAudit",
    "OpenFd",
    "Registration",
    "Registrations",
    "assert_zero_fd_delta",
    "fd_leak_per",
    "stale_registrations",
]

GRACE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.01
# Iterations of the loop before the first pause: a transport closes its socket in the next one.
_TURNS: Final = 5
_RECOUNTS: Final = 2
_MOST_OF_A_POOL: Final = 100


class FdAudit:
    """
    Finds what is opened and not closed between its start and its end. A context manager, sync and async.

    The async form lets the loop go on for a moment if something is left. It also finds readers that the block has added
    to that loop and that nothing waits for. The sync form, inside a coroutine, cannot.

    Args:
        trace: Whether to find out which line opened what. That patches `socket.socket` and the loops' classes
            meanwhile, for all threads, and takes some microseconds for each socket, task and reader. It also checks
            loops that are closed meanwhile, just before they are.
        collect_garbage: Whether to run the garbage collector first, and again before anything is reported as left
            behind.
        grace_seconds: How long what is left may take to be closed, in seconds.

    Raises:
        AuditUnavailable: On entering: this platform does not show what is open.
    """

    def __init__(
        self, *, trace: bool = False, collect_garbage: bool = True, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._trace = trace
        self._collect_garbage = collect_garbage
        self._grace_seconds = grace_seconds
        self._before: dict[Hashable, OpenFd] = {}
        self._excluded: set[Hashable] = set()
        self._known_stale: set[Registration] = set()
        self._stale_at_close: list[Registration] = []
        self._orphaned: list[OpenFd] = []
        self._watched: WeakKeyDictionary[AbstractEventLoop, set[tuple[int, int]]] = WeakKeyDictionary()
        self._loop: AbstractEventLoop | None = None
        self._had_uvloop = False
        self._outcome: _Outcome | None = None

    # ---- what was found ----

    @property
    def before(self) -> tuple[OpenFd, ...]:
        """What was open at the start."""
        return tuple(self._before.values())

    @property
    def after(self) -> tuple[OpenFd, ...]:
        """What was open at the end; while the audit runs, what is open now."""
        return tuple(self._latest().after.values())

    @property
    def leaked(self) -> tuple[OpenFd, ...]:
        """What was left open; while the audit runs, what would be if it ended now."""
        return tuple(self._latest().leaked.values())

    @property
    def delta(self) -> int:
        """How many more fds are open than at the start, exempt and excluded ones not counted. Negative if fewer."""
        latest = self._latest()
        return len(latest.after) - len(self._before) - latest.excused

    @property
    def registrations(self) -> Registrations:
        """Entries left in selectors; while the audit runs, those that would be left if it ended now."""
        return self._latest().registrations

    @property
    def orphaned(self) -> tuple[OpenFd, ...]:
        """
        What was opened meanwhile, and was still open when a loop that watched it was closed. Needs tracing.

        Of uvloop, only the fds of readers that were added by hand; uvloop closes all others itself.

        It cannot be closed properly any more. The garbage collector may close it, sooner or later; then it is not in
        `leaked`.
        """
        return tuple(self._orphaned)

    @property
    def unseen(self) -> tuple[str, ...]:
        """What this platform, and the open loops, do not show: a sentence each."""
        return (*blind_spots(), *self.registrations.unseen)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was left behind."""
        return self._latest().is_clean

    def report(self) -> str:
        """Describe what was left behind, one line each."""
        latest = self._latest()
        if latest.is_clean:
            return "nothing was left behind"
        fds, entries = len(latest.leaked), len(latest.registrations)
        counts = [_count(fds, "fd", "left open"), _count(entries, "registration", "left with a loop")]
        lines = [" and ".join(count for count in counts if count) + ":"]
        lines += [f"  {each}" for each in (*latest.leaked.values(), *latest.registrations)]
        lines += [f"  (not seen here: {each})" for each in self.unseen]
        if not self._trace:
            lines.append("  (trace=True names the lines that opened them)")
        return "\n".join(lines)

    def check(self, tolerance: int = 0) -> None:
        """
        Raise if something was left behind.

        Args:
            tolerance: How many fds may be left open. Registrations may not.

        Raises:
            AssertionError: Something was; the message names it.
        """
        latest = self._latest()
        if len(latest.leaked) > tolerance or latest.registrations:
            allowed = f" ({tolerance} allowed)" if tolerance else ""
            raise AssertionError(self.report() + allowed)

    @contextmanager
    def excluding(self) -> Iterator[None]:
        """Exclude what is opened in this block because it is meant to stay open, such as a server for all tests."""
        known = open_fds()
        try:
            yield
        finally:
            self._excluded |= open_fds().keys() - known.keys()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.report()}>"

    # ---- start and end ----

    def start(self, *, collect_first: bool = True) -> None:
        """
        Begin the audit; `with` does this.

        Args:
            collect_first: Whether to collect existing garbage. Otherwise something that vanishes with it may seem to
                have been replaced by something new. Not needed just after another audit.
        """
        self._outcome = None
        self._stale_at_close.clear()
        self._orphaned.clear()
        self._had_uvloop = open_what_is_kept()
        if self._collect_garbage and collect_first:
            gc.collect()
        if self._trace:
            start_tracing(self._loop_closes)
        try:
            self._before = open_fds()
            self._known_stale = {stale for loop in _loops_with(self._before) for stale in stale_registrations(loop)}
        except BaseException:
            stop_tracing(self._loop_closes)
            raise

    def finish(self) -> None:
        """
        End the audit; `with` does this.

        Waits for what is left to be closed, up to the grace time. Not in a coroutine, as its loop could not go on.
        """
        try:
            for pause in self._looks(0.0 if running_loop() is not None else self._grace_seconds):
                time.sleep(pause)
        finally:
            self.abandon()

    async def afinish(self) -> None:
        """
        End the audit; `async with` does this. Cancellation: the audit ends at once, with what is left at that moment.
        """
        try:
            for pause in self._looks(self._grace_seconds):
                if self._loop is None:  # trio: no asyncio loop to wait on
                    time.sleep(pause)  # noqa: ASYNC251
                else:
                    await asyncio.sleep(pause)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End at once, without waiting."""
        self._outcome = self._latest()
        stop_tracing(self._loop_closes)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:  # its traceback keeps alive what the block used: waiting is useless
            self.abandon()

    async def __aenter__(self) -> Self:
        self._loop = running_loop()
        if self._loop is not None:
            self._watched[self._loop] = _entries(self._loop)
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self.afinish()
        else:
            self.abandon()

    # ---- looking ----

    def _loop_closes(self, loop: AbstractEventLoop) -> None:
        self._stale_at_close += [stale for stale in stale_registrations(loop) if stale not in self._known_stale]
        with suppress(AuditUnavailable):  # closing a loop must not fail because of the audit
            new = [each for key, each in open_fds().items() if key not in self._before]
            held = held_by(loop)
            self._orphaned += [_with_line(each) for each in new if each.fd in held]

    def _latest(self) -> _Outcome:
        return self._look() if self._outcome is None else self._outcome

    def _looks(self, grace_seconds: float) -> Iterator[float]:
        """Look until nothing is left or the time is over. Yields how long to wait before each next look, in seconds."""
        outcome = self._look()
        deadline = time.monotonic() + grace_seconds  # after the look: collecting garbage may take longer than the grace
        turns = 0
        while not outcome.is_clean and time.monotonic() < deadline:
            yield 0 if turns < _TURNS else _PAUSE_SECONDS
            turns += 1
            # What is new since the first look was not left by the block: other threads open and close files.
            outcome = self._look_once().only(outcome)
        self._outcome = outcome if outcome.is_clean or not turns else self._look().only(outcome)

    def _look(self) -> _Outcome:
        outcome = self._look_once()
        if outcome.leaked and self._collect_garbage:
            gc.collect()
            outcome = self._look_once()
        return outcome

    def _look_once(self) -> _Outcome:
        after = open_fds()
        new = {key: each for key, each in after.items() if key not in self._before}
        opened = len(new)
        new = {key: each for key, each in new.items() if key not in self._excluded}
        gone = [each for key, each in self._before.items() if key not in after]
        loops = _loops_with(after)
        if new:
            excused = kept_for_life(new.values(), loops, had_uvloop=self._had_uvloop).union(*map(closing_fds, loops))
            new = {key: each for key, each in new.items() if each.fd not in excused}
        leaked = {key: _with_line(each) for key, each in new.items() if not _takes_a_place(each, gone)}
        return _Outcome(after, leaked, opened - len(new), self._registrations(loops))

    def _registrations(self, loops: list[AbstractEventLoop]) -> Registrations:
        shown = [stale_registrations(loop) for loop in loops]
        found = list(self._stale_at_close)
        found += [each for each in chain.from_iterable(shown) if each not in self._known_stale]
        if self._loop is not None and self._loop is running_loop():
            known = self._watched[self._loop]
            stale = {each.fd for each in found}
            for fd, watch in watches(self._loop).items():
                if (fd, id(watch.entry)) not in known and fd not in stale:
                    found += filter(None, [left(self._loop, fd, watch)])
        return Registrations(found, (sentence for each in shown for sentence in each.unseen))


class _Outcome:
    """What was seen at one moment."""

    def __init__(
        self, after: dict[Hashable, OpenFd], leaked: dict[Hashable, OpenFd], excused: int, registrations: Registrations
    ) -> None:
        self.after = after
        self.leaked = leaked
        self.excused = excused
        self.registrations = registrations

    @property
    def is_clean(self) -> bool:
        return not self.leaked and not self.registrations

    def only(self, earlier: _Outcome) -> _Outcome:
        """Leave out what was not there at an *earlier* moment."""
        leaked = {key: each for key, each in self.leaked.items() if key in earlier.leaked}
        entries = [each for each in self.registrations if each in earlier.registrations]
        return _Outcome(self.after, leaked, self.excused, Registrations(entries, self.registrations.unseen))


def _loops_with(fds: Mapping[Hashable, OpenFd]) -> list[AbstractEventLoop]:
    """
    List the loops that are open while *fds* are.

    On Linux each has an epoll set, or at least a pair of sockets to wake itself. If there is neither, the search
    through all objects of the process is skipped.
    """
    if sys.platform == "linux" and not any(fd.kind in (EPOLL, SOCKET) for fd in fds.values()):
        return []
    return open_loops()


def _entries(loop: AbstractEventLoop) -> set[tuple[int, int]]:
    return {(fd, id(watch.entry)) for fd, watch in watches(loop).items()}


def _with_line(each: OpenFd) -> OpenFd:
    return each if each.fd is None else replace(each, opened_at=opened_at(each.fd))


def _takes_a_place(new: OpenFd, gone: list[OpenFd]) -> bool:
    """Whether *new* replaces one of *gone*, which is then removed from *gone*."""
    for old in gone:
        if _is_like(new, old):
            gone.remove(old)
            return True
    return False


def _is_like(new: OpenFd, old: OpenFd) -> bool:
    """
    Whether both have the same address: a client's connections share their peer, a server's share their own address.
    """
    if new.kind != old.kind:
        return False
    if new.peer is None or old.peer is None:
        return (new.peer, new.name) == (old.peer, old.name)
    return new.peer == old.peer or new.name == old.name


def _count(number: int, noun: str, done: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'} {done}" if number else ""


# ---- shorthands ----


class _ZeroFdDelta(FdAudit):
    def __init__(self, tolerance: int, *, trace: bool, collect_garbage: bool, grace_seconds: float) -> None:
        super().__init__(trace=trace, collect_garbage=collect_garbage, grace_seconds=grace_seconds)
        self._tolerance = tolerance

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if error is None:
            self.check(self._tolerance)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        if error is None:
            self.check(self._tolerance)


def assert_zero_fd_delta(
    tolerance: int = 0,
    *,
    trace: bool = False,
    collect_garbage: bool = True,
    grace_seconds: float = GRACE_SECONDS,
) -> FdAudit:
    """
    Check that a block leaves no fd open and no registration behind: `with` or `async with`.

    Args:
        tolerance: How many fds may be left open.
        trace: See `FdAudit`.
        collect_garbage: See `FdAudit`.
        grace_seconds: See `FdAudit`.

    Returns:
        The context manager; `as` gives the running `FdAudit`.

    Raises:
        ValueError: *tolerance* is no number of fds.
        AssertionError: On leaving, when something was left behind; the message names it. Not if the block raised.
        AuditUnavailable: On entering: this platform does not show what is open.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance is a number of fds, 0 or more, not {tolerance!r}")
    return _ZeroFdDelta(tolerance, trace=trace, collect_garbage=collect_garbage, grace_seconds=grace_seconds)


async def fd_leak_per(
    count: int, operation: Callable[[], Awaitable[object] | object], *, runs: int | None = None, tasks: int = 1
) -> float:
    """
    Measure how many fds are lost per so many runs of something.

    What is opened to be kept is no leak, such as the connections of a growing pool. So each task runs *operation* once
    before the count starts. If something is left, the count is repeated up to twice, and the lowest result is returned:
    a pool does not grow for ever. (It is not repeated if more is left than a pool may have grown by, as fds may run
    out.)

    Args:
        count: The number of runs that the result refers to, as in `fd_leak_per(10_000, query)`.
        operation: What to run: a function without arguments, plain or a coroutine function.
        runs: How often to run it for each count; None for *count*.
        tasks: How many tasks run it at once.

    Returns:
        Fds left open, per *count* runs.

    Raises:
        ValueError: One of the numbers is not above zero.
        AuditUnavailable: This platform does not show what is open.
        Exception: What *operation* raises ends the measurement; other tasks are cancelled.

    Cancellation: the tasks are cancelled, and awaited.
    """
    total = count if runs is None else runs
    for name, number in (("count", count), ("runs", total), ("tasks", tasks)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number!r}")
    await _run(operation, tasks, tasks)
    left = await _count_left(operation, total, tasks)
    for _ in range(_RECOUNTS):
        if not 0 < left <= max(tasks, _MOST_OF_A_POOL):
            break
        left = min(left, await _count_left(operation, total, tasks))
    return left * count / total


async def _count_left(operation: Callable[[], Awaitable[object] | object], runs: int, tasks: int) -> int:
    async with FdAudit() as audit:
        await _run(operation, runs, tasks)
    return len(audit.leaked)


async def _run(operation: Callable[[], Awaitable[object] | object], runs: int, tasks: int) -> None:
    numbers = iter(range(runs))

    async def work() -> None:
        for _ in numbers:
            outcome = operation()
            if inspect.isawaitable(outcome):
                await outcome

    async with asyncio.TaskGroup() as group:
        for _ in range(min(tasks, runs)):
            group.create_task(work())
