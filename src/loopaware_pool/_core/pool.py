"""The life cycle of a pool, shared by all flavours: opening, closing, being dropped, and forks."""

from __future__ import annotations

import asyncio
import functools
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool._core.acquire import Queue
from loopaware_pool._core.registry import Registry
from loopaware_pool._core.slot import SlotState
from loopaware_pool._core.state import PoolState
from loopaware_pool._platform import event_loops, frames
from loopaware_pool._platform.log_fields import fields
from loopaware_pool.driver import S

if TYPE_CHECKING:
    from loopaware_pool import errors
    from loopaware_pool._core.config import PoolConfig
    from loopaware_pool._core.permits import Claimant
    from loopaware_pool._core.runner import ShardRunner
    from loopaware_pool.driver import Driver

__all__ = ["PoolCore"]

CLOSE_WARNING_SECONDS: Final = 60.0
# How often `close()` looks for loops that have stopped before they were told.
IDLE_LOOP_LOOK_SECONDS: Final = 0.5


class PoolCore(Registry[S]):
    """
    The driver-independent pool.

    Args:
        config: The pool's settings.
        driver: How connections are made.
        face: The public pool object; when it is collected, the pool is closed.
    """

    def __init__(self, config: PoolConfig, driver: Driver[S], face: object) -> None:
        super().__init__(config, driver)
        self._opener: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._closers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.queue: Queue[S] = Queue(self)
        event_loops.call_in_child(self)
        weakref.finalize(face, _dropped, weakref.ref(self)).atexit = False

    # ---- opening ----

    async def open(self) -> None:
        """
        Open `init_size` connections on the running loop, less those open elsewhere, and serve this loop from now on.

        The first connects alone, so that a configuration error shows at once. If the pool was not open before and this
        fails, the pool is closed and nothing is left open.

        Raises:
            Exception: What connecting failed with.

        Cancellation: as a failure.
        """
        runner = self.runner()
        if runner.shard.keeps_floor:
            return
        first_loop = self.state is PoolState.NEW
        if first_loop:
            self.state = PoolState.OPENING
            self._opener = weakref.ref(runner.loop)
        runner.callers += 1
        try:
            missing = self.shared.config.init_size - self.size()
            if missing > 0 and await runner.open_one() and missing > 1:
                async with asyncio.TaskGroup() as group:
                    for _ in range(missing - 1):
                        group.create_task(runner.open_one())
        except BaseException as error:
            if first_loop:
                self.terminate()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise
        finally:
            runner.callers -= 1
        if self.state is PoolState.OPENING:
            self.state = PoolState.OPEN
        runner.keep_floor()

    def start(self) -> None:
        """
        Serve the running loop from now on, and open `min_size` connections in the background.

        Raises:
            UnsupportedLoop: No loop is running, or one that cannot watch sockets.
        """
        runner = self.runner()
        if self.state is PoolState.NEW:
            self.state = PoolState.OPEN
        runner.keep_floor()

    def is_opening_here(self) -> bool:
        """Whether the running loop is the one that is opening the pool."""
        return self._opener is not None and self._opener() is event_loops.running()

    # ---- the end ----

    async def close(self) -> None:
        """
        Close the pool on every loop: refuse waiting callers, wait for leases, close connections politely.

        Leases are waited for as long as `close_timeout` allows; then they are terminated, and a warning is logged.

        Cancellation: terminates everything at once.
        """
        if self.state is PoolState.CLOSED:
            return
        self.state = PoolState.CLOSING
        loop = asyncio.get_running_loop()
        emptied: asyncio.Future[None] = loop.create_future()
        closer = (loop, emptied)
        self._closers.append(closer)
        timers = [loop.call_later(CLOSE_WARNING_SECONDS, self._warn_of_long_close)]
        if self.shared.config.close_timeout is not None:
            timers.append(loop.call_later(self.shared.config.close_timeout, self._cut_short))
        try:
            for runner in self.runners():
                self._on(runner, functools.partial(runner.shut, self.closing_error))
            self.loop_emptied()
            while not emptied.done():
                self._close_where_nobody_is()
                await asyncio.wait([emptied], timeout=IDLE_LOOP_LOOK_SECONDS)
        except BaseException:
            self.terminate()
            raise
        finally:
            self._closers.remove(closer)
            for timer in timers:
                timer.cancel()
        self._finish()

    def _close_where_nobody_is(self) -> None:
        """Close unused connections on loops that are not running any more."""
        for runner in self.runners():
            if event_loops.is_idle(runner.loop):
                self._on(runner, runner.cut_unused)

    async def close_unused(self, timeout: float | None) -> None:
        """
        Close the pool on every loop without waiting for leases: their connections close when they come back.

        Args:
            timeout: Seconds for other loops to react, and for connections that are being opened, reset or closed; then
                those are aborted. None waits as long as it takes.

        Cancellation: ends the waiting. The pool is closed.
        """
        if self.state is PoolState.CLOSED:
            return
        self.state = PoolState.CLOSED
        loop = asyncio.get_running_loop()
        runners = self.runners()
        pending = [asyncio.ensure_future(self._shut_and_wait(runner, loop, timeout)) for runner in runners]
        if pending:
            try:
                await asyncio.wait(pending, timeout=timeout)
            finally:
                for waiting in pending:
                    waiting.cancel()
                for runner in runners:
                    self._on(runner, runner.cut_unused)
        self.loop_emptied()

    def shut_unused(self) -> None:
        """Close the pool on every loop as `close_unused` does, and wait for nothing. From any thread."""
        if self.state is not PoolState.CLOSED:
            self.state = PoolState.CLOSED
            for runner in self.runners():
                self._on(runner, functools.partial(runner.shut, self.closed_error))
            self.loop_emptied()

    def terminate(self) -> None:
        """
        Close every connection on every loop now, lent ones included. From any thread, and without a loop.

        A signal handler or the garbage collector may call this in the middle of a decision. The decision is completed
        first: this loop's connections, and those of loops that are not running, are closed in its next iteration.
        """
        if self.state is PoolState.CLOSED:
            return
        self.state = PoolState.CLOSED
        if frames.has_interrupted_a_decision():
            for runner in self.runners():
                runner.errands.add_for_later(functools.partial(self._terminate, runner))
            if (here := event_loops.running()) is not None:
                event_loops.post(here, self.run_errands_of_idle_loops)
        else:
            for runner in self.runners():
                self._terminate(runner)
            self._finish()

    async def _shut_and_wait(
        self, runner: ShardRunner[S], here: asyncio.AbstractEventLoop, timeout: float | None
    ) -> None:
        """
        Shut a runner. If it is on this loop, wait until only leases are left; else wait until its loop has done it.
        """
        if runner.loop is here:
            runner.shut(self.closed_error)
            await runner.changes.until(runner.is_unused, timeout)
        else:
            shut: asyncio.Future[None] = here.create_future()
            self._on(runner, lambda: self._shut_for(runner, here, shut))
            await shut

    def _shut_for(self, runner: ShardRunner[S], here: asyncio.AbstractEventLoop, shut: asyncio.Future[None]) -> None:
        runner.shut(self.closed_error)
        event_loops.post(here, _set, shut)

    def _terminate(self, runner: ShardRunner[S]) -> None:
        end = runner.cut_all if event_loops.is_idle(runner.loop) else runner.terminate
        self._on(runner, lambda: end(self.closed_error))

    def _cut_short(self) -> None:
        held = "; ".join(str(lease) for runner in self.runners() for lease in runner.leases()) or "nobody"
        self.driver.logger.warning(
            "%s: close() ends after %s s, close_timeout; connections still held by: %s",
            self.shared.config.name,
            self.shared.config.close_timeout,
            held,
            extra=self._log_fields("close_cut_short", pool_close_timeout=self.shared.config.close_timeout),
        )
        for runner in self.runners():
            self._terminate(runner)

    def _finish(self) -> None:
        self.state = PoolState.CLOSED
        self.loop_emptied()

    def loop_emptied(self) -> None:
        """
        If the pool is closed, let go of loops that have no connection left. Wake the callers of `close()` when none
        has.
        """
        if self.state is PoolState.CLOSED:
            for runner in self.runners():
                if not runner.shard.slots:
                    self._on(runner, functools.partial(self._let_go, runner))
        if self._closers and not any(runner.shard.slots for runner in self.runners()):
            for loop, emptied in list(self._closers):  # one that is woken leaves the list, in its own thread
                event_loops.post(loop, _set, emptied)

    def _let_go(self, runner: ShardRunner[S]) -> None:
        if not runner.shard.slots:  # a connect may have begun meanwhile
            runner.dismiss()
            self.loop_ending(runner.loop, runner.shard)
            self.loop_ended(runner.shard)

    def loop_ended(self, shard: Claimant) -> None:
        """Take back the permits of a loop that has no connection left."""
        super().loop_ended(shard)
        if self._closers:
            self.loop_emptied()

    def start_afresh_in_child(self) -> None:
        """Start afresh in a child process, without touching the parent's connections, loops and locks."""
        runners = list(self._runners.values())
        self._start_afresh()
        self._closers = []
        if self.state is PoolState.OPENING:
            self.state = PoolState.NEW
        elif self.state is PoolState.CLOSING:
            self.state = PoolState.CLOSED
        self.driver.forked()
        for runner in runners:
            runner.forget_in_child()

    def _warn_of_long_close(self) -> None:
        self.driver.logger.warning(
            "Pool.close() is taking over 60 seconds to complete. Check if you have any unreleased connections left. "
            "Use asyncio.wait_for() to set a timeout for Pool.close().",
            extra=self._log_fields("close_takes_long"),
        )

    def _log_fields(self, event: str, **facts: Any) -> dict[str, Any]:
        lent = len(self.slots(*(state for state in SlotState if state is not SlotState.LENT)))
        return fields(event, self.shared.config.name, pool_lent=lent, **self.counts(), **facts)

    def closing_error(self) -> errors.PoolClosed:
        """Make the error for a caller that comes, or waits, while the pool closes."""
        return self._closed(self.driver.errors.closing_text)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _dropped(dead_or_alive: weakref.ref[PoolCore[Any]]) -> None:
    """
    Close a pool that its last user has dropped, if the core still exists.

    Its loops hold the core weakly. If the garbage collector takes the core first, it takes the connections too, and the
    driver warns about them. Otherwise this closes them in their loops' next iteration.
    """
    if (core := dead_or_alive()) is not None and core.state not in (PoolState.NEW, PoolState.CLOSED):
        for runner in core.runners():
            event_loops.post(runner.loop, _end_dropped, dead_or_alive)


def _end_dropped(dead_or_alive: weakref.ref[PoolCore[Any]]) -> None:
    if (core := dead_or_alive()) is not None and core.state is not PoolState.CLOSED:
        core.terminate()
        warnings.warn(f"unclosed pool {core.shared.config.name!r}", ResourceWarning, source=core, stacklevel=1)
