"""A time limit for what is done on a connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["within"]

# As good as for ever, and still a time that every event loop can count to.
_LONGEST_SECONDS: Final = 1e8


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
