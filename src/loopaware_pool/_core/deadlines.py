"""
One timer for all the callers of a loop that wait with a deadline.

A timer for each caller would cost each a place in the loop's heap, which is kept in Python: a tenth of a query's time,
for something that hardly ever fires. Here a deadline is an entry in a dictionary, under the tick in which it passes.
"""

from __future__ import annotations

from math import ceil, inf
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Deadlines"]

# How much later than its deadline a caller may get its timeout.
TICK_SECONDS: Final = 0.005
# Replaces later deadlines, infinity too: a time that every event loop can represent.
LATEST_SECONDS: Final = 1e10


class Deadlines:
    """
    Calls functions when their deadlines have passed.

    Args:
        loop: The loop whose timer is used.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ticks: dict[int, dict[object, Callable[[], object]]] = {}
        self._next: float = inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, key: object, deadline: float, passed: Callable[[], object]) -> int:
        """
        Have *passed* called at *deadline* (monotonic seconds), or up to `TICK_SECONDS` later.

        Returns:
            The tick, which `remove` needs together with the *key*.
        """
        tick = ceil(min(deadline, LATEST_SECONDS) / TICK_SECONDS)
        self._ticks.setdefault(tick, {})[key] = passed
        if tick < self._next:
            self._wake_at(tick)
        return tick

    def remove(self, key: object, tick: int) -> None:
        """Forget a deadline, if it has not passed."""
        calls = self._ticks.get(tick)
        if calls is not None:
            calls.pop(key, None)
            if not calls:  # the timer stays: setting it anew would cost what this saves
                del self._ticks[tick]

    def stop(self) -> None:
        """Drop all deadlines."""
        self._ticks.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._next, self._timer = inf, None

    def _wake_at(self, tick: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = tick
        self._timer = self._loop.call_later(max(0.0, tick * TICK_SECONDS - monotonic()), self._look)

    def _look(self) -> None:
        self._next, self._timer = inf, None
        now = monotonic() / TICK_SECONDS
        for tick in sorted(tick for tick in self._ticks if tick <= now):  # several, if the loop was blocked
            for passed in self._ticks.pop(tick).values():
                passed()
        if self._ticks:
            self._wake_at(min(self._ticks))
