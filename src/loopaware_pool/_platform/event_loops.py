"""
The life of event loops, for objects that must not outlive them.

How a loop's end is noticed
---------------------------
`loop.close()` tells nobody. Three ways are used, from polite to late:

1. An async generator started on the loop. `asyncio.run`, `Runner`, `uvloop.run` and the pytest plugins call
   `shutdown_asyncgens()` before they close the loop, which closes the generator *inside the running loop*. There,
   connections can still be closed politely. (`LoopShutdownHook`)
2. A timer that is never due. A loop that is closed without that call drops its timers, and with them the only reference
   to a sentinel, whose weak-reference callback then runs inside `loop.close()`. (`on_closed`)
3. `post()` returns False when the loop is closed, and `is_closed()` can be asked at any time.

Why not patch `loop.close`? It belongs to the user, and uvloop's cannot be patched.

A loop is known by the object, never by `id(loop)`, which is reused as soon as a loop is collected. A pool that used the
id would serve a new loop with the connections of an old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
import socket
import sys
import threading
import weakref
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

__all__ = [
    "INTERRUPTIONS",
    "Errands",
    "LoopShutdownHook",
    "call_in_child",
    "close_abandoned_task",
    "close_socket_of",
    "is_cancelled",
    "is_idle",
    "is_shutting_down",
    "keep_from_shutdown",
    "label",
    "leave_to_shutdown",
    "on_closed",
    "outcome_of",
    "post",
    "running",
    "supported_loop",
    "with_stray_cancellation_as",
]

T = TypeVar("T")

# These end the task, or the program. Any other error that is no `Exception`, such as a test framework's, fails only the
# work that has raised it.
INTERRUPTIONS: Final = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)

_SHUTDOWN: Final = asyncio.AbstractEventLoop.shutdown_asyncgens.__name__
_NEVER_SECONDS: Final = 10 * 365 * 24 * 3600.0
_labels: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count(1)


# The running loop, or None where there is none. The public function raises then, at ten times the cost.
running: Final = asyncio._get_running_loop  # noqa: SLF001


def label(loop: asyncio.AbstractEventLoop) -> str:
    """Return a name for *loop*, for people: a number in order of appearance, and the thread it was first seen in."""
    name = _labels.get(loop)
    if name is None:
        name = _labels[loop] = f"loop-{next(_numbers)} ({threading.current_thread().name})"
    return name


def supported_loop() -> tuple[asyncio.AbstractEventLoop | None, str]:
    """
    Return the running loop, or why it cannot be used.

    Returns:
        The loop and an empty string; or None and the reason.
    """
    loop = running()
    if loop is None:
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_run():
            return None, "trio's event loop is not supported: the drivers need asyncio or uvloop"
        return None, "no event loop is running: await this inside a coroutine, such as one given to asyncio.run()"
    proactor = getattr(asyncio, "ProactorEventLoop", None)
    if proactor is not None and isinstance(loop, proactor):
        return None, (
            f"{type(loop).__name__} cannot watch sockets: "
            "use asyncio.run(..., loop_factory=asyncio.SelectorEventLoop) or its event loop policy"
        )
    return loop, ""


def post(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> bool:
    """
    Have *loop* call *callback* soon, from any thread.

    Returns:
        False if the loop is closed, so that it never will.
    """
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return False
    return True


def is_idle(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether *loop* is not running, so that any thread may act for it."""
    return not loop.is_running()


