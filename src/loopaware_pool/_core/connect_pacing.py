"""
How fast connects may follow each other. Pure: `now` is an argument.

A pool that opens one connection per waiting caller opens 45 for a spike that five could have served. A pool that opens
them one at a time takes seconds to warm up. So growth depends on time, not on the length of the queue: a few at once,
doubling for as long as callers still wait. While the server refuses, only one connect at a time probes it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MinSizeBackoff", "SlowStart"]

START_CONNECTS: Final = 3
# Long enough for a spike of short work to pass before the second doubling.
STEP_SECONDS: Final = 0.020
PROBE_FIRST_SECONDS: Final = 0.05
PROBE_LONGEST_SECONDS: Final = 0.5
# asyncpg 0.32's pace for its `min_size`.
FLOOR_FIRST_SECONDS: Final = 1.0
FLOOR_LONGEST_SECONDS: Final = 60.0


class SlowStart:
    """
    Paces the connects that callers wait for.

    Args:
        ceiling: Most connects in flight.

    Attributes:
        ceiling: As given.
        probe_at: No connect before this, monotonic seconds; in the past unless the server has just refused.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
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
        return min(START_CONNECTS << min(steps, 30), self.ceiling)

    def demand_ended(self) -> None:
        """Start over when callers wait again, without the pause that earlier refusals have earned."""
        self._began = None
        self.probe_at = min(self.probe_at, self._refused_at + PROBE_FIRST_SECONDS)

    def refused(self, now: float) -> None:
        """Pause before the next connect, for longer each time."""
        self._refused_at = now
        self.probe_at = now + min(PROBE_FIRST_SECONDS * 2**self._refusals, PROBE_LONGEST_SECONDS)
        self._refusals = min(self._refusals + 1, 16)
        self._began = None

    def succeeded(self) -> None:
        """Forget that the server refused connections."""
        self._refusals = 0
        self.probe_at = 0.0


class MinSizeBackoff:
    """
    Paces the connects for `min_size`, for which no caller waits.

    Attributes:
        retry_at: No such connect before this, monotonic seconds.
    """

    def __init__(self) -> None:
        self._delay_seconds = FLOOR_FIRST_SECONDS
        self.retry_at = 0.0

    def failed(self, now: float) -> None:
        """Pause, for longer each time."""
        self.retry_at = now + self._delay_seconds
        self._delay_seconds = min(self._delay_seconds * 2, FLOOR_LONGEST_SECONDS)

    def succeeded(self) -> None:
        """Start with the shortest pause again."""
        self._delay_seconds = FLOOR_FIRST_SECONDS
        self.retry_at = 0.0
