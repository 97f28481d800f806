"""What `connection()` returns: a lease that ends with the block."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncContextDecorator
from typing import TYPE_CHECKING, Any, Final, Generic

from psycopg_pool.abc import ACT

from loopaware_pool.bounds import patience_after

if TYPE_CHECKING:
    from types import TracebackType

    from loopaware_pool.psycopg import AsyncConnectionPool
    from loopaware_pool.psycopg_session import PsycopgSession

__all__ = ["Lease"]

_NOT_ENTERED: Final = object()


class Lease(AsyncContextDecorator, AbstractAsyncContextManager[ACT, None], Generic[ACT]):
    """
    Gets a connection on entering; on leaving commits, or rolls back if an error passes, and returns it.

    Cancellation: at any moment, loses nothing. A commit that is cancelled is cancelled on the server.
    """

    __slots__ = ("_connection", "_pool", "_timeout")

    def __init__(self, pool: AsyncConnectionPool[ACT], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._connection: Any = _NOT_ENTERED

    def _recreate_cm(self) -> Lease[ACT]:
        """Begin anew at each call of a function that this decorates."""
        return Lease(self._pool, self._timeout)

    async def __aenter__(self) -> ACT:
        if self._connection is not None and self._connection is not _NOT_ENTERED:
            raise RuntimeError("this context is entered already; call connection() for each lease")
        self._connection = None
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
        connection = self._connection
        if connection is None or connection is _NOT_ENTERED:
            if (connection is _NOT_ENTERED) == (exc_val is None):  # so does psycopg_pool's, which is a generator's
                raise RuntimeError("this context is not entered")
            return
        self._connection = None
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
