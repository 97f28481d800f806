"""Time limits: for what is done on a connection, and for those who wait for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["LATE_SECONDS", "patience_after", "within"]

# As good as for ever, and still a time that every event loop can count to.
_LONGEST_SECONDS: Final = 1e8

# How long a caller whose time is up waits for what is left to do on a connection. A server that is well has done it by
# then, so that what the lease held is free when the block ends; for any other the pool waits, not the caller.
LATE_SECONDS: Final = 0.1


def patience_after(error: BaseException | None) -> float | None:
    """Tell how long a caller on whose way out *error* is may be kept, in seconds; None for as long as it takes."""
    return LATE_SECONDS if isinstance(error, (asyncio.CancelledError, TimeoutError)) else None


async def within(seconds: float, work: Callable[[], Awaitable[object]], cut: Callable[[], object]) -> None:
    """
    Await *work* for so many seconds; then *cut* its connection.

    The connection is cut before the work is cancelled: a driver would else have the server cancel the query first, and
    wait for that as long as it likes.

    Raises:
        TimeoutError: The time was up; or what the work made of the cut.
        Exception: What the work raised.

    Cancellation: cancels the work.
    """
    limit = asyncio.timeout(None)
    loop = asyncio.get_running_loop()

    def expire() -> None:
        cut()
        limit.reschedule(loop.time())

    timer = loop.call_later(min(seconds, _LONGEST_SECONDS), expire)
    try:
        async with limit:
            await work()
    finally:
        timer.cancel()
