"""Time limits for work on a connection, and for callers that wait for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from loopaware_pool._core.shard import READ_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["LATE_SECONDS", "LEAST_CALLBACK_SECONDS", "patience_after", "within"]

# Longer than anything waits, and still a time that every event loop can represent.
_LONGEST_SECONDS: Final = 1e8

# How long a caller whose time is up waits for the work left on a connection. A healthy server has finished by then, so
# that what the lease held is free when the block ends. With any other server the pool waits, not the caller.
LATE_SECONDS: Final = 0.1

# The shortest time for a callback that looks at, or prepares, a connection about to be lent. A caller with less time
# left would else cost the pool a healthy connection.
LEAST_CALLBACK_SECONDS: Final = 0.04


def patience_after(error: BaseException | None) -> float | None:
    """Return how many seconds a caller may be kept that is leaving with *error*; None for as long as it takes."""
    return LATE_SECONDS if isinstance(error, (asyncio.CancelledError, TimeoutError)) else None


async def within(seconds: float, work: Callable[[], Awaitable[object]], cut: Callable[[], object]) -> None:
    """
    Await *work* for so many seconds; then *cut* its connection.

    The connection is cut before the work is cancelled. Otherwise a driver would first ask the server to cancel the
    query, and might wait for that without a limit. If the loop was blocked when the time was up, there are
    `READ_SECONDS` more.

    Raises:
        TimeoutError: The time was up. Or whatever the work raised when its connection was cut.
        Exception: What the work raised.

    Cancellation: cancels the work.
    """
    limit = asyncio.timeout(None)
    loop = asyncio.get_running_loop()
    due = loop.time() + min(seconds, _LONGEST_SECONDS)
    timer: asyncio.TimerHandle

    def expire() -> None:
        nonlocal timer
        if loop.time() - due < READ_SECONDS:
            end()
        else:
            timer = loop.call_later(READ_SECONDS, end)

    def end() -> None:
        cut()
        limit.reschedule(loop.time())

    timer = loop.call_at(due, expire)
    try:
        async with limit:
            await work()
            if limit.when() is not None:  # the work has ended in the moment in which its connection was cut
                raise TimeoutError
    finally:
        timer.cancel()
