"""What a pool decides for all its loops, and may change while it lives."""

from __future__ import annotations

from enum import Enum

__all__ = ["Phase", "PoolState", "Terms"]


class PoolState(Enum):
    """Where a pool is in its life."""

    NEW = "new"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Phase(Enum):
    """What callers may expect."""

    OPEN = "open"
    SUSPENDED = "suspended"
    CLOSED = "closed"


class Terms:
    """
    Settings that may change during the life of a pool. One object per pool, which alone writes it.

    Attributes:
        generation: Connections that were opened under an earlier one are too old.
        min_size: Connections kept while idle.
    """

    __slots__ = ("generation", "min_size")

    def __init__(self, min_size: int) -> None:
        self.generation = 0
        self.min_size = min_size
