"""Whether a figure grows with time, told from looks at it. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WARM_UP_PART", "Slope", "slope_per_hour"]

# Caches fill, and every connection is replaced for the first time.
WARM_UP_PART = 1 / 3
# A look resembles the one before it: as many means of equally many looks are taken in place of the looks.
BLOCKS = 20
# Student's t for so many blocks: 97.5 % are below.
T_OF_BLOCKS = 2.09


@dataclass(frozen=True)
class Slope:
    """
    How a figure moves.

    Attributes:
        per_hour: By linear regression.
        low: With `high`, its confidence interval of 95 %.
        high: See `low`.
        bound: So much an hour would not matter.
    """

    per_hour: float
    low: float
    high: float
    bound: float

    @property
    def is_flat(self) -> bool:
        """Whether it may as well stand still, or rises by less than matters."""
        return self.low <= 0 or self.high <= self.bound

    @property
    def text(self) -> str:
        """One line."""
        verdict = "flat" if self.is_flat else "GROWS"
        return f"{self.per_hour:+,.2f} an hour ({self.low:+,.2f} to {self.high:+,.2f}): {verdict}"


def slope_per_hour(minutes: Sequence[float], values: Sequence[float], bound: float) -> Slope:
    """
    Tell how *values* move, the warm-up left out.

    Args:
        minutes: When each was seen.
        values: What was seen; 30 at least.
        bound: See `Slope`.

    Raises:
        ValueError: There are too few.
    """
    settled = int(len(values) * WARM_UP_PART)
    hours = _block_means([minute / 60 for minute in minutes[settled:]])
    means = _block_means(values[settled:])
    slope = statistics.linear_regression(hours, means).slope
    # The jackknife: how much it depends on each block, whatever the noise is like.
    without_one = [
        statistics.linear_regression(hours[:block] + hours[block + 1 :], means[:block] + means[block + 1 :]).slope
        for block in range(BLOCKS)
    ]
    error = sqrt((BLOCKS - 1) * statistics.pvariance(without_one))
    return Slope(slope, slope - T_OF_BLOCKS * error, slope + T_OF_BLOCKS * error, bound)


def _block_means(values: Sequence[float]) -> list[float]:
    if len(values) < BLOCKS:
        raise ValueError(f"{len(values)} looks after the warm-up: expected {BLOCKS} at least; soak for longer")
    ends = [len(values) * block // BLOCKS for block in range(BLOCKS + 1)]
    return [statistics.fmean(values[begin:end]) for begin, end in pairwise(ends)]
