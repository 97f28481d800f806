"""
Event loops that a test owns: new, in this thread or another, and ended as programs end them, properly or not.

What outlives its loop shows only when the loop ends. Tests on a loop that a plugin provides never see that.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future
    from typing import Self

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

__all__ = ["LoopThread", "end_abruptly", "end_politely", "loop_factories"]

T = TypeVar("T")

# After this time, the test is wrong or the machine is overloaded.
DEADLINE_SECONDS = 20.0


def loop_factories() -> dict[str, LoopFactory]:
    """Return the factories of the installed loops by name: asyncio's own, and uvloop's if it is there."""
    found: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if find_spec("uvloop") is not None:
        import uvloop

        found["uvloop"] = uvloop.new_event_loop
    return found


def end_politely(loop_factory: LoopFactory | None, work: Coroutine[Any, Any, T]) -> T:
    """
    Run *work* on a new loop of this thread, and end the loop like `asyncio.run`: cancel tasks, close generators, then
    the loop.

    Args:
        loop_factory: Makes the loop; None for asyncio's own.
        work: A coroutine.

    Returns:
        What *work* returns.

    Raises:
        BaseException: What *work* raises.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(work)


def end_abruptly(loop_factory: LoopFactory | None, work: Coroutine[Any, Any, T]) -> T:
    """
    Run *work* on a new loop of this thread, and just close the loop, as careless programs do.

    Args:
        loop_factory: Makes the loop; None for asyncio's own.
        work: A coroutine.

    Returns:
        What *work* returns.

    Raises:
        BaseException: What *work* raises.
    """
    loop = (loop_factory or asyncio.new_event_loop)()
    try:
        return loop.run_until_complete(work)
    finally:
        with warnings.catch_warnings():
            # uvloop warns of each socket that it has to close itself, and does not close it if warnings are errors.
            warnings.simplefilter("ignore", ResourceWarning)
            loop.close()


class LoopThread:
    """
    A loop that runs in a thread of its own until the end of the `with` block.

    Args:
        loop_factory: Makes the loop; None for asyncio's own.
        end: How it ends: `end_politely` or `end_abruptly`.

    Attributes:
        loop: The loop; there once the block has begun.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        loop_factory: LoopFactory | None = None,
        *,
        end: Callable[[LoopFactory | None, Coroutine[Any, Any, None]], None] = end_politely,
    ) -> None:
        self._loop_factory = loop_factory
        self._end_with = end
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="loop-thread", daemon=True)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run *work* on the loop. This thread can wait for the future's `result(timeout)`."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T], timeout: float = DEADLINE_SECONDS) -> T:
        """
        Run *work* on the loop, and wait for it.

        Raises:
            TimeoutError: It was not done in *timeout* seconds.
            BaseException: What *work* raises.
        """
        return self.start(work).result(timeout)

    def __enter__(self) -> Self:
        self._thread.start()
        self._wait(self._ready.wait, "begin")
        self._complain()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(DEADLINE_SECONDS)
        if kind is None:
            self._wait(lambda _: not self._thread.is_alive(), "end")
            self._complain()

    def _main(self) -> None:
        life = self._live()
        try:
            self._end_with(self._loop_factory, life)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that started this one
            self._failure = error
        finally:
            life.close()  # it has not started if there is no loop
            self._ready.set()

    async def _live(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._ready.set()
        await self._end.wait()

    def _wait(self, happens: Callable[[float], bool], what: str) -> None:
        if not happens(DEADLINE_SECONDS):
            raise TimeoutError(f"the loop of {self._thread.name} does not {what} within {DEADLINE_SECONDS} s")

    def _complain(self) -> None:
        if self._failure is not None:
            raise self._failure
