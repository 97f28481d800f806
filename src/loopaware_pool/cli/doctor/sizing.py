"""
How large a pool should be, and all pools together: the formulas of `docs/guide/sizing.md` and
`docs/guide/many-machines.md`. Pure arithmetic.

Work comes at a rate, and holds a connection for some time. The product is how many connections are busy on average
(Little's law). How many callers find all of them busy is Erlang's formula C, for arrivals at random times.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = [
    "HEADROOM",
    "busy_connections",
    "largest_pool",
    "needed_pool",
    "processors_needed",
    "room",
    "servers_needed",
    "total_connections",
    "waiting_share",
]

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


def total_connections(pools: int, max_size: int) -> int:
    """
    Return how many connections *pools* pools of all machines may open at a server.

    All loops of a process share one pool's `max_size`, so loops do not count. Where each loop has a pool of its own, as
    asyncpg's and psycopg_pool's pools need, *pools* has loops as a factor.
    """
    return pools * max_size


def room(max_connections: int, reserved: int, others: int) -> int:
    """Return how many connections a server has for the pools: what is neither reserved nor taken by *others*."""
    return max_connections - reserved - others


def processors_needed(rate: float, cpu_seconds: float) -> float:
    """
    Return how many of the server's processors the work needs, bursts included.

    Args:
        rate: Leases begun a second.
        cpu_seconds: Processor time of the server that one lease costs.
    """
    return rate * cpu_seconds / HEADROOM


def servers_needed(needed: float, each: float) -> int:
    """Return how many servers it takes that have *each* of what *needed* is needed of; both above 0."""
    return math.ceil(needed / each)


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
