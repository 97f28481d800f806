"""
How large a pool should be: the formulas of `docs/guide/sizing.md`. Pure arithmetic.

Work comes at a rate, and holds a connection for some time. The product is how many connections are busy on average
(Little's law). How many callers find all of them busy is Erlang's formula C, for arrivals at random times.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["HEADROOM", "busy_connections", "largest_pool", "needed_pool", "waiting_share"]

# The part of a pool that may be busy on average. What is left serves bursts.
HEADROOM: Final = 0.7


def busy_connections(rate: float, hold_seconds: float) -> float:
    """
    Return how many connections are in use on average.

    Args:
        rate: Leases begun a second.
        hold_seconds: How long one lasts.
    """
    return rate * hold_seconds


def needed_pool(rate: float, hold_seconds: float, processes: int) -> int:
    """Return the `max_size` that each of the *processes* needs to serve its share of the work, bursts included."""
    return max(1, math.ceil(busy_connections(rate, hold_seconds) / processes / HEADROOM))


def largest_pool(free: int, processes: int) -> int:
    """Return the largest `max_size` with which all *processes* fit into *free* connections; 0 if none does."""
    return max(0, free) // processes


def waiting_share(size: int, busy: float) -> float:
    """
    Return which part of callers finds no connection free, from 0 to 1.

    Args:
        size: `max_size` of the pool.
        busy: How many of its connections are in use on average; with *size* or more, everybody waits.
    """
    if busy >= size:
        return 1.0
    blocked = 1.0  # Erlang's formula B, which has a recurrence that no power overflows
    for servers in range(1, size + 1):
        blocked = busy * blocked / (servers + busy * blocked)
    used = busy / size
    return blocked / (1 - used * (1 - blocked))
