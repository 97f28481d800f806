"""The life of a pool, which all flavours share: it is opened, closed, or dropped, and survives forks."""

from __future__ import annotations

import asyncio
import functools
import warnings
import weakref
from typing import TYPE_CHECKING, Final

from loopaware_pool._core.acquire import Queue
from loopaware_pool._core.registry import Registry
from loopaware_pool._core.terms import CoreState
from loopaware_pool._platform import event_loops, frames

if TYPE_CHECKING:
    from loopaware_pool import errors
    from loopaware_pool._core.config import PoolConfig
    from loopaware_pool._core.permits import Claimant
    from loopaware_pool._core.runner import Keeper
    from loopaware_pool.driver import Driver

__all__ = ["Core"]

CLOSE_WARNING_SECONDS: Final = 60.0
# How often `close()` looks for loops that have stopped before they heard of it.
IDLE_LOOP_LOOK_SECONDS: Final = 0.5


class Core(Registry):
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
        keeper = self.keeper()
        if keeper.shard.keeps_floor:
            return
        first_loop = self.state is CoreState.NEW
        if first_loop:
            self.state = CoreState.OPENING
            self._opener = weakref.ref(keeper.loop)
        keeper.callers += 1
        try:
            missing = self.config.init_size - self.size()
            if missing > 0 and await keeper.open_one() and missing > 1:
                async with asyncio.TaskGroup() as group:
                    for _ in range(missing - 1):
                        group.create_task(keeper.open_one())
        except BaseException as error:
            if first_loop:
                self.terminate()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise
        finally:
            keeper.callers -= 1
        if self.state is CoreState.OPENING:
            self.state = CoreState.OPEN
        keeper.keep_floor()

    def start(self) -> None:
        """
        Introduce the running loop: serve callers at once, and open `min_size` connections meanwhile.

        Raises:
            UnsupportedLoop: No loop is running, or one that cannot watch sockets.
        """
        keeper = self.keeper()
        if self.state is CoreState.NEW:
            self.state = CoreState.OPEN
        keeper.keep_floor()

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
        if self.state is CoreState.CLOSED:
            return
        self.state = CoreState.CLOSING
        loop = asyncio.get_running_loop()
        emptied: asyncio.Future[None] = loop.create_future()
        closer = (loop, emptied)
        self._closers.append(closer)
        timers = [loop.call_later(CLOSE_WARNING_SECONDS, self._warn_of_long_close)]
        if self.config.close_timeout is not None:
            timers.append(loop.call_later(self.config.close_timeout, self._cut_short))
        try:
            for keeper in self.keepers():
                self._on(keeper, functools.partial(keeper.shut, self.closing_error))
            self.keeper_emptied()
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
        for keeper in self.keepers():
            if event_loops.is_idle(keeper.loop):
                self._on(keeper, keeper.cut_unused)

    async def close_unused(self, timeout: float | None) -> None:
        """
        Close the pool on every loop at once, without waiting for leases: their connections close when they come back.

        Args:
            timeout: Seconds for other loops to take notice, and for connections that are being opened, reset or
                closed; then those are cut. None gives them the time it takes.

        Cancellation: ends the waiting. The pool is closed.
        """
        if self.state is CoreState.CLOSED:
            return
        self.state = CoreState.CLOSED
        loop = asyncio.get_running_loop()
        keepers = self.keepers()
        pending = [asyncio.ensure_future(self._shut_and_wait(keeper, loop, timeout)) for keeper in keepers]
        if pending:
            try:
                await asyncio.wait(pending, timeout=timeout)
            finally:
                for waiting in pending:
                    waiting.cancel()
                for keeper in keepers:
                    self._on(keeper, keeper.cut_unused)
        self.keeper_emptied()

    def terminate(self) -> None:
        """
        Close every connection on every loop now, lent ones included. From any thread, and without a loop.

        Called by what has interrupted the pool in the middle of a decision, as a signal handler or a listener may, it
        waits for the end of that: connections on this loop are closed in its next iteration.
        """
        if self.state is CoreState.CLOSED:
            return
        self.state = CoreState.CLOSED
        if frames.has_interrupted_a_decision():
            for keeper in self.keepers():
                keeper.errands.leave(functools.partial(self._terminate, keeper))
        else:
            for keeper in self.keepers():
                self._terminate(keeper)
            self._finish()

    async def _shut_and_wait(self, keeper: Keeper, here: asyncio.AbstractEventLoop, timeout: float | None) -> None:
        """Shut a keeper; wait until nothing is left but leases, as far as that can be seen from this loop."""
        if keeper.loop is here:
            keeper.shut(self.closed_error)
            await keeper.until(keeper.is_unused, timeout)
        else:
            shut: asyncio.Future[None] = here.create_future()
            self._on(keeper, lambda: self._shut_for(keeper, here, shut))
            await shut

    def _shut_for(self, keeper: Keeper, here: asyncio.AbstractEventLoop, shut: asyncio.Future[None]) -> None:
        keeper.shut(self.closed_error)
        event_loops.post(here, _set, shut)

    def _terminate(self, keeper: Keeper) -> None:
        end = keeper.cut_all if event_loops.is_idle(keeper.loop) else keeper.terminate
        self._on(keeper, lambda: end(self.closed_error))

    def _cut_short(self) -> None:
        held = "; ".join(str(lease) for keeper in self.keepers() for lease in keeper.leases()) or "nobody"
        self.driver.logger.warning(
            "%s: close() ends after %s s, close_timeout; connections still held by: %s",
            self.config.name,
            self.config.close_timeout,
            held,
        )
        for keeper in self.keepers():
            self._terminate(keeper)

    def _finish(self) -> None:
        self.state = CoreState.CLOSED
        self.keeper_emptied()

    def keeper_emptied(self) -> None:
        """Let go of loops that have no connection left, if the pool is closed; wake those who wait in `close()`."""
        if self.state is CoreState.CLOSED:
            for keeper in self.keepers():
                if not keeper.shard.slots:
                    self._on(keeper, functools.partial(self._let_go, keeper))
        if self._closers and not any(keeper.shard.slots for keeper in self.keepers()):
            for loop, emptied in self._closers:
                event_loops.post(loop, _set, emptied)

    def _let_go(self, keeper: Keeper) -> None:
        if not keeper.shard.slots:  # it may have begun to connect meanwhile
            keeper.dismiss()
            self.loop_ending(keeper.loop, keeper.shard)
            self.loop_ended(keeper.shard)

    def loop_ended(self, shard: Claimant) -> None:
        """Take back the permits of a loop that has no connection left."""
        super().loop_ended(shard)
        if self._closers:
            self.keeper_emptied()

    def forked(self) -> None:
        """Start afresh in a child process. The parent's connections, loops and locks are not touched."""
        keepers = list(self._keepers.values())
        self._start_afresh(self.budget.max_size)
        self._closers = []
        if self.state is CoreState.OPENING:
            self.state = CoreState.NEW
        elif self.state is CoreState.CLOSING:
            self.state = CoreState.CLOSED
        self.driver.forked()
        for keeper in keepers:
            keeper.forked()

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


def _dropped(dead_or_alive: weakref.ref[Core]) -> None:
    """
    End a pool whose last user has let go of it, unless the collector is quicker.

    Its loops hold the core weakly: a collector that runs first takes connections and all, and the driver warns of
    them. Without one, this closes them at the next iteration.
    """
    if (core := dead_or_alive()) is not None and core.state not in (CoreState.NEW, CoreState.CLOSED):
        for keeper in core.keepers():
            event_loops.post(keeper.loop, _end_dropped, dead_or_alive)


def _end_dropped(dead_or_alive: weakref.ref[Core]) -> None:
    if (core := dead_or_alive()) is not None and core.state is not CoreState.CLOSED:
        core.terminate()
        warnings.warn(f"unclosed pool {core.config.name!r}", ResourceWarning, source=core, stacklevel=1)
