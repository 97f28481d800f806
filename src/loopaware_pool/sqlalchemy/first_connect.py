"""
Lets one connection at a time initialise SQLAlchemy's dialect, whatever loop it is on.

SQLAlchemy guards the first `connect` event with one `asyncio.Lock`, which belongs to the loop that first waits for it.
Two threads that connect at once through a cold engine then fail: "is bound to a different event loop".

psycopg's part of the initialisation runs async generators, which must not run while the loop closes all of them. So
connects that may initialise the dialect are cancelled with the other tasks when the loop shuts down.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.util import await_only

from loopaware_pool._platform import event_loops

if TYPE_CHECKING:
    from sqlalchemy.pool import Pool

__all__ = ["FirstConnectGate", "is_initialised"]

# How often a connection that waits looks whether the loop of the one before still runs.
LOOK_SECONDS: Final = 0.1


class FirstConnectGate:
    """
    A lock for `with`, held by one task at a time of any loop, and waited for in SQLAlchemy's greenlets.

    If the loop of the task that holds it stops, another task may have it.
    """

    def __init__(self) -> None:
        self.start_afresh_in_child()
        event_loops.call_in_child(self)

    def start_afresh_in_child(self) -> None:
        """Be free. In a forked child, a task that holds it, or waits for it, is the parent's and never leaves."""
        self._lock = threading.Lock()  # guards the next two; never held while waiting
        self._holder: asyncio.Task[Any] | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    @classmethod
    def guard(cls, pool: Pool) -> None:
        """Replace SQLAlchemy's locks around the events of a pool's first connection."""
        for event in (pool.dispatch.connect, pool.dispatch.first_connect):
            listeners: Any = event.for_modify(pool.dispatch)
            if hasattr(listeners, "_exec_once_mutex"):
                listeners._exec_once_mutex = cls()

    def __enter__(self) -> bool:
        task = asyncio.current_task()
        if task is not None and event_loops.is_shutting_down(task.get_loop()):
            task.cancel()
            await_only(asyncio.sleep(0))
        while not self._enter_if_free():
            await_only(self._left())
        return True

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._holder = None
            waiting, self._waiting = self._waiting, set()
        for future in waiting:
            event_loops.post(future.get_loop(), _wake, future)

    def _enter_if_free(self) -> bool:
        """Enter, unless another task that can still leave has entered."""
        with self._lock:
            holder = self._holder
            if holder is not None and not holder.done() and holder.get_loop().is_running():
                return False
            self._holder = asyncio.current_task()
            return True

    async def _left(self) -> None:
        """Wait until the other task may have left."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._holder is None:
                return
            self._waiting.add(future)
        await asyncio.wait([future], timeout=LOOK_SECONDS)
        with self._lock:
            self._waiting.discard(future)


def is_initialised(pool: Any) -> bool:
    """Whether a connection has initialised the dialect, or there is none."""
    return bool(getattr(pool.dispatch.connect, "_exec_w_sync_once", True))


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
