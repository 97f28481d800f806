"""The differences that are intended: how each is told from a defect. Its sentence is in docs/differences.md, by its key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from differential.compare import Difference

__all__ = ["ROWS", "Row", "explain"]


@dataclass(frozen=True)
class Row:
    """
    An intended difference.

    Attributes:
        key: That of its row in docs/differences.md.
        explains: Whether a difference is this one.
        parts_ways: Whether what comes after it cannot be compared.
    """

    key: str
    explains: Callable[[Difference], bool]
    parts_ways: bool = False


ROWS: tuple[Row, ...] = ()


def explain(difference: Difference) -> Row | None:
    """The row that a difference is of, if any."""
    return next((row for row in ROWS if row.explains(difference)), None)
