"""
Which callers to refuse when more come than can be served. Pure: `now` is an argument.

First come, first served fails under a load that lasts: everybody waits until just before he would give up, and those
who are served give up in the middle of their work. Whether a queue only takes up a burst, or stands, neither its length
tells nor its longest wait; its *shortest* wait does, over a time. This is CoDel, in the form that Elixir's
db_connection gave it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LoadShedding"]

# The shortest wait that tells of a queue that stands, as a part of that which is too long in one.
STANDING_PART: Final = 0.5
# How long even the shortest wait must have been so long, in units of the wait that is too long. A burst is shorter.
INTERVAL_LIMITS: Final = 5.0


class LoadShedding:
    """
    Watches the waits of one line.

    Args:
        limit: Seconds a caller may wait in a line that stands.

    Attributes:
        limit: As given.
        is_standing: Whether the line stands, as of the last interval that has ended.
    """

    def __init__(self, limit: float) -> None:
        self.is_standing = False
        self.limit = limit
        self._least = 0.0
        self._ends_at = 0.0

    def refuses(self, waited: float, now: float) -> bool:
        """Whether the caller whose turn it is has waited too long: *waited* seconds. If not, his wait is noted."""
        if now >= self._ends_at:
            self.is_standing = self._least > self.limit * STANDING_PART
            self._least, self._ends_at = waited, now + self.limit * INTERVAL_LIMITS
        if self.is_standing and waited > self.limit:
            return True
        self._least = min(self._least, waited)
        return False

    def emptied(self) -> None:
        """Note that nobody waits: such a line does not stand."""
        self._least = 0.0
