"""The line in which one loop's callers wait, first come, first served. Plain and synchronous, as the shard it is of."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from loopaware_pool._core.interfaces import Waiter, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WaitQueue"]


class WaitQueue(OrderedDict[Waiter, Waiting]):
    """
    Callers that wait for a connection: who, and since when.

    A dictionary, so that a caller in the middle leaves as cheaply as the first, and an empty line costs nothing to see.
    """

    def join(self, waiter: Waiter, since: float, *, has_deadline: bool) -> None:
        """Queue a caller at the end."""
        self[waiter] = Waiting(since, has_deadline)

    def rejoin(self, waiter: Waiter, since: float, *, has_deadline: bool) -> None:
        """Queue, at its old place, a caller that has waited *since* then (monotonic seconds)."""
        later = [other for other, waiting in self.items() if waiting.since > since]
        self.join(waiter, since, has_deadline=has_deadline)
        for other in later:
            self.move_to_end(other)

    @property
    def oldest(self) -> float:
        """Since when the first one waits, monotonic seconds. There must be one."""
        return next(iter(self.values())).since

    def next(self) -> tuple[Waiter, float] | None:
        """Take out the first caller that still waits; since when, monotonic seconds. None if nobody does."""
        while self:
            waiter, waiting = self.popitem(last=False)
            if not waiter.done():
                return waiter, waiting.since
        return None

    def tell_off(self, error: BaseException, *, patient_too: bool, only_first: bool, since: float) -> None:
        """
        Tell callers of an error, and take them out.

        Args:
            error: Which.
            patient_too: Whether those who have a deadline hear of it as well.
            only_first: Whether one hears of it, or all.
            since: Only those hear of it who have waited since then, monotonic seconds.
        """
        for waiter, waiting in list(self.items()):
            if waiter.done() or waiting.since > since or (waiting.has_deadline and not patient_too):
                continue
            del self[waiter]
            waiter.set_exception(error)
            if only_first:
                return

    def dismiss(self, error: Callable[[], BaseException]) -> None:
        """Tell everybody of an error of his own, and take all out."""
        while (first := self.next()) is not None:
            first[0].set_exception(error())
