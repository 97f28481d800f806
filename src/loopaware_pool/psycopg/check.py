"""The user's `check`, called with connections until one passes."""

from __future__ import annotations

import asyncio
import logging
import random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool._core.timeouts import within
from loopaware_pool.errors import PoolTimeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from loopaware_pool._core.runner import Keeper
    from loopaware_pool._core.session_listener import Tenancy
    from loopaware_pool.psycopg.pool import AsyncConnectionPool

__all__ = ["Checkup"]

logger = logging.getLogger("psycopg.pool")

# psycopg_pool's pace: at once, after a second or so, and then twice as long each time.
FIRST_PAUSE_SECONDS: Final = 1.0
_PAUSE_JITTER: Final = 0.1
# A caller who comes late would else cost the pool a connection in good health.
LEAST_CHECK_SECONDS: Final = 0.04


class Checkup:
    """
    One caller's search for a connection that passes.

    Args:
        pool: Where the connections are from.
        keeper: The running loop's part of it.
        check: The user's function.
        timeout: Seconds that the caller has given.
        began: When they began, monotonic seconds.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[Any],
        keeper: Keeper,
        check: Callable[[Any], Awaitable[None]],
        timeout: float,
        began: float,
    ) -> None:
        self._pool = pool
        self._keeper = keeper
        self._check = check
        self._timeout = timeout
        self._deadline = began + timeout
        self._pause_seconds = 0.0

    async def first_that_passes(self, connection: Any) -> Any:
        """
        Check *connection*, and others until one passes; what fails goes back, or is closed if it is dead.

        Only a connection that is alive and fails is worth a pause: where one was dead, the next need not be.

        Raises:
            PoolTimeout: None passed in time.

        Cancellation: the connection goes back.
        """
        self._keeper.callers += 1
        try:
            while not await self._passes(connection):
                was_dead = connection.closed
                self._pool._rechecks += 1
                self._put_back(connection)
                if not was_dead:
                    await self._pause()
                connection = await self._another()
        finally:
            self._keeper.callers -= 1
        return connection

    def _put_back(self, connection: Any) -> None:
        tenancy: Tenancy = self._pool._session_of(connection).owner  # type: ignore[assignment]
        if not connection.closed:
            self._pool._take_back(connection)
        elif tenancy.slot.is_lent():
            logger.info("not serving connection found broken")
            self._keeper.shard.counters.found_dead += 1
            self._keeper.shard.retire(tenancy.slot, "failed its check", politely=False)
            self._keeper.shard.drop_dead()
            self._keeper.act()

    async def _pause(self) -> None:
        pause = min(self._pause_seconds, max(0.0, self._deadline - monotonic()))
        if self._pause_seconds:
            self._pause_seconds *= 2
        else:
            self._pause_seconds = FIRST_PAUSE_SECONDS * random.uniform(1 - _PAUSE_JITTER, 1 + _PAUSE_JITTER)
        await asyncio.sleep(pause)

    async def _another(self) -> Any:
        keeper, core = self._keeper, self._pool._core
        now = monotonic()
        left = self._deadline - now
        if left <= 0:
            keeper.shard.counters.timed_out += 1
            raise core.queue.timeout_error(keeper, self._timeout, " (in check)")
        slot = keeper.shard.take(now)
        keeper.act()
        if slot is None:
            try:
                slot = await core.queue.wait(keeper, left)
            except PoolTimeout as late:
                raise core.queue.timeout_error(keeper, self._timeout) from late.__cause__
        return self._pool._lend(slot, keeper)

    async def _passes(self, connection: Any) -> bool:
        """
        Call the user's function, as long as there is time, and a little longer if there is next to none.
        """
        left = max(LEAST_CHECK_SECONDS, self._deadline - monotonic())
        try:
            await within(left, lambda: self._check(connection), self._pool._session_of(connection).abort)
        except Exception as error:  # noqa: BLE001 - any says that this connection will not do
            logger.info("connection failed check: %s", error)
            return False
        except BaseException:
            self._pool._take_back(connection)
            raise
        return True
