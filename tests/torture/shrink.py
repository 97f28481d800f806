"""Finds the shortest history that still fails: prefixes first, then step after step left out."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torture.history import History
    from torture.storm import Broken

__all__ = ["shrink"]


# What depends on timing does not fail each time.
TRIES = 3


def shrink(history: History, play: Callable[[History], Broken | None], broken: Broken, seconds: float) -> History:
    """
    Shorten *history* for as long as *seconds* allow.

    Args:
        history: It failed.
        play: Plays a history; returns what it broke.
        broken: What *history* broke; another promise does not count.
        seconds: How long to try.
    """
    deadline = monotonic() + seconds

    def fails(shorter: History) -> bool:
        for _ in range(TRIES):
            if monotonic() > deadline:
                return False
            again = play(shorter)
            if again is not None and again.promise == broken.promise:
                return True
        return False

    size = len(history.steps)
    while size:
        begin = len(history.steps)
        while begin > 0:
            begin = max(0, begin - size)
            shorter = history.without(begin, begin + size)
            if len(shorter.steps) < len(history.steps) and fails(shorter):
                history = shorter
        size //= 2
    return history
