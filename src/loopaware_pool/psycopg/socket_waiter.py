"""
A wait that owns its registrations of a psycopg connection's socket with the event loop.

Why not psycopg's own wait
--------------------------
psycopg's own `wait()` adds a reader before each wait and removes it afterwards. That is two system calls a query. And
if
the connection is closed meanwhile, the entry of a closed fd stays in the selector. The kernel gives the number to the
next
socket, which then is never reported: adding it changes nothing for the selector, and the old wait removes it when it
wakes.

Here one reader stays for as long as a pool has the connection lent, and this module alone adds and removes it:

* The selector is level-triggered. A reader that fires with no wait going on is removed at once, or the loop would spin.
* The generator is driven from the reader's callback. A task woken to read the data would run an iteration later, and
  the selector would report the unread socket once more in between.
* Code that asks for the fd (`fileno()`) may replace the reader by its own, which no loop reports. From then on each
  wait adds our reader again, and the end of the lease removes whatever is there. On asyncio the selector is checked,
  too.
* libpq closes the fd by itself when it sees that the server has gone. That is noticed in the same step, before anything
  else of this loop can be given the number. Removing the registrations may raise then; the task is woken all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from asyncio.tasks import _enter_task as enter_task  # for those who run tasks' steps themselves, says its manual
from asyncio.tasks import _leave_task as leave_task
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg import pq
from psycopg.waiting import Ready, Wait

from loopaware_pool import errors
from loopaware_pool._platform.event_loops import label, post, running
from loopaware_pool._platform.sockets import selector_keys
from loopaware_pool.psycopg.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextvars import Context

__all__ = ["INTERVAL_SECONDS", "ConnectionUse", "SocketWaiter", "WrongLoop", "unregister"]

RV = TypeVar("RV")

# The longest that a connection which never has to wait, as in a long COPY, may keep the loop from other work.
BUSY_SECONDS: Final = 0.005

# After this much silence psycopg resumes a generator, so that it can check the time.
INTERVAL_SECONDS: Final = 0.1
# A timer may fire this much early: event loops round to the resolution of their clock.
_CLOCK_SECONDS: Final = 0.002

# Plain numbers, bound once: psycopg's generators in C yield these, and enum members are slow on 3.11.
_WAIT_R, _WAIT_W = int(Wait.R), int(Wait.W)
_READY_NONE, _READY_R, _READY_W = 0, int(Ready.R), int(Ready.W)
_BAD: Final = pq.ConnStatus.BAD
_ERRORS: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL


class WrongLoop(errors.WrongLoop, psycopg.InterfaceError):
    """A connection was used on another event loop than the one that opened it."""

    def __init__(self, message: str, *, pool: str) -> None:
        psycopg.InterfaceError.__init__(self, message)
        self.pool = pool


class ConnectionUse(Enum):
    """Who may use a connection."""

    NONE = "none"
    """It belongs to no pool. The reader is removed at the end of each wait."""

    USED = "used"
    """A pool has lent it, or works on it. The reader stays."""

    IDLE = "idle"
    """A pool keeps it for the next caller. Nobody may use it."""


_NONE, _USED, _IDLE = ConnectionUse  # bound once: see shard.py


class _Unseen:
    """Stands for the handle of a reader where the loop shows none (uvloop)."""

    @staticmethod
    def cancelled() -> bool:
        return False


_UNSEEN: Final = _Unseen()


class SocketWaiter:
    """
    The registrations of one connection's socket with its loop, and the generator that waits for them.

    It refers neither to the connection nor to the pool: the loop refers to it, and must not keep them alive.

    Attributes:
        loop: The loop it belongs to.
        fd: The socket's number; libpq keeps it until the connection is closed.
        use: Who may use the connection.
        pool_name: The name of its pool, for errors.
        is_shared: Whether other code has asked for the fd, and may have registered it.
    """

    __slots__ = (
        "_error",
        "_generator",
        "_handle",
        "_interval",
        "_is_reading",
        "_is_writing",
        "_keys",
        "_pgconn",
        "_poll",
        "_stepped_at",
        "_task",
        "_ticker",
        "_value",
        "_wakeup",
        "_wanted",
        "_yielded_at",
        "fd",
        "is_shared",
        "loop",
        "pool_name",
        "use",
    )

    def __init__(self, pgconn: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.fd: int = pgconn.socket
        self.use: ConnectionUse = _NONE
        self.pool_name: str = "?"
        self.is_shared: bool = False
        self._pgconn = pgconn
        self._keys = selector_keys(loop)
        self._handle: Any = _UNSEEN
        self._is_reading = False
        self._is_writing = False
        self._wanted = _WAIT_R
        self._generator: Generator[int, int, Any] | None = None
        self._value: Any = None
        self._error: BaseException | None = None
        self._wakeup = Wakeup(loop)
        self._poll: select.poll | None = None
        self._yielded_at = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._interval: float | None = None
        self._stepped_at = 0.0
        self._ticker: asyncio.TimerHandle | None = None

    # ---- waiting ----

    def check_use(self) -> None:
        """
        Raise if the caller may not use the connection.

        Raises:
            psycopg.OperationalError: It is closed.
            WrongLoop: The caller runs on another loop.
            psycopg.InterfaceError: The caller has given it back.
        """
        here = running()
        if here is self.loop and self.use is not _IDLE and self.fd >= 0:
            return
        if self.fd < 0 or self._pgconn.status == _BAD:
            raise psycopg.OperationalError("the connection is closed")
        if here is not self.loop:
            raise WrongLoop(
                f"the connection belongs to {label(self.loop)} and cannot be used on "
                f"{'no loop' if here is None else label(here)}: get one of pool {self.pool_name!r} here",
                pool=self.pool_name,
            )
        raise psycopg.InterfaceError(f"the connection has been returned to pool {self.pool_name!r}")

    def is_waited_for(self) -> bool:
        """Whether a query is waiting for the socket."""
        return self._generator is not None

    async def drive(
        self,
        generator: Generator[int, int, RV],
        *,
        has_begun: bool = False,
        interval: float | None = INTERVAL_SECONDS,
        timeout: float | None = None,
    ) -> RV:
        """
        Run *generator* to its end, waiting for the socket as it asks.

        Args:
            generator: Yields `psycopg.waiting.Wait`, is sent `Ready`.
            has_begun: Whether it has been started, and waits for the socket.
            interval: Seconds of silence after which it is sent `Ready.NONE`, again and again; None never. The timer for
                the default stays on between waits, as few queries last until it fires.
            timeout: Seconds; None waits as long as it takes.

        Returns:
            What it returned.

        Raises:
            psycopg.OperationalError: The connection was closed meanwhile, or, as `_WaitTimeout`, the time is up.
            BaseException: Whatever the generator raised.

        Cancellation: leaves the generator where it is, and the socket without a writer.
        """
        if self._generator is not None:
            raise psycopg.InterfaceError("another operation is waiting on this connection")
        self._generator = generator
        self._advance(_READY_NONE if has_begun else None)
        if self.is_waited_for():
            self._task = asyncio.current_task()
            self._interval = interval
            if interval is not None:
                self._stepped_at = monotonic()
                if self._ticker is None or interval != INTERVAL_SECONDS:
                    self._tick_in(interval)
            timer = None if timeout is None else self.loop.call_later(timeout, self._time_out)
            try:
                await self._wakeup
            except BaseException:
                self._wakeup.leave()
                self._value = self._error = None
                raise
            finally:
                self._generator = self._task = None
                if timer is not None:
                    timer.cancel()
                if interval != INTERVAL_SECONDS:
                    self._stop_ticking()
                self._rest()
        elif monotonic() - self._yielded_at >= BUSY_SECONDS:
            await self._yield()
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame by now
        value, self._value = self._value, None
        return value  # type: ignore[no-any-return]

    def _advance(self, ready: int | None) -> None:
        """
        Run the generator until it has to wait, and watch the socket for what it waits for.

        A socket is nearly always writable, and asking costs less than going round the loop.
        """
        generator: Any = self._generator
        began = 0.0
        try:
            wanted = next(generator) if ready is None else generator.send(ready)
            while wanted & _WAIT_W:
                ready = self._ready_now(wanted)
                if not ready:
                    break
                now = monotonic()
                began = began or now
                if now - began >= BUSY_SECONDS:
                    break  # the loop reports the socket as writable in its next iteration
                wanted = generator.send(ready)
            self._watch(wanted)
        except StopIteration as done:
            self._finish(done.value, None)
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            self._finish(None, error)

    def _finish(self, value: object, error: BaseException | None) -> None:
        self._generator = None
        self._value, self._error = value, error
        if self._pgconn.status == _BAD:
            self.retire()

    def _events(self) -> int:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.fd, select.POLLIN | select.POLLOUT)
        found = self._poll.poll(0)
        return found[0][1] if found else 0

    def _ready_now(self, wanted: int) -> int:
        events = self._events()
        # An error counts as both: libpq finds out which.
        ready = (_READY_R if events & ~select.POLLOUT else 0) | (_READY_W if events & ~select.POLLIN else 0)
        return ready & wanted

    def _rest(self) -> None:
        """Leave the socket's registrations as they should be between waits."""
        self._yielded_at = monotonic()
        if self.use is _NONE:
            self.detach()
        elif self._is_writing:
            self._stop_writing()

    async def _yield(self) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            self._yielded_at = monotonic()

    def _readable(self) -> None:
        if self._generator is None or not self._wanted & _WAIT_R:
            self._stop_reading()
        else:
            self._step(_READY_R)

    def _writable(self) -> None:
        if self._generator is None or not self._wanted & _WAIT_W:
            self._stop_writing()
        else:
            self._step(_READY_W)

    def _step(self, ready: int) -> None:
        """Resume the generator, in the context and the name of the waiting task, as handlers may look at both."""
        context = self._wakeup.context
        if context is not None:
            self._stepped_at = monotonic()
            try:
                self._advance_as(self._task, context, ready)
            finally:
                if self._generator is None:
                    self._wakeup.wake()

    def _advance_as(self, task: asyncio.Task[Any] | None, context: Context, ready: int) -> None:
        if task is None or asyncio.current_task(self.loop) is not None:  # a loop that runs inside another task's step
            context.run(self._advance, ready)
            return
        enter_task(self.loop, task)
        try:
            context.run(self._advance, ready)
        finally:
            leave_task(self.loop, task)

    def _tick_in(self, seconds: float) -> None:
        self._stop_ticking()
        self._ticker = self.loop.call_later(seconds, self._tick)

    def _stop_ticking(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def _tick(self) -> None:
        """Resume the generator after silence; or set the timer for the time when there may have been silence."""
        self._ticker = None
        if self._generator is None or self._interval is None:
            return
        left = self._stepped_at + self._interval - monotonic()
        if left > _CLOCK_SECONDS:
            self._tick_in(left)
        else:
            self._ticker = self.loop.call_later(self._interval, self._tick)  # before the step, which may end the wait
            self._step(_READY_NONE)

    def _time_out(self) -> None:
        """
        Deliver what has come already, as a timeout of 0 must check once; then end the wait.

        After that step the task may be waiting for something else, which must not be ended.
        """
        generator = self._generator
        if generator is not None and (ready := self._ready_now(self._wanted)):
            self._step(ready)
        if self._generator is generator:
            self.fail(_time_is_up())

    def fail(self, error: BaseException) -> None:
        """End the wait that is going on, if there is one, with *error*. On a closed loop no task can be woken."""
        if self._generator is not None:
            self._generator, self._error = None, error
            if not self.loop.is_closed():
                self._wakeup.wake_soon()

    def finish(self, how: str) -> None:
        """
        Remove the registrations, close the socket, and end a query that still waits for it.

        Args:
            how: What happened to the connection, for that query's error: "closed", or "returned to its pool".
        """
        if running() is not self.loop and self.loop.is_running():
            post(self.loop, self.finish, how)  # only its own thread may touch that loop's selector
            return
        self.fail(psycopg.OperationalError(f"the connection was {how} while a query was running"))
        try:
            self.retire()
        finally:
            self._pgconn.finish()

    # ---- registrations ----

    def _watch(self, wanted: int) -> None:
        self._wanted = wanted
        if not wanted & (_WAIT_R | _WAIT_W):
            raise psycopg.InternalError(f"bad poll status: {wanted}")
        if self._pgconn.status == _BAD:  # the number may be another socket's by now
            raise psycopg.OperationalError("the connection is closed")
        try:
            if self._keys is None and self._events() & _ERRORS:
                # uvloop reports an error once, and never again until reader and writer are both removed.
                self._is_reading = self._is_writing = False
                unregister(self.loop, self.fd)
            if not self._is_reading or self.is_shared or self._handle.cancelled():
                self._start_reading()
            if wanted & _WAIT_W:
                self.loop.add_writer(self.fd, self._writable)
                self._is_writing = True
            elif self._is_writing:
                self._stop_writing()
        except BaseException as error:
            self.detach()
            if isinstance(error, OSError):
                raise psycopg.OperationalError("connection socket closed") from error
            raise

    def _start_reading(self) -> None:
        self.loop.add_reader(self.fd, self._readable)
        self._is_reading = True
        if self._keys is not None:
            self._handle = self._keys[self.fd].data[0]

    def _stop_reading(self) -> None:
        self._is_reading = False
        if self.fd >= 0:  # a callback that was due when the socket was retired comes here
            self.loop.remove_reader(self.fd)

    def _stop_writing(self) -> None:
        self._is_writing = False
        if self.fd >= 0:
            self.loop.remove_writer(self.fd)

    def detach(self) -> None:
        """Take the socket out of the selector, whatever put it there. To be called on its loop."""
        self._stop_ticking()
        if self.fd < 0:
            return
        if self._is_reading or self.is_shared or self._is_foreign():
            self._is_reading = self._is_writing = self.is_shared = False
            unregister(self.loop, self.fd)

    def detach_others(self) -> None:
        """Take the socket out of the selector if other code has put it there, or may have."""
        if self.is_shared or self._is_foreign():
            self.detach()

    def retire(self) -> None:
        """Forget a socket that is about to be closed, or has been closed in this very step."""
        try:
            self.detach()
        finally:
            self.fd = -1  # the number will be another socket's

    def forget(self) -> None:
        """Forget the socket without unregistering it: the selector is also another process's."""
        self._is_reading = self._is_writing = self.is_shared = False
        self._keys = None
        self._generator = self._ticker = None
        self.fd = -1

    def _is_foreign(self) -> bool:
        """Whether the selector has an entry that is not ours alone."""
        if self._keys is None:
            return False
        key = self._keys.get(self.fd)
        if key is None or (self._is_reading and key.data == (self._handle, None)):
            return False
        is_closed: bool = self._pgconn.status == _BAD
        return not is_closed  # if libpq has closed it, the entry is a later socket's


def unregister(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """
    Remove the reader and the writer of *fd*, which libpq may have closed in this very step.

    If both are registered, asyncio removes one by changing the selector's entry, which fails for a closed fd: the
    kernel has no entry to change. The selector then drops its own entry before it raises. A number that a transport has
    by now is left alone.
    """
    if loop.is_closed():
        return
    for remove in (loop.remove_reader, loop.remove_writer):
        with contextlib.suppress(OSError, RuntimeError):
            remove(fd)


def _time_is_up() -> psycopg.OperationalError:
    """Make the error that psycopg 3.3 looks for; earlier versions give no timeout."""
    kind: type[psycopg.OperationalError] = getattr(psycopg.errors, "_WaitTimeout", psycopg.OperationalError)
    return kind("wait timeout expired")
