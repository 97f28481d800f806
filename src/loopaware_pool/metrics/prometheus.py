"""
Exports pools to Prometheus. Call `register(pool)` once; every scrape of the registry then reads the pool's statistics.

Nothing is counted here, so the pool does no extra work. A scrape may come from any thread.
"""

from __future__ import annotations

import threading
import weakref
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool.metrics._pools import HasStats, WatchedPools, stats_of
from loopaware_pool.metrics.table import METRICS, Level, Levels, Metric, Spent, Times, Total, Totals
from loopaware_pool.stats import BUCKETS_SECONDS, Histogram, PoolStats

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        SummaryMetricFamily,
    )
except ImportError as _missing:
    raise ImportError(
        f"loopaware_pool.metrics.prometheus needs prometheus_client ({_missing}): "
        "pip install 'loopaware-pool[prometheus]'"
    ) from _missing

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PREFIX", "PoolCollector", "register"]

PREFIX: Final = "loopaware_pool_"
_FAMILIES: Final[dict[type, type]] = {
    Level: GaugeMetricFamily,
    Levels: GaugeMetricFamily,
    Total: CounterMetricFamily,
    Totals: CounterMetricFamily,
    Times: HistogramMetricFamily,
    Spent: SummaryMetricFamily,
}


class PoolCollector:
    """
    Collects the metrics of all pools that were added to it.

    It holds them weakly. The series of a pool end when it is closed, or collected.
    """

    def __init__(self) -> None:
        self._pools = WatchedPools()

    def add(self, pool: HasStats) -> None:
        """
        Collect from *pool* from now on. Adding it again does nothing.

        Raises:
            TypeError: It is not one of our pools.
            ValueError: Another pool of this name, that is not closed, is there already.
        """
        self._pools.add(pool)

    def collect(self) -> Iterator[Any]:
        """Read every pool that is not closed, once, and yield Prometheus's metric families."""
        every = self._pools.stats()
        if every:
            for metric in METRICS:
                yield _family(metric, every)

    def describe(self) -> Iterator[Any]:
        """Yield the metrics without values, so that the registry can refuse others of the same names."""
        for metric in METRICS:
            yield _family(metric, [])


_collectors: weakref.WeakKeyDictionary[CollectorRegistry, PoolCollector] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def register(pool: HasStats, registry: CollectorRegistry = REGISTRY) -> None:
    """
    Include *pool*'s metrics in every scrape of *registry*, until it is closed. From any thread; the pool need not be
    open.

    Registering it again does nothing.

    Args:
        pool: The pool, held weakly.
        registry: prometheus_client's own, if none is given.

    Raises:
        TypeError: *pool* is not one of our pools.
        ValueError: Another pool of this name is registered, and not closed; or *registry* has other metrics of these
            names.
    """
    stats_of(pool)
    with _lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = PoolCollector()
            own: Any = collector  # prometheus_client asks for a subclass of its own, and uses the two methods
            registry.register(own)
            _collectors[registry] = collector
    collector.add(pool)


def _family(metric: Metric, every: list[PoolStats]) -> Any:
    """Make the family of one metric, for all pools."""
    labels = ["pool", metric.label] if isinstance(metric, Levels | Totals) else ["pool"]
    unit = "seconds" if metric.name.endswith("_seconds") else ""
    family: Any = _FAMILIES[type(metric)](PREFIX + metric.name, metric.help, labels=labels, unit=unit)
    for stats in every:
        for values, numbers in _samples(metric, stats):
            family.add_metric([stats.name, *values], *numbers)
    return family


def _samples(metric: Metric, stats: PoolStats) -> list[tuple[list[str], tuple[Any, ...]]]:
    """Read a metric. Returns the values of further labels, and what `add_metric` takes."""
    if isinstance(metric, Times):
        histogram, seconds = metric.read(stats)
        return [([], (_cumulative(histogram), seconds))]
    if isinstance(metric, Spent):
        return [([], metric.read(stats))]
    if isinstance(metric, Levels | Totals):
        return [([value], (number,)) for value, number in metric.read(stats).items()]
    number = metric.read(stats)
    return [] if number is None else [([], (number,))]


def _cumulative(histogram: Histogram) -> list[tuple[str, int]]:
    bounds = [*map(str, BUCKETS_SECONDS), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
