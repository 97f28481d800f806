"""What a pool decides for all its loops, and may change while it lives."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loopaware_pool._core.config import PoolConfig

__all__ = ["PoolState", "SharedState"]


class PoolState(Enum):
    """Where a pool is in its life."""

    NEW = "new"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class SharedState:
    """
    What the loops of a pool have in common. One object per pool, which alone changes it. Loops read it when they need
    it, and keep no copy.

    Attributes:
        config: The pool's settings. Replaced as a whole if one changes, so read it once for a decision that needs two.
        generation: Connections that were opened under an earlier one are too old.
        is_suspended: Whether no caller is served until the pool is resumed.
    """

    __slots__ = ("config", "generation", "is_suspended")

    def __init__(self, config: PoolConfig) -> None:
        self.config: PoolConfig = config
        self.generation: int = 0
        self.is_suspended: bool = False
