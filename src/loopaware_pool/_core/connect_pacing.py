"""
How fast connects may follow each other. Pure: `now` is an argument.

A pool that opens one connection per waiting caller opens 45 for a spike that five could have served. A pool that opens
them one at a time takes seconds to warm up. So growth depends on time, not on the length of the queue: a few at once,
doubling for as long as callers still wait. While the server refuses, only one connect at a time probes it.

Other processes do the same at the same moment: they have lost the same server. So pauses are shortened at random, and
after a refusal each connect has to be answered before two follow it. A server that is busy with the connects of others
thus sets the pace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MinSizeBackoff", "SlowStart"]

START_CONNECTS: Final = 3
# Long enough for a spike of short work to pass before the second doubling.
STEP_SECONDS: Final = 0.020
PROBE_FIRST_SECONDS: Final = 0.05
PROBE_LONGEST_SECONDS: Final = 0.5
# The largest fraction of a pause that is taken off at random.
PAUSE_JITTER: Final = 0.5
# asyncpg 0.32's pace for its `min_size`.
FLOOR_FIRST_SECONDS: Final = 1.0
FLOOR_LONGEST_SECONDS: Final = 60.0


class SlowStart:
    """
    Paces the connects that callers wait for.

    Args:
        ceiling: Most connects in flight.
        jitter: Draws a number between 0 and 1, for pauses.
        waits_for_answers: Whether to begin with one connect, even if the server has not refused any.

    Attributes:
        ceiling: As given.
        probe_at: No connect before this, monotonic seconds; in the past unless the server has just refused.
    """

    def __init__(self, ceiling: int, jitter: Callable[[], float], *, waits_for_answers: bool = False) -> None:
        self.ceiling = ceiling
        self._jitter = jitter
        self._first_allowed = 1 if waits_for_answers else None
        self._allowed = self._first_allowed  # what answers have earned; None while they do not matter
        self._began: float | None = None
        self._refusals = 0
        self._refused_at = 0.0
        self.probe_at = 0.0

    def allowance(self, now: float) -> int:
        """Return how many connects may be in flight while callers wait at *now*."""
        if self._refusals:
            return 1
        if self._began is None:
            self._began = now
        steps = max(0, int((now - self._began) / STEP_SECONDS + 1e-6))
        allowed = START_CONNECTS << min(steps, 30)
        return min(allowed if self._allowed is None else min(allowed, self._allowed), self.ceiling)

    def demand_ended(self) -> None:
        """Start over when callers wait again, without the pause that earlier refusals have earned."""
        self._began = None
        self._allowed = self._first_allowed
        self.probe_at = min(self.probe_at, self._refused_at + PROBE_FIRST_SECONDS)

    def refused(self, now: float) -> None:
        """Pause before the next connect, for longer each time."""
        self._refused_at = now
        self.probe_at = now + _shortened(PROBE_FIRST_SECONDS * 2**self._refusals, PROBE_LONGEST_SECONDS, self._jitter)
        self._allowed = 1
        self._refusals = min(self._refusals + 1, 16)
        self._began = None

    def succeeded(self) -> None:
        """Forget that the server refused connections, and allow one more."""
        self._refusals = 0
        if self._allowed is not None:
            self._allowed += 1
        self.probe_at = 0.0


class MinSizeBackoff:
    """
    Paces the connects for `min_size`, for which no caller waits.

    Args:
        jitter: Draws a number between 0 and 1, for pauses.

    Attributes:
        retry_at: No such connect before this, monotonic seconds.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._delay_seconds = FLOOR_FIRST_SECONDS
        self.retry_at = 0.0

    def failed(self, now: float) -> None:
        """Pause, for longer each time."""
        self.retry_at = now + _shortened(self._delay_seconds, FLOOR_LONGEST_SECONDS, self._jitter)
        self._delay_seconds = min(self._delay_seconds * 2, FLOOR_LONGEST_SECONDS)

    def succeeded(self) -> None:
        """Start with the shortest pause again."""
        self._delay_seconds = FLOOR_FIRST_SECONDS
        self.retry_at = 0.0


def _shortened(pause_seconds: float, longest_seconds: float, jitter: Callable[[], float]) -> float:
    """Take a random part off a pause. One loss makes many processes pause, and they must not all come back at once."""
    return min(pause_seconds, longest_seconds) * (1 - PAUSE_JITTER * jitter())
