"""What errors tell of the pool: made for the first of many that are raised at once, and told by the others as well."""

from __future__ import annotations

import threading
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Recent"]

T = TypeVar("T")

# At most a twentieth of a processor's time goes into it.
REUSE_FACTOR: Final = 20
LONGEST_REUSE_SECONDS: Final = 0.1


class Recent(Generic[T]):
    """
    Something that was true a moment ago. From any thread.

    Counting everything takes longer, the more loops and connections there are. Ten thousand callers that time out at
    once cannot each have it counted: the last would get its timeout a minute late. So what was counted is told again
    for `REUSE_FACTOR` times as long as it took to count, and for `LONGEST_REUSE_SECONDS` at most.

    Args:
        make: Counts it.
        clock: Tells monotonic seconds.
        stopwatch: Tells the processor's seconds of this thread: to be interrupted is not to take long.
    """

    def __init__(
        self,
        make: Callable[[], T],
        *,
        clock: Callable[[], float] = monotonic,
        stopwatch: Callable[[], float] = thread_time,
    ) -> None:
        self._make = make
        self._clock = clock
        self._stopwatch = stopwatch
        # A thread that comes while another counts waits for the result. A signal handler may come back here.
        self._lock = threading.RLock()
        self._value: T | None = None
        self._stale_at = float("-inf")

    def get(self) -> T:
        """Return it, counted now or a moment ago."""
        with self._lock:
            value = self._value
            if value is None or self._clock() >= self._stale_at:
                began = self._stopwatch()
                self._value = value = self._make()
                took_seconds = self._stopwatch() - began
                self._stale_at = self._clock() + min(REUSE_FACTOR * took_seconds, LONGEST_REUSE_SECONDS)
            return value