def is_shutting_down(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether *loop*, the running one, closes its async generators, or has done so. uvloop shows only the former."""
    known: bool | None = getattr(loop, "_asyncgens_shutdown_called", None)
    if known is not None:
        return known
    return any(_SHUTDOWN in _names_of(task.get_coro()) for task in asyncio.all_tasks(loop))


def _names_of(awaited: Any) -> Iterator[str]:
    """List the names of a suspended coroutine, and of those it awaits."""
    while hasattr(awaited, "cr_await"):
        yield awaited.__name__
        awaited = awaited.cr_await


class Errands:
    """
    What other threads want done on a loop. Each errand is done once: by the loop, or for it while it is not running.

    A loop may stop at any moment, before it runs what was posted to it. So an errand is kept here, and done by
    whichever comes first: the posted call, or the next thread that finds the loop idle. If both did it, one permit
    would be used twice.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._left: deque[Callable[[], object]] = deque()
        # Held by the thread that acts for the loop. Another thread leaves its errand to that one and never waits: two
        # threads waiting for each other's loops would wait for ever.
        self._place = threading.RLock()
        # One thread does not nest errands either: a signal handler may come here, or an errand itself.
        self._is_acting = False

    def __bool__(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._left)

    def add(self, action: Callable[[], object]) -> None:
        """Have *action* done: soon on the loop, or at once if the loop is not running or is closed."""
        self._left.append(action)
        if is_idle(self._loop) or not post(self._loop, self._run):
            self._run()

    def add_for_later(self, action: Callable[[], object]) -> None:
        """Have *action* done later: what the caller has interrupted must end first."""
        self._left.append(action)
        post(self._loop, self._run)

    def run_if_idle(self) -> None:
        """Do what is left, if the loop has stopped meanwhile."""
        if self._left and is_idle(self._loop):
            self._run()

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Let no thread act for a loop that is being closed. What is added meanwhile is done afterwards."""
        with self._place:
            was_acting, self._is_acting = self._is_acting, True
            try:
                yield
            finally:
                self._is_acting = was_acting
        self._run()

    def _run(self) -> None:
        # A loop, as another thread may add an errand just before the release.
        while self._left and not self._is_acting and self._place.acquire(blocking=False):
            try:
                self._is_acting = True
                while self._left:
                    self._left.popleft()()
            finally:
                self._is_acting = False
                self._place.release()


class LoopShutdownHook:
    """
    Calls a coroutine function once, while its loop shuts down.

    Args:
        loop: The running loop.
        farewell: Called without arguments; awaited by the loop before it closes.

    Attributes:
        is_too_late: Whether the loop is shutting down already, so that only `on_closed` can notice its end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, farewell: Callable[[], Awaitable[None]]) -> None:
        self._farewell: Callable[[], Awaitable[None]] | None = farewell
        self._generator = self._wait()
        self.is_too_late = is_shutting_down(loop)
        if not self.is_too_late:
            self._step(self._generator.__anext__())

    async def _wait(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self._farewell is not None:
                await self._farewell()

    def cancel(self) -> None:
        """Forget the coroutine function."""
        self._farewell = None
        self._step(self._generator.aclose())

    @staticmethod
    def _step(awaitable: Any) -> None:
        """Run to the first suspension; neither step has one of its own."""
        # RuntimeError: the loop is closing the generator at this moment.
        with contextlib.suppress(StopIteration, StopAsyncIteration, RuntimeError):
            awaitable.send(None)


class Condition:
    """
    Lets coroutines of one loop wait until something is true.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[asyncio.Future[None]] = []

    def are_awaited(self) -> bool:
        """Whether any coroutine waits."""
        return bool(self._waiting)

    def notify(self) -> None:
        """Have all waiting coroutines check their conditions again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def clear(self) -> None:
        """Forget the waiting coroutines: their loop is closed."""
        self._waiting.clear()

    async def until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """
        Wait until *condition* holds. It is checked after each `notify`.

        Args:
            condition: Returns whether the wait is over.
            seconds: How long to wait at most; None for ever.

        Returns:
            Whether it holds.
        """
        deadline = None if seconds is None else monotonic() + seconds
        while not condition():
            if deadline is not None and monotonic() >= deadline:
                return False
            timer = None if deadline is None else self._loop.call_later(deadline - monotonic(), self.notify)
            change: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(change)
            try:
                await change
            finally:
                if timer is not None:
                    timer.cancel()
        return True


class _Sentinel:
    """Lives exactly as long as the timer that carries it."""

    __slots__ = ("__weakref__",)


def on_closed(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> Callable[[], object]:
    """
    Call *callback* when *loop* is closed, from inside `loop.close()`.

    Returns:
        A function that cancels this. Call it on the loop, or after the loop is closed.
    """
    sentinel = _Sentinel()
    handle = weakref.ref(loop.call_later(_NEVER_SECONDS, _hold, sentinel))
    watch: list[weakref.ref[_Sentinel]] = []

    def call_off() -> None:
        watch.clear()
        timer = handle()
        if timer is not None:
            timer.cancel()

    def dropped(_: object) -> None:
        if watch:
            watch.clear()
            callback()

    watch.append(weakref.ref(sentinel, dropped))
    return call_off


def _hold(sentinel: _Sentinel) -> None:
    """Never called: the timer's argument is what matters."""


def keep_from_shutdown(task: asyncio.Task[Any]) -> None:
    """
    Keep `asyncio.run` from cancelling *task* with all others. The code that made it must end it, by a
    `LoopShutdownHook`.
    """
    asyncio._unregister_task(task)  # noqa: SLF001 - documented, in asyncio's "Task lifetime support"


def leave_to_shutdown(task: asyncio.Task[Any]) -> None:
    """Let `asyncio.run` cancel *task* with all others, after `keep_from_shutdown`."""
    asyncio._register_task(task)  # noqa: SLF001 - as above


async def outcome_of(task: asyncio.Task[BaseException | None]) -> BaseException | None:
    """
    Wait for a task that returns its error.

    Returns:
        The error it returned or raised; None if there was none, or the task was cancelled.

    Cancellation: ends the waiting, not the task.
    """
    outcome: asyncio.Future[BaseException | None] = task.get_loop().create_future()

    def done(task: asyncio.Task[BaseException | None]) -> None:
        if not outcome.done():
            outcome.set_result(None if task.cancelled() else task.exception() or task.result())

    task.add_done_callback(done)
    return await outcome


def is_cancelled() -> bool:
    """Whether the running task has been asked to end. If not, a `CancelledError` in it is of something it awaits."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def with_stray_cancellation_as(error: type[Exception], work: Awaitable[T]) -> T:
    """
    Await a callback of the user's, which may raise a `CancelledError` although nothing has cancelled this task: of a
    future that was cancelled, say.

    Raises:
        Exception: *error*, in place of that `CancelledError`, or whatever the work raises.

    Cancellation: cancels the work.
    """
    try:
        return await work
    except asyncio.CancelledError as stray:
        if is_cancelled():
            raise
        raise error("a callback, or what it awaits, raised CancelledError while a connection was opened") from stray


def close_abandoned_task(task: asyncio.Task[Any]) -> None:
    """
    End a task of a closed loop, which will never run it, and close the sockets it has open.

    A connect under way keeps its transport in a local variable. Its own cleanup would close the transport by way of the
    loop, which is too late.
    """
    task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001 - as asyncio.gather does
    coroutine: Any = task.get_coro()
    found = list(_locals_of(coroutine))
    with contextlib.suppress(RuntimeError):  # it awaits something on its way out; nothing will come
        coroutine.close()
    for value in found:
        if isinstance(value, socket.socket):
            value.close()
        elif isinstance(value, asyncio.BaseTransport):
            close_socket_of(value, for_good=True)


def _locals_of(awaited: Any) -> Iterator[object]:
    """List the local variables of a suspended coroutine, and of those it awaits."""
    while inspect.iscoroutine(awaited):
        if awaited.cr_frame is not None:
            yield from awaited.cr_frame.f_locals.values()
        awaited = awaited.cr_await


def close_socket_of(transport: Any, *, for_good: bool) -> None:
    """
    Close a socket through the transport that owns it. Closing it by number would let the transport close the number
    again.

    Does nothing for uvloop's transports, which hide their socket: there, closing the loop closes it.

    Args:
        transport: The owner.
        for_good: Whether its loop will never run again. Then the transport forgets the socket, or its finalizer would
            warn about it. Otherwise it still has to tell its protocol.
    """
    sock = getattr(transport, "_sock", None)
    if sock is not None:
        sock.close()
        if for_good:
            transport._sock = None  # noqa: SLF001


class _HasChild(Protocol):
    def start_afresh_in_child(self) -> None: ...


_inheritors: weakref.WeakSet[_HasChild] = weakref.WeakSet()


def call_in_child(inheritor: _HasChild) -> None:
    """Call `inheritor.start_afresh_in_child()` in every child process forked from now on. Held weakly."""
    _inheritors.add(inheritor)


def _forked() -> None:
    for inheritor in list(_inheritors):
        inheritor.start_afresh_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
