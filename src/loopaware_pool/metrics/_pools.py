"""The pools that an exporter exports: held weakly, and told apart by their names."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

from loopaware_pool.stats import PoolStats

__all__ = ["HasStats", "WatchedPools", "stats_of"]


class HasStats(Protocol):
    """The part of a pool that an exporter uses, from any thread."""

    def stats(self) -> PoolStats:
        """Count everything."""


class WatchedPools:
    """The pools that one exporter exports. A pool is out of it when it is closed, or collected."""

    def __init__(self) -> None:
        self._pools: weakref.WeakValueDictionary[str, HasStats] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def add(self, pool: HasStats) -> bool:
        """
        Export *pool* from now on. Adding it again does nothing.

        Returns:
            Whether it was not there.

        Raises:
            TypeError: It is not one of our pools.
            ValueError: Another pool of this name, that is not closed, is there already.
        """
        stats = stats_of(pool)
        with self._lock:
            other = self._pools.get(stats.name)
            if other is not None and other is not pool and other.stats().state != "closed":
                raise ValueError(
                    f"name={stats.name!r}: another pool of that name is registered; "
                    "give each pool a name of its own, or close the other first"
                )
            self._pools[stats.name] = pool
            return other is not pool

    def stats(self) -> list[PoolStats]:
        """Read every pool that is not closed, once."""
        with self._lock:
            pools = list(self._pools.values())
        return [stats for pool in pools if (stats := pool.stats()).state != "closed"]


def stats_of(pool: HasStats) -> PoolStats:
    """
    Return the statistics of *pool*.

    Raises:
        TypeError: It is not one of our pools.
    """
    ask = getattr(pool, "stats", None)
    stats = ask() if callable(ask) else None
    if not isinstance(stats, PoolStats):
        raise TypeError(f"pool={pool!r}: expected a pool of loopaware_pool")
    return stats
