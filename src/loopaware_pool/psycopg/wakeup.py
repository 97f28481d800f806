"""
A reusable future for one waiter, which wakes a lonely task at once.

asyncio's futures schedule their waiter's next step for the loop's next iteration. A task that waits for a socket pays
for that: the loop has just polled, and polls again before the task sees the data. If other tasks wait as well, nothing
is lost: more data has come by then, and one poll serves all. If none does, it costs a tenth of the query.

So the socket's callback runs the task's next step itself if no other task waits for a connection of this loop. Code
that is called by another task, and not by the loop, must leave it to the loop: that task's own step has not ended.

To a task this is what asyncio calls a future-like object: one with `_asyncio_future_blocking` and the methods below.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Generator
    from typing import Self

__all__ = ["Wakeup"]


class _Crowd:
    """How many tasks of a loop wait for connections."""

    __slots__ = ("__weakref__", "waiting")

    def __init__(self) -> None:
        self.waiting = 0


_crowds: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Crowd] = weakref.WeakKeyDictionary()


class Wakeup:
    """
    What one task at a time waits for.

    Args:
        loop: The task's loop.

    Attributes:
        context: The waiting task's context; None if none waits.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_crowd", "_error", "_loop", "context")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.context: contextvars.Context | None = None
        self._asyncio_future_blocking = False
        self._loop = loop
        self._crowd = _crowds.setdefault(loop, _Crowd())
        self._callback: Callable[[Self], object] | None = None
        self._error: BaseException | None = None

    def __await__(self) -> Generator[Self, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def wake(self) -> None:
        """
        Resume the waiting task, if there is one: at once if it is alone and no task is in a step; otherwise soon.

        To be called from a callback of the loop, as the last thing it does.
        """
        callback, context = self._callback, self.context
        if context is not None and self._crowd.waiting == 1 and asyncio.current_task(self._loop) is None:
            self._callback = self.context = None
            self._crowd.waiting = 0
            try:
                context.run(callback, self)  # type: ignore[arg-type]
            finally:
                del callback  # it refers to the task, whose final traceback may refer to this frame
        else:
            self.wake_soon()

    def wake_soon(self) -> bool:
        """
        Resume the waiting task in the loop's next iteration.

        Returns:
            False if none waits.
        """
        callback, context = self._callback, self.context
        if callback is None:
            return False
        self._callback = self.context = None
        self._crowd.waiting -= 1
        self._loop.call_soon(callback, self, context=context)  # type: ignore[arg-type]
        return True

    def leave(self) -> None:
        """Stop waiting without having been woken: the task is being destroyed."""
        if self._callback is not None:
            self._callback = self.context = None
            self._crowd.waiting -= 1

    # ---- what a task asks, and the audit ----

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def done(self) -> bool:
        return self._callback is None

    def add_done_callback(self, callback: Callable[[Self], object], *, context: contextvars.Context) -> None:
        self._callback = callback
        self.context = context
        self._crowd.waiting += 1

    def result(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame

    def cancel(self, msg: Any = None) -> bool:
        if not self.wake_soon():
            return False
        self._error = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        return True
