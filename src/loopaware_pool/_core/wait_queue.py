"""The queue of one loop's callers, first come, first served. Plain and synchronous, like the shard that owns it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from loopaware_pool._core.interfaces import Waiter, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WaitQueue"]


class WaitQueue(OrderedDict[Waiter, Waiting]):
    """
    The waiting callers, and since when each has waited.

    It is a dictionary, so that removing a caller from the middle is as cheap as removing the first, and testing whether
    it is empty costs nothing.
    """

    def join(self, waiter: Waiter, since: float, *, has_deadline: bool) -> None:
        """Add a caller at the end."""
        self[waiter] = Waiting(since, has_deadline)

    def rejoin(self, waiter: Waiter, since: float, *, has_deadline: bool) -> None:
        """Add a caller at its old place: it has waited *since* then (monotonic seconds)."""
        later = [other for other, waiting in self.items() if waiting.since > since]
        self.join(waiter, since, has_deadline=has_deadline)
        for other in later:
            self.move_to_end(other)

    @property
    def oldest(self) -> float:
        """Since when the first caller has waited, monotonic seconds. The queue must not be empty."""
        return next(iter(self.values())).since

    def next(self) -> tuple[Waiter, float] | None:
        """
        Take out the first caller that still waits. Returns it and since when it has waited (monotonic seconds), or
        None.
        """
        while self:
            waiter, waiting = self.popitem(last=False)
            if not waiter.done():
                return waiter, waiting.since
        return None

    def fail_first(self, error: BaseException, since: float, *, patient_too: bool) -> None:
        """Raise *error* in the first caller that `fail_all` would raise it in."""
        for waiter in self._concerned(since, patient_too=patient_too)[:1]:
            self._fail(waiter, error)

    def fail_all(self, error: BaseException, since: float, *, patient_too: bool) -> None:
        """
        Raise *error* in callers, and take them out of the queue.

        Args:
            error: The same one for all.
            since: Only callers that have waited since then (monotonic seconds) are concerned.
            patient_too: Whether callers with a deadline are concerned as well.
        """
        for waiter in self._concerned(since, patient_too=patient_too):
            self._fail(waiter, error)

    def _concerned(self, since: float, *, patient_too: bool) -> list[Waiter]:
        return [
            waiter
            for waiter, waiting in list(self.items())
            if not waiter.done() and waiting.since <= since and (patient_too or not waiting.has_deadline)
        ]

    def _fail(self, waiter: Waiter, error: BaseException) -> None:
        del self[waiter]
        waiter.set_exception(error)

    def dismiss(self, error: Callable[[], BaseException]) -> None:
        """Raise an error of its own in each caller, and empty the queue."""
        while (first := self.next()) is not None:
            first[0].set_exception(error())
