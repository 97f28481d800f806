"""What programs read of the queue in SQLAlchemy's own pool."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool.sqlalchemy.options import Options

__all__ = ["QueueView"]


class QueueView:
    """
    A view of the idle connections, shaped like the queue of `AsyncAdaptedQueuePool`.

    Args:
        options: The pool's options.
        records: Lists the idle records.

    Attributes:
        maxsize: Most idle connections; 0 for no limit.
        use_lifo: Whether the connection used last is lent next.
    """

    def __init__(self, options: Options, records: Callable[[], list[Any]]) -> None:
        self.maxsize: int = options.pool_size
        self.use_lifo: bool = options.use_lifo
        self._records = records

    @property
    def queue(self) -> deque[Any]:
        """The idle records, the one used last at the end."""
        return deque(self._records())

    def qsize(self) -> int:
        """Count them."""
        return len(self._records())

    def empty(self) -> bool:
        """Whether there are none."""
        return not self._records()

    def full(self) -> bool:
        """Whether no more are kept."""
        return 0 < self.maxsize <= self.qsize()
