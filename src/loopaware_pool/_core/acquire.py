"""How a caller waits for a connection: by one future, in the order of its loop's queue."""

from __future__ import annotations

import asyncio
import functools
import sys
from time import monotonic
from typing import TYPE_CHECKING

from loopaware_pool._core.leases import leases_of, line_outside
from loopaware_pool._core.slot import Slot, SlotState
from loopaware_pool.errors import Overloaded, PoolTimeout

if TYPE_CHECKING:
    from loopaware_pool._core.registry import Registry
    from loopaware_pool._core.runner import Keeper

__all__ = ["Queue"]


class Queue:
    """
    The waiting callers of one pool.

    Args:
        registry: The pool's loops.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def wait(self, keeper: Keeper, timeout: float | None) -> Slot:
        """
        Queue for a connection.

        Args:
            keeper: The running loop's.
            timeout: Seconds; None waits as long as it takes.

        Raises:
            PoolTimeout: None came in time.
            PoolClosed: The pool was closed meanwhile.
            TooManyWaiting: `max_waiting` is reached.
            Overloaded: The queue stands, and the caller has waited for longer than `shed_after`.
            Exception: What connecting failed with, if *timeout* is None: one caller hears of each failure.

        Cancellation: a connection handed over at that moment goes to the next waiter.
        """
        shard = keeper.shard
        began = monotonic()
        keeper.act()
        if not shard.is_open():
            raise self._registry.closed_error()
        self._check_queue(keeper)
        now, has_come_back, is_counted = began, False, True
        is_hasty = timeout is not None and timeout <= 0
        keeper.callers += 1
        keeper.hasty_callers += is_hasty
        try:
            while True:
                waiter: asyncio.Future[Slot] = keeper.loop.create_future()
                tick = None
                if timeout is not None:
                    passed = functools.partial(self._time_out, keeper, waiter, timeout)
                    tick = keeper.deadlines.add(waiter, began + timeout, passed)
                if has_come_back:
                    shard.come_back(waiter, began, now, has_deadline=timeout is not None)
                else:
                    is_counted = shard.enqueue(waiter, began, has_deadline=timeout is not None)
                try:
                    keeper.act()
                    slot = await waiter
                except BaseException:
                    self._gave_up(keeper, waiter, monotonic() - began, is_counted=is_counted)
                    raise
                finally:
                    if tick is not None:
                        keeper.deadlines.remove(waiter, tick)
                now = monotonic()
                if slot.state is SlotState.RESERVED:
                    shard.claim(slot, now - began if is_counted else None, now)
                    return slot
                if not shard.is_open():
                    raise self._registry.closed_error()
                # It was lost between the hand-over and this line: once more, with what is left of the time.
                taken = shard.take(now)
                keeper.act()
                if taken is not None:
                    return taken
                has_come_back = True
        finally:
            keeper.callers -= 1
            keeper.hasty_callers -= is_hasty

    def waiting_in_line(self) -> int:
        """Count the callers, on all loops, who wait for others to be done; those without any time leave in a moment."""
        keepers, now = self._registry.keepers(), monotonic()
        can_be_opened = max((keeper.shard.growth_left for keeper in keepers), default=0)
        in_line = sum(keeper.shard.waiting_in_line(now) - keeper.hasty_callers for keeper in keepers)
        return max(0, in_line - can_be_opened)

    def _check_queue(self, keeper: Keeper) -> None:
        limit = self._registry.config.max_waiting
        if limit and self.waiting_in_line() >= limit:
            keeper.shard.counters.refused += 1
            raise self._registry.driver.errors.too_many_waiting(pool=self._registry.config.name, max_waiting=limit)

    def _time_out(self, keeper: Keeper, waiter: asyncio.Future[Slot], timeout: float) -> None:
        if waiter.done():
            return
        keeper.shard.leave(waiter)
        keeper.shard.counters.timed_out += 1
        waiter.set_exception(self.timeout_error(keeper, timeout))

    def timeout_error(self, keeper: Keeper, timeout: float, during: str = "") -> PoolTimeout:
        """Make the error of a caller whose *timeout* (seconds) has passed."""
        error = self._registry.driver.errors.timeout(
            timeout=timeout,
            stats=self._registry.stats(),
            holders=tuple(keeper.leases()),
            during=during,
            cause=keeper.shard.last_error,
        )
        _add_own(error, keeper)
        return error

    def _gave_up(
        self, keeper: Keeper, waiter: asyncio.Future[Slot], waited_seconds: float, *, is_counted: bool
    ) -> None:
        """Take a caller out of the queue; what it was handed at that instant goes to the next."""
        shard = keeper.shard
        shard.leave(waiter)
        if is_counted:
            shard.counters.gave_up_seconds += waited_seconds
        told = waiter.exception() if waiter.done() and not waiter.cancelled() else None
        if isinstance(told, PoolTimeout):
            _add_own(told, keeper)
        elif told is not None:
            shard.counters.failed += not isinstance(told, Overloaded)
        else:
            shard.counters.cancelled += 1
            if waiter.done() and not waiter.cancelled():
                shard.abandon(waiter.result(), monotonic())
                keeper.act()
        keeper.reporter.acquire_failed(told, waited_seconds)


def _add_own(error: PoolTimeout, keeper: Keeper) -> None:
    """Say in a timeout what the waiting task holds itself. A timer, which is no task, leaves that to the task."""
    task = asyncio.current_task(keeper.loop)
    own = [] if task is None else leases_of(task, list(keeper.shard.slots), monotonic())
    if own:
        error.add_own(tuple(own), line_outside(sys._getframe()))  # noqa: SLF001
