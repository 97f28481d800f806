"""How connections are made through SQLAlchemy, and the errors that callers of its pool catch."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import exc
from sqlalchemy.util import greenlet_spawn

from loopaware_pool import errors
from loopaware_pool._platform.event_loops import INTERRUPTIONS, leave_to_shutdown, with_stray_cancellation_as
from loopaware_pool._platform.frames import let_go_of_frames
from loopaware_pool.driver import HookFailed
from loopaware_pool.sqlalchemy.first_connect import is_initialised
from loopaware_pool.sqlalchemy.session import RecordSession

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.pool import ConnectionPoolEntry

    from loopaware_pool.sqlalchemy.session import RecordKeeper

__all__ = [
    "Overloaded",
    "PoolClosed",
    "PoolTimeout",
    "SqlalchemyDriver",
    "TooManyWaiting",
    "UnsupportedLoop",
]

# SQLAlchemy's code for "the queue of connections is exhausted".
QUEUE_EXHAUSTED: Final = "3o7r"


class PoolClosed(errors.PoolClosed, exc.InvalidRequestError):
    """The pool was disposed of, or its loop ends, while the caller waited."""

    def __init__(self, message: str, *, pool: str) -> None:
        exc.InvalidRequestError.__init__(self, message)
        self.pool = pool


class PoolTimeout(errors.PoolTimeout, exc.TimeoutError):
    """No connection came free in time. SQLAlchemy's `TimeoutError`, with its code, and Python's."""

    complaint = "QueuePool limit reached, connection timed out, timeout {:.2f}"
    code: str | None = QUEUE_EXHAUSTED

    def __str__(self) -> str:
        return exc.TimeoutError.__str__(self)


class TooManyWaiting(errors.TooManyWaiting, exc.TimeoutError):
    """As many callers are waiting already as `max_waiting` allows."""


class Overloaded(errors.Overloaded, TooManyWaiting):
    """Load shedding: the queue is backed up, and the caller has waited longer than `shed_after`."""


class UnsupportedLoop(errors.UnsupportedLoop, exc.InvalidRequestError):
    """No event loop is running, or one that cannot watch sockets."""

    def __init__(self, message: str, *, pool: str) -> None:
        exc.InvalidRequestError.__init__(self, message)
        self.pool = pool


class SqlalchemyDriver:
    """
    Makes connections by the creator of a pool of SQLAlchemy's, with its events.

    Args:
        pool: The pool. No reference to it is kept.

    Attributes:
        spare_records: Records that have lost their connections. The next connections are made for them, so that
            `record_info` is kept.
    """

    logger: logging.Logger = logging.getLogger("sqlalchemy.pool")
    errors: errors.ErrorFamily = errors.ErrorFamily(
        PoolClosed, PoolTimeout, TooManyWaiting, unsupported_loop=UnsupportedLoop, overloaded=Overloaded
    )

    asked: Sequence[str] = ()  # no timeout of the pool's covers a connect

    def __init__(self, pool: RecordKeeper) -> None:
        self._pool = weakref.ref(pool)
        self.spare_records: deque[ConnectionPoolEntry] = deque()

    async def connect(self) -> RecordSession:
        """
        Open a connection on the running loop, and call the listeners of its events.

        Raises:
            HookFailed: Whatever fails: SQLAlchemy tries nothing twice, and each caller gets the error of a connect.
        """
        pool = self._pool()
        assert pool is not None, "its loops serve nobody without it"
        task = asyncio.current_task()
        if task is not None and not is_initialised(pool):
            leave_to_shutdown(task)
        try:
            record = await with_stray_cancellation_as(exc.InvalidRequestError, greenlet_spawn(self._make_record, pool))
        except INTERRUPTIONS:
            raise
        except BaseException as error:  # a listener's may be no `Exception`, as that of a timeout in greenlets
            let_go_of_frames(error)
            raise HookFailed from error
        try:
            return RecordSession(pool, record, asyncio.get_running_loop())
        except Exception as error:
            await greenlet_spawn(record.close)
            raise HookFailed from error

    def _make_record(self, pool: RecordKeeper) -> Any:
        """In a greenlet."""
        record = self._take_spare()
        if record is None:
            return pool._create_connection()
        try:
            record.get_connection()
        except BaseException:
            self.spare_records.append(record)
            raise
        return record

    def _take_spare(self) -> Any:
        try:
            return self.spare_records.popleft()
        except IndexError:
            return None

    def floor_not_restored(self, error: BaseException) -> None:
        """Do nothing: there is no `min_size`."""

    def forked(self) -> None:
        """Forget, in a child process, what belongs to the parent."""
        self.spare_records.clear()
