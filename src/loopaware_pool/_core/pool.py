"""The life of a pool, which all flavours share: it is opened, closed, or dropped, and survives forks."""

from __future__ import annotations

import asyncio
import functools
import warnings
import weakref
from typing import TYPE_CHECKING, Final

from loopaware_pool._core.acquire import Queue
from loopaware_pool._core.registry import Registry
from loopaware_pool._core.terms import PoolState
from loopaware_pool._platform import event_loops, frames

if TYPE_CHECKING:
    from loopaware_pool import errors
    from loopaware_pool._core.config import PoolConfig
    from loopaware_pool._core.permits import Claimant
    from loopaware_pool._core.runner import ShardRunner
    from loopaware_pool.driver import Driver

__all__ = ["PoolCore"]

CLOSE_WARNING_SECONDS: Final = 60.0
# How often `close()` looks for loops that have stopped before they heard of it.
IDLE_LOOP_LOOK_SECONDS: Final = 0.5


class PoolCore(Registry):
    """
    The driver-independent pool.

    Args:
        config: Its settings.
        driver: How connections are made.
        face: The object callers know, whose collection drops the pool.
    """

    def __init__(self, config: PoolConfig, driver: Driver, face: object) -> None:
        super().__init__(config, driver)
        self._opener: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._closers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.queue = Queue(self)
        event_loops.call_in_child(self)
        weakref.finalize(face, _dropped, weakref.ref(self)).atexit = False

    # ---- opening ----

    async def open(self) -> None:
        """
        Introduce the running loop: open `init_size` connections on it, less those open elsewhere.

        The first connects alone, so that what is wrong shows at once. If the pool was not open before and this fails,
        it is closed and nothing is left.

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
            missing = self.config.init_size - self.size()
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
        Introduce the running loop: serve callers at once, and open `min_size` connections meanwhile.

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
        Close the pool on every loop: tell those who wait, wait for leases, say goodbye to the server.

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
        if self.config.close_timeout is not None:
            timers.append(loop.call_later(self.config.close_timeout, self._cut_short))
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
        """Close what is unused on loops that have stopped since they heard of the end, or before they did."""
        for runner in self.runners():
            if event_loops.is_idle(runner.loop):
                self._on(runner, runner.cut_unused)

    async def close_unused(self, timeout: float | None) -> None:
        """
        Close the pool on every loop at once, without waiting for leases: their connections close when they come back.

        Args:
            timeout: Seconds for other loops to take notice, and for connections that are being opened, reset or
                closed; then those are cut. None gives them the time it takes.

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

    def terminate(self) -> None:
        """
        Close every connection on every loop now, lent ones included. From any thread, and without a loop.

        Called by what has interrupted the pool in the middle of a decision, as a signal handler or a listener may, it
        waits for the end of that: connections on this loop are closed in its next iteration.
        """
        if self.state is PoolState.CLOSED:
            return
        self.state = PoolState.CLOSED
        if frames.has_interrupted_a_decision():
            for runner in self.runners():
                runner.errands.leave(functools.partial(self._terminate, runner))
        else:
            for runner in self.runners():
                self._terminate(runner)
            self._finish()

    async def _shut_and_wait(self, runner: ShardRunner, here: asyncio.AbstractEventLoop, timeout: float | None) -> None:
        """Shut a runner; wait until nothing is left but leases, as far as that can be seen from this loop."""
        if runner.loop is here:
            runner.shut(self.closed_error)
            await runner.until(runner.is_unused, timeout)
        else:
            shut: asyncio.Future[None] = here.create_future()
            self._on(runner, lambda: self._shut_for(runner, here, shut))
            await shut

    def _shut_for(self, runner: ShardRunner, here: asyncio.AbstractEventLoop, shut: asyncio.Future[None]) -> None:
        runner.shut(self.closed_error)
        event_loops.post(here, _set, shut)

    def _terminate(self, runner: ShardRunner) -> None:
        end = runner.cut_all if event_loops.is_idle(runner.loop) else runner.terminate
        self._on(runner, lambda: end(self.closed_error))

    def _cut_short(self) -> None:
        held = "; ".join(str(lease) for runner in self.runners() for lease in runner.leases()) or "nobody"
        self.driver.logger.warning(
            "%s: close() ends after %s s, close_timeout; connections still held by: %s",
            self.config.name,
            self.config.close_timeout,
            held,
        )
        for runner in self.runners():
            self._terminate(runner)

    def _finish(self) -> None:
        self.state = PoolState.CLOSED
        self.loop_emptied()

    def loop_emptied(self) -> None:
        """Let go of loops that have no connection left, if the pool is closed; wake those who wait in `close()`."""
        if self.state is PoolState.CLOSED:
            for runner in self.runners():
                if not runner.shard.slots:
                    self._on(runner, functools.partial(self._let_go, runner))
        if self._closers and not any(runner.shard.slots for runner in self.runners()):
            for loop, emptied in self._closers:
                event_loops.post(loop, _set, emptied)

    def _let_go(self, runner: ShardRunner) -> None:
        if not runner.shard.slots:  # it may have begun to connect meanwhile
            runner.dismiss()
            self.loop_ending(runner.loop, runner.shard)
            self.loop_ended(runner.shard)

    def loop_ended(self, shard: Claimant) -> None:
        """Take back the permits of a loop that has no connection left."""
        super().loop_ended(shard)
        if self._closers:
            self.loop_emptied()

    def forked(self) -> None:
        """Start afresh in a child process. The parent's connections, loops and locks are not touched."""
        runners = list(self._runners.values())
        self._start_afresh(self.permits.max_size)
        self._closers = []
        if self.state is PoolState.OPENING:
            self.state = PoolState.NEW
        elif self.state is PoolState.CLOSING:
            self.state = PoolState.CLOSED
        self.driver.forked()
        for runner in runners:
            runner.forked()

    def _warn_of_long_close(self) -> None:
        self.driver.logger.warning(
            "Pool.close() is taking over 60 seconds to complete. Check if you have any unreleased connections left. "
            "Use asyncio.wait_for() to set a timeout for Pool.close()."
        )

    def closing_error(self) -> errors.PoolClosed:
        """Make the error of a caller that comes, or waits, while the pool closes."""
        return self._closed(self.driver.errors.closing_text)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _dropped(dead_or_alive: weakref.ref[PoolCore]) -> None:
    """
    End a pool whose last user has let go of it, unless the collector is quicker.

    Its loops hold the core weakly: a collector that runs first takes connections and all, and the driver warns of
    them. Without one, this closes them at the next iteration.
    """
    if (core := dead_or_alive()) is not None and core.state not in (PoolState.NEW, PoolState.CLOSED):
        for runner in core.runners():
            event_loops.post(runner.loop, _end_dropped, dead_or_alive)


def _end_dropped(dead_or_alive: weakref.ref[PoolCore]) -> None:
    if (core := dead_or_alive()) is not None and core.state is not PoolState.CLOSED:
        core.terminate()
        warnings.warn(f"unclosed pool {core.config.name!r}", ResourceWarning, source=core, stacklevel=1)
