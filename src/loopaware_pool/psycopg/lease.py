"""What `connection()` returns: a lease that ends with the block."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncContextDecorator
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic

from psycopg_pool.abc import ACT

from loopaware_pool._core.timeouts import patience_after

if TYPE_CHECKING:
    from types import TracebackType

    from loopaware_pool.psycopg.pool import AsyncConnectionPool
    from loopaware_pool.psycopg.session import PsycopgSession

__all__ = ["Lease"]


class _Phase(Enum):
    NEW = auto()
    ENTERED = auto()
    LEFT = auto()


# Bound once: see shard.py.
_NEW, _ENTERED, _LEFT = _Phase


class Lease(AsyncContextDecorator, AbstractAsyncContextManager[ACT, None], Generic[ACT]):
    """
    Gets a connection on entering; on leaving commits, or rolls back if an error passes, and returns it.

    Cancellation: at any moment, loses nothing. A commit that is cancelled is cancelled on the server.
    """

    __slots__ = ("_connection", "_phase", "_pool", "_timeout")

    def __init__(self, pool: AsyncConnectionPool[ACT], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._phase = _NEW
        self._connection: Any = None

    def _recreate_cm(self) -> Lease[ACT]:
        """Begin anew at each call of a function that this decorates."""
        return Lease(self._pool, self._timeout)

    async def __aenter__(self) -> ACT:
        if self._phase is not _NEW:
            raise RuntimeError("this context was entered already; call connection() for each lease")
        self._phase = _ENTERED
        self._connection = connection = await self._pool.getconn(timeout=self._timeout)
        session: PsycopgSession = connection._loopaware_session  # type: ignore[attr-defined]
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
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            if (self._phase is _NEW) == (exc_val is None):  # so does psycopg_pool's, which is a generator's
                raise RuntimeError("this context was not entered; use it with `async with`")
            return
        self._phase = _LEFT
        session: PsycopgSession = connection._loopaware_session
        if exc_val is not None:
            session.suspect(exc_val)
        try:
            is_late = exc_val is not None and patience_after(exc_val) is not None
            if is_late and session.has_only_to_roll_back(connection):
                pass  # the pool does: once the caller's time is up, no deadline would end a rollback here
            elif not session.has_nothing_to_end(connection):
                await connection.__aexit__(exc_type, exc_val, exc_tb)
        finally:
            await self._pool.putconn(connection)
