"""
Which callers to refuse when more come than can be served. Pure: `now` is an argument.

First come, first served fails under lasting overload: every caller waits until just before it would give up, and those
that are served give up in the middle of their work. Neither the length of a queue nor its longest wait tells whether it
only absorbs a burst or is backed up. Its *shortest* wait over some time does. This is CoDel, in the form that Elixir's
db_connection gave it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LoadShedding"]

# The queue is backed up if the shortest wait is longer than this part of the limit ...
STANDING_PART: Final = 0.5
# ... during an interval of this many limits. A burst is shorter.
INTERVAL_LIMITS: Final = 5.0


class LoadShedding:
    """
    Watches the waits of one queue.

    Args:
        limit: Seconds a caller may wait while the queue is backed up.

    Attributes:
        limit: As given.
        is_standing: Whether the queue is backed up, as of the last interval that has ended.
    """

    def __init__(self, limit: float) -> None:
        self.is_standing = False
        self.limit = limit
        self._least = 0.0
        self._ends_at = 0.0

    def refuses(self, waited: float, now: float) -> bool:
        """Whether to refuse the caller whose turn it is, after *waited* seconds. If not, its wait is noted."""
        if now >= self._ends_at:
            self.is_standing = self._least > self.limit * STANDING_PART
            self._least, self._ends_at = waited, now + self.limit * INTERVAL_LIMITS
        if self.is_standing and waited > self.limit:
            return True
        self._least = min(self._least, waited)
        return False

    def emptied(self) -> None:
        """Note that the queue is empty, which ends the backlog."""
        self._least = 0.0
