"""How a caller waits for a connection: with one future, in the order of its loop's queue."""

from __future__ import annotations

import asyncio
import functools
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias

from loopaware_pool._core.leases import leases_of, line_of, line_outside
from loopaware_pool._core.slot import Slot, SlotState
from loopaware_pool.driver import S
from loopaware_pool.errors import Overloaded, PoolTimeout

if TYPE_CHECKING:
    from types import CodeType

    from loopaware_pool._core.registry import Registry
    from loopaware_pool._core.runner import ShardRunner

__all__ = ["Queue"]

# Where a caller asked: a code object, and an offset in it.
Line: TypeAlias = "tuple[CodeType | None, int]"

# How often to look whether a caller whose time is up still has a connection opened for it, where connecting has no
# timeout.
CONNECT_LOOK_SECONDS: Final = 0.05


class Queue(Generic[S]):
    """
    The waiting callers of one pool.

    Args:
        registry: The pool's loops.
    """

    def __init__(self, registry: Registry[S]) -> None:
        self._registry = registry

    async def wait(self, runner: ShardRunner[S], timeout: float | None, line: Line | None = None) -> Slot[S]:
        """
        Queue for a connection.

        Args:
            runner: The running loop's runner.
            timeout: Seconds; None waits as long as it takes.
            line: Where the caller asked, as `acquiring_line` gives it; None looks for it on the stack.

        Raises:
            PoolTimeout: No connection came in time.
            PoolClosed: The pool was closed meanwhile.
            TooManyWaiting: `max_waiting` is reached.
            Overloaded: The queue is backed up, and the caller has waited for longer than `shed_after`.
            Exception: What connecting failed with, if *timeout* is None: one caller gets each failure.

        Cancellation: a connection handed over at that moment goes to the next waiter.
        """
        shard = runner.shard
        began = monotonic()
        if not shard.is_open:
            raise self._registry.closed_error()
        self._check_queue(runner)
        now, is_requeued, is_counted = began, False, True
        is_hasty = timeout is not None and timeout <= 0
        runner.callers += 1
        runner.hasty_callers += is_hasty
        try:
            while True:
                waiter: asyncio.Future[Slot[S]] = runner.loop.create_future()
                tick = None
                if timeout is not None:
                    passed = functools.partial(self._time_out, runner, waiter, timeout)
                    tick = runner.deadlines.add(waiter, began + timeout, passed)
                if is_requeued:
                    shard.requeue(waiter, began, now, has_deadline=timeout is not None)
                else:
                    is_counted = shard.enqueue(waiter, began, has_deadline=timeout is not None)
                try:
                    runner.act()
                    slot = await waiter
                except BaseException:
                    self._gave_up(runner, waiter, monotonic() - began, line, is_counted=is_counted)
                    raise
                finally:
                    if tick is not None:
                        runner.deadlines.remove(waiter, tick)
                now = monotonic()
                if slot.state is SlotState.RESERVED:
                    shard.claim(slot, now - began if is_counted else None, now)
                    return slot
                if not shard.is_open:
                    raise self._registry.closed_error()
                # The connection was lost between the hand-over and this line: queue again, with the time that is left.
                taken = shard.take(now)
                runner.act()
                if taken is not None:
                    return taken
                is_requeued = True
        finally:
            runner.callers -= 1
            runner.hasty_callers -= is_hasty

    def waiting_in_line(self) -> int:
        """
        Count the callers, on all loops, that wait for other callers to finish. Those with no time to wait do not count.
        """
        runners, now = self._registry.runners(), monotonic()
        can_be_opened = max((runner.shard.growth_left for runner in runners), default=0)
        in_line = sum(runner.shard.waiting_in_line(now) - runner.hasty_callers for runner in runners)
        return max(0, in_line - can_be_opened)

    def _check_queue(self, runner: ShardRunner[S]) -> None:
        config = self._registry.shared.config
        limit = config.max_waiting
        # The first sum costs a twentieth of the second, and is never less.
        if limit and self._registry.waiting() >= limit and self.waiting_in_line() >= limit:
            runner.shard.counters.refused += 1
            raise self._registry.driver.errors.too_many_waiting(pool=config.name, max_waiting=limit)

    def _time_out(self, runner: ShardRunner[S], waiter: asyncio.Future[Slot[S]], timeout: float) -> None:
        if waiter.done():
            return
        if not self._registry.shared.config.timeout_covers_connecting and runner.shard.is_to_get_a_connect(waiter):
            later = functools.partial(self._time_out, runner, waiter, timeout)
            runner.deadlines.add(waiter, monotonic() + CONNECT_LOOK_SECONDS, later)
            return
        runner.shard.dequeue(waiter)
        runner.shard.counters.timed_out += 1
        waiter.set_exception(self.timeout_error(runner, timeout))

    def timeout_error(self, runner: ShardRunner[S], timeout: float, during: str = "") -> PoolTimeout:
        """Make the error for a caller whose *timeout* (seconds) has passed."""
        asked = self._registry.driver.asked
        if asked and not during:
            during = f" (connecting waits for the function given as {', '.join(asked)})"
        error = self._registry.driver.errors.timeout(
            timeout=timeout,
            stats=self._registry.recent_stats.get(),
            holders=runner.recent_leases.get(),
            during=during,
            cause=runner.shard.last_error,
        )
        _add_own(error, runner)
        return error

    def _gave_up(
        self,
        runner: ShardRunner[S],
        waiter: asyncio.Future[Slot[S]],
        waited_seconds: float,
        line: Line | None,
        *,
        is_counted: bool,
    ) -> None:
        """Take a caller out of the queue. A connection that it was handed at that instant goes to the next caller."""
        shard = runner.shard
        shard.dequeue(waiter)
        if is_counted:
            shard.counters.gave_up_seconds += waited_seconds
        told = waiter.exception() if waiter.done() and not waiter.cancelled() else None
        if isinstance(told, PoolTimeout):
            _add_own(told, runner, line)
        elif told is not None:
            shard.counters.failed += not isinstance(told, Overloaded)
        else:
            shard.counters.cancelled += 1
            if waiter.done() and not waiter.cancelled():
                shard.abandon(waiter.result(), monotonic())
                runner.act()
            if not self._registry.shared.config.timeout_covers_connecting:
                runner.abandon_connects()
        runner.reporter.emit_acquire_failed(told, waited_seconds)


def _add_own(error: PoolTimeout, runner: ShardRunner[Any], line: Line | None = None) -> None:
    """
    Point out in a timeout what the waiting task holds itself. In a timer's callback there is no task; the task adds it
    later.
    """
    task = asyncio.current_task(runner.loop)
    own = [] if task is None else leases_of(task, list(runner.shard.slots), monotonic())
    if task is not None and own:
        where = line_outside(sys._getframe(), task) if line is None else line_of(*line)  # noqa: SLF001
        error.add_own(tuple(own), where)
