"""How a connection is lent: after it has passed the user's `check`, and for the length of a block."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import AbstractAsyncContextManager, AsyncContextDecorator
from enum import Enum, auto
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol

from psycopg_pool.abc import ACT

from loopaware_pool._core.timeouts import LEAST_CALLBACK_SECONDS, patience_after, within
from loopaware_pool._platform.log_fields import error_type, fields
from loopaware_pool.errors import PoolTimeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from loopaware_pool._core.pool import PoolCore
    from loopaware_pool._core.runner import SessionListener, ShardRunner
    from loopaware_pool._core.slot import Slot
    from loopaware_pool.psycopg.session import PsycopgSession

__all__ = ["Checkup", "Lease"]

logger: logging.Logger = logging.getLogger("psycopg.pool")

# psycopg_pool's pace: at once, then after a second or so, then twice as long each time.
FIRST_PAUSE_SECONDS: Final = 1.0
_PAUSE_JITTER: Final = 0.1


class _Phase(Enum):
    NEW = auto()
    ENTERED = auto()
    LEFT = auto()


# Bound once: see shard.py.
_NEW, _ENTERED, _LEFT = _Phase


class Lender(Protocol[ACT]):
    """The part of the pool that this module uses."""

    _core: PoolCore[PsycopgSession]
    _rechecks: int
    name: str

    def getconn(self, timeout: float | None = None) -> Awaitable[ACT]:
        """Lend a connection."""

    def putconn(self, conn: ACT) -> Awaitable[None]:
        """Take a connection back."""

    def _lend(self, slot: Slot[PsycopgSession], runner: ShardRunner[PsycopgSession]) -> ACT: ...

    def _take_back(self, conn: Any) -> SessionListener[PsycopgSession] | None: ...

    def _session_of(self, conn: Any) -> PsycopgSession: ...


class Checkup:
    """
    One caller's search for a connection that passes the check.

    Args:
        pool: The pool.
        runner: The running loop's runner.
        check: The user's function.
        timeout: The caller's timeout, in seconds.
        began: When the timeout began, monotonic seconds.
    """

    def __init__(
        self,
        pool: Lender[Any],
        runner: ShardRunner[PsycopgSession],
        check: Callable[[Any], Awaitable[None]],
        timeout: float,
        began: float,
    ) -> None:
        self._pool = pool
        self._runner = runner
        self._check = check
        self._timeout = timeout
        self._deadline = began + timeout
        self._pause_seconds = 0.0

    async def first_that_passes(self, connection: Any) -> Any:
        """
        Check *connection*, and others, until one passes. One that fails goes back to the pool, or is closed if it is
        dead.

        There is a pause only after a connection that is alive and fails: where one was dead, the next need not be.

        Raises:
            PoolTimeout: None passed in time.

        Cancellation: the connection goes back.
        """
        self._runner.callers += 1
        try:
            while not await self._passes(connection):
                was_dead = connection.closed
                self._put_back(connection)
                if not was_dead:
                    await self._pause()
                connection = await self._another()
        finally:
            self._runner.callers -= 1
        return connection

    def _put_back(self, connection: Any) -> None:
        listener = self._pool._session_of(connection).owner
        if not connection.closed:
            self._pool._take_back(connection)
        elif listener is not None and listener.slot.is_lent():
            told = fields("found_broken", self._pool.name)
            logger.info("not serving connection found broken", extra=told)
            self._runner.shard.counters.found_dead += 1
            self._runner.shard.retire(listener.slot, "failed its check", politely=False)
            self._runner.shard.suspect(monotonic())
            self._runner.act()

    async def _pause(self) -> None:
        pause = min(self._pause_seconds, max(0.0, self._deadline - monotonic()))
        if self._pause_seconds:
            self._pause_seconds *= 2
        else:
            self._pause_seconds = FIRST_PAUSE_SECONDS * random.uniform(1 - _PAUSE_JITTER, 1 + _PAUSE_JITTER)
        await asyncio.sleep(pause)

    async def _another(self) -> Any:
        self._pool._rechecks += 1  # from here on the caller is counted a second time
        runner, queue = self._runner, self._pool._core.queue
        now = monotonic()
        left = self._deadline - now
        if left <= 0:
            runner.shard.counters.timed_out += 1
            raise queue.timeout_error(runner, self._timeout, " (in check)")
        slot = runner.shard.take(now)
        runner.act()
        if slot is None:
            try:
                slot = await queue.wait(runner, left)
            except PoolTimeout as late:
                raise queue.timeout_error(runner, self._timeout) from late.__cause__
        return self._pool._lend(slot, runner)

    async def _passes(self, connection: Any) -> bool:
        """Call the user's function with the time that is left, or a little more if that is almost nothing."""
        left = max(LEAST_CALLBACK_SECONDS, self._deadline - monotonic())
        try:
            await within(left, lambda: self._check(connection), self._pool._session_of(connection).abort)
        except Exception as error:  # noqa: BLE001 - any error fails the check
            told = fields("check_failed", self._pool.name, pool_error=error_type(error))
            logger.info("connection failed check: %s", error, extra=told)
            return False
        except BaseException:
            self._pool._take_back(connection)
            raise
        return True


class Lease(AsyncContextDecorator, AbstractAsyncContextManager[ACT, bool | None], Generic[ACT]):
    """
    Gets a connection on entering. On leaving it commits, or rolls back after an error, and returns the connection.

    Cancellation: at any moment, loses nothing. A commit that is cancelled is cancelled on the server.
    """

    __slots__ = ("_connection", "_phase", "_pool", "_timeout")

    def __init__(self, pool: Lender[ACT], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._phase = _NEW
        self._connection: Any = None

    def _recreate_cm(self) -> Lease[ACT]:
        """Start anew at each call of a function that this decorates."""
        return Lease(self._pool, self._timeout)

    async def __aenter__(self) -> ACT:
        if self._phase is not _NEW:
            raise RuntimeError("this context was entered already; call connection() for each lease")
        self._phase = _ENTERED
        self._connection = connection = await self._pool.getconn(timeout=self._timeout)
        session: PsycopgSession = self._connection._loopaware_session
        if not session.leaves_plainly:
            try:
                await connection.__aenter__()
            except BaseException:
                self._connection = None
                await self._pool.putconn(connection)
                raise
        return connection

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        connection, self._connection = self._connection, None
        if connection is None:
            if (self._phase is _NEW) == (exc_val is None):  # as psycopg_pool's, which is a generator's
                raise RuntimeError("this context was not entered; use it with `async with`")
            return False
        self._phase = _LEFT
        session: PsycopgSession = connection._loopaware_session
        if exc_val is not None:
            session.suspect(exc_val)
        is_suppressed: bool | None = False  # by a class of the user's; psycopg's own suppress nothing
        try:
            is_late = exc_val is not None and patience_after(exc_val) is not None
            if is_late and session.has_only_to_roll_back(connection):
                pass  # the pool rolls back: the caller's deadline has passed, so nothing would end a rollback here
            elif not session.has_nothing_to_end(connection):
                is_suppressed = await connection.__aexit__(exc_type, exc_val, exc_tb)
        finally:
            await self._pool.putconn(connection)
        return exc_val is not None and bool(is_suppressed)
