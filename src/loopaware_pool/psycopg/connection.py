"""
psycopg's connection, made to own its registrations with the event loop. The default connection class of our pools.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeVar

import psycopg
from psycopg import AsyncConnection, pq
from psycopg.rows import Row

from loopaware_pool._platform.event_loops import post, running
from loopaware_pool._platform.frames import let_go_of_frames
from loopaware_pool._platform.log_fields import error_type, fields
from loopaware_pool.psycopg.socket_waiter import INTERVAL_SECONDS, ConnectionUse, SocketWaiter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Self

__all__ = ["LoopAwareConnection"]

RV = TypeVar("RV")

logger: logging.Logger = logging.getLogger("psycopg")

# Seconds for the server to confirm a cancellation, and then to end the query.
CANCEL_SECONDS: Final = 5.0
# When the server has not done so by then, the pool looks whether it answers on other connections.
DOUBT_SECONDS: Final = 0.5

_BAD: Final = pq.ConnStatus.BAD
_ACTIVE: Final = pq.TransactionStatus.ACTIVE


class _OwnersLock(asyncio.Lock):
    """A lock that raises in a task of another loop, instead of letting it wait for ever."""

    def __init__(self, watch: SocketWaiter) -> None:
        super().__init__()
        self._watch = watch

    async def acquire(self) -> Literal[True]:
        if self._watch.fd >= 0:  # else `wait` raises that it is closed: raised here, it would hide why a pipeline ended
            self._watch.check_use()
        return await super().acquire()


class LoopAwareConnection(AsyncConnection[Row]):
    """
    A psycopg connection for one event loop, which leaves nothing behind in its selector.

    In addition to `psycopg.AsyncConnection`:

    * Used on another loop than the one it was opened on, it raises `WrongLoop`, which names both.
    * Closed under a query, it ends that query with `psycopg.OperationalError`, and its fd's number may be reused at
      once.
    * A query that is cancelled is cancelled on the server. If that takes longer than twice 5 seconds, or is interrupted
      again, the connection is closed.
    """

    def __init__(self, pgconn: Any, row_factory: Any = psycopg.rows.tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.watch: SocketWaiter = SocketWaiter(pgconn, asyncio.get_running_loop())
        self.lock: _OwnersLock = _OwnersLock(self.watch)

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """
        Connect, like psycopg.

        Cancellation: closes the socket at once, even if the exception is kept; so does any failure.
        """
        handled = sys.exception()
        try:
            return await super().connect(*args, **kwargs)
        except BaseException as error:
            let_go_of_frames(error, handled)
            raise

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: a copy would outlive its lease."""
        raise TypeError("a connection cannot be pickled or copied")

    def __del__(self, *args: Any) -> None:
        watch = getattr(self, "watch", None)
        if watch is not None and not self.closed:
            if running() is watch.loop:
                watch.detach()
            else:
                post(watch.loop, watch.detach)
        super().__del__(*args)

    @property
    def closed(self) -> bool:
        """
        Whether the connection is closed or closing: if it is closed on another loop, its own loop has yet to do it.
        """
        return self._closed or self.pgconn.status == _BAD

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """
        Commit, or roll back after an error. Then close, unless it belongs to a pool, or has gone back to its pool.
        """
        if self.watch.use is not ConnectionUse.IDLE:
            await super().__aexit__(exc_type, exc_val, exc_tb)

    def fileno(self) -> int:
        """
        Return the socket's number.

        A reader that is added for it stays until the connection's next query, or its return to the pool.
        """
        fd = super().fileno()
        self.watch.is_shared = True
        return fd

    async def wait(
        self,
        gen: Generator[int, int, RV],
        interval: float | None = INTERVAL_SECONDS,
        timeout: float | None = None,
    ) -> RV:
        """
        Run one of psycopg's generators.

        Args:
            gen: As psycopg's.
            interval: Seconds of silence after which *gen* is sent `Ready.NONE`, so that it can check the time; None
                never.
            timeout: Seconds; None waits as long as it takes.

        Raises:
            WrongLoop: This is not the loop the connection was opened on; nothing was sent.
            psycopg.OperationalError: The connection was closed, or returned to its pool, meanwhile.

        Cancellation: cancels the query on the server, and waits for its end, for 5 seconds each. The connection is then
        ready for the next query. If that fails, or is cancelled once more, it is closed.
        """
        watch = self.watch
        watch.check_use()
        try:
            return await watch.drive(gen, interval=interval, timeout=timeout)
        except psycopg.Error as error:
            session = getattr(self, "_loopaware_session", None)
            if session is not None:
                session.heard(error)
            raise
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            if self.pgconn.transaction_status == _ACTIVE:
                await self._interrupt(gen)
            raise

    async def _interrupt(self, gen: Generator[int, int, Any]) -> None:
        """Have the server end a cancelled query, and read its end; or close the connection."""
        session = getattr(self, "_loopaware_session", None)
        doubt = None if session is None else self.watch.loop.call_later(DOUBT_SECONDS, session.is_not_answered)
        try:
            try:
                await self.cancel_safe(timeout=CANCEL_SECONDS)
            except Exception as error:  # noqa: BLE001 - the query may end by itself
                told = fields("cancel_failed", self.watch.pool_name, pool_error=error_type(error))
                logger.warning("query cancellation failed: %s", error, extra=told)
            if not self.closed:  # else psycopg's generators in C would go on with what libpq has freed meanwhile
                await self.watch.drive(gen, has_begun=True, timeout=CANCEL_SECONDS)
        except psycopg.errors.QueryCanceled:
            pass
        except BaseException as error:
            logger.warning(
                "query not ended after its cancellation (%s): closing connection",
                type(error).__name__,
                extra=fields("cancelled_query_not_ended", self.watch.pool_name, pool_error=error_type(error)),
            )
            self._finish()
            if not isinstance(error, Exception):
                raise
        finally:
            if doubt is not None:
                doubt.cancel()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """
        Cancel the running query, like psycopg, but within *timeout* even with libpq before version 17.

        Args:
            timeout: Seconds for the server to confirm the request; 0 waits as long as it takes.

        Raises:
            psycopg.errors.CancellationTimeout: It has not.

        Cancellation: closes the second connection that this takes. Before libpq 17 a thread has it, and goes on.
        """
        handled = sys.exception()
        try:
            if psycopg.capabilities.has_cancel_safe():
                await super().cancel_safe(timeout=timeout)
            elif self._should_cancel():
                await _call_in_thread(self.pgconn.get_cancel().cancel, timeout)
        except BaseException as error:
            let_go_of_frames(error, handled)
            raise

    async def close(self) -> None:
        """Close the connection, or return it to its pool if the pool was made with `close_returns`."""
        if self.closed:
            return
        pool = getattr(self, "_pool", None)
        if pool and getattr(pool, "close_returns", False):
            await pool.putconn(self)
        else:
            self._finish()

    def _finish(self) -> None:
        self._closed = True
        self.watch.finish("closed")


async def _call_in_thread(cancel: Callable[[], None], timeout: float) -> None:
    """
    Call libpq's blocking cancel request in a daemon thread, which neither the loop nor the interpreter waits for at
    exit.

    If the server does not answer, the call may never return, and libpq gives no way to end it.

    Raises:
        psycopg.Error: What the request failed with, or `CancellationTimeout`.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[psycopg.Error | None] = loop.create_future()

    def call() -> None:
        error = None
        try:
            cancel()
        except psycopg.Error as failure:
            error = failure
        post(loop, outcome.set_result, error)  # harmless if nothing waits for it any more

    threading.Thread(target=call, name="psycopg-cancel", daemon=True).start()
    await asyncio.wait([outcome], timeout=timeout or None)
    if not outcome.done():
        raise psycopg.errors.CancellationTimeout("cancellation timeout expired")
    if (error := outcome.result()) is not None:
        raise error
