"""
Adds a pool's histograms to what OpenTelemetry's readers receive.

The API takes durations one by one, which costs several times what a lease does; there is no way to hand over counts by
bucket. So they are added where a reader receives what was collected: `MetricReader._receive_metrics`, which the SDK
offers to subclasses.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections import defaultdict
from time import time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import opentelemetry.sdk.metrics as sdk
from opentelemetry.sdk.metrics.export import AggregationTemporality, HistogramDataPoint, Metric, MetricsData
from opentelemetry.sdk.metrics.export import Histogram as HistogramPoints

from loopaware_pool.stats import BUCKETS_SECONDS, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader

__all__ = ["SCOPE", "TimedPool", "TimesExporter"]

SCOPE = "loopaware_pool"


class TimedPool(NamedTuple):
    """
    One histogram of one pool.

    Attributes:
        name: The metric's.
        description: What took that time.
        attributes: Those that tell the pool.
        began_ns: Since when there are counts, in nanoseconds since 1970.
        times: Counts by bucket, and seconds in all.
    """

    name: str
    description: str
    attributes: Mapping[str, str]
    began_ns: int
    times: tuple[Histogram, float]


class TimesExporter:
    """
    Adds the histograms of pools to what readers receive.

    Args:
        read: Reads all histograms.
    """

    def __init__(self, read: Callable[[], Iterable[TimedPool]]) -> None:
        self._read = read
        self._joined: weakref.WeakSet[MetricReader] = weakref.WeakSet()
        self._lock = threading.Lock()

    def join(self, provider: MeterProvider | None) -> None:
        """Add to what the readers of *provider* receive from now on, if it is the SDK's."""
        for reader in _readers_of(provider):
            with self._lock:
                if reader not in self._joined:
                    self._joined.add(reader)
                    self._extend(reader)

    def _extend(self, reader: MetricReader) -> None:
        receive: Callable[..., None] = reader._receive_metrics  # noqa: SLF001 - meant to be overridden
        series: _SeriesByName = defaultdict(_Delta if _wants_deltas(reader) else _Cumulative)

        def receive_all(metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
            metrics = list(_metrics(series, self._read()))
            receive(_with(metrics, metrics_data), timeout_millis=timeout_millis, **kwargs)

        reader._receive_metrics = receive_all  # type: ignore[method-assign]  # noqa: SLF001


class _Cumulative:
    """One histogram of all pools; points count from the beginning."""

    temporality = AggregationTemporality.CUMULATIVE

    def points(self, ones: list[TimedPool], now_ns: int) -> list[HistogramDataPoint]:
        return [_point(one.attributes, one.began_ns, now_ns, *one.times) for one in ones]


class _Delta:
    """One histogram of all pools; points count from the point before."""

    temporality = AggregationTemporality.DELTA

    def __init__(self) -> None:
        # When and what was read last, by the pool's name, and when that pool began: another may have its name by now.
        self._last: dict[tuple[object, ...], tuple[int, Histogram, float]] = {}

    def points(self, ones: list[TimedPool], now_ns: int) -> list[HistogramDataPoint]:
        last, self._last = self._last, {}
        points = []
        for one in ones:
            key = (*one.attributes.values(), one.began_ns)
            since_ns, histogram, seconds = last.get(key, (one.began_ns, Histogram(), 0.0))
            counts, total = one.times
            self._last[key] = (now_ns, counts, total)
            points.append(_point(one.attributes, since_ns, now_ns, counts.minus(histogram), total - seconds))
        return points


_SeriesByName = defaultdict[str, _Cumulative | _Delta]


def _metrics(series: _SeriesByName, pools: Iterable[TimedPool]) -> Iterator[Metric]:
    """Make one metric of all pools' points."""
    now_ns = time_ns()
    by_name: dict[str, list[TimedPool]] = {}
    for one in pools:
        by_name.setdefault(one.name, []).append(one)
    for name, ones in by_name.items():
        points = series[name].points(ones, now_ns)
        yield Metric(name, ones[0].description, "s", HistogramPoints(points, series[name].temporality))


def _point(
    attributes: Mapping[str, str], since_ns: int, now_ns: int, histogram: Histogram, seconds: float
) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=dict(attributes),
        start_time_unix_nano=since_ns,
        time_unix_nano=now_ns,
        count=histogram.count,
        sum=seconds,
        bucket_counts=tuple(histogram.counts),
        explicit_bounds=BUCKETS_SECONDS,
        min=float("inf"),  # not recorded, as the SDK says it
        max=float("-inf"),
    )


def _with(metrics: list[Metric], data: MetricsData) -> MetricsData:
    """Add *metrics* to those of our scope. It is there: this runs because one of our instruments was read."""
    return dataclasses.replace(
        data,
        resource_metrics=[
            dataclasses.replace(
                resource,
                scope_metrics=[
                    dataclasses.replace(scope, metrics=[*scope.metrics, *metrics])
                    if scope.scope.name == SCOPE
                    else scope
                    for scope in resource.scope_metrics
                ],
            )
            for resource in data.resource_metrics
        ],
    )


def _readers_of(provider: MeterProvider | None) -> list[MetricReader]:
    """Return the readers of an SDK's provider; there is no public way to them."""
    consumer = getattr(provider, "_measurement_consumer", None)
    return list(getattr(consumer, "_reader_storages", ()))


def _wants_deltas(reader: MetricReader) -> bool:
    temporalities = reader._instrument_class_temporality  # noqa: SLF001 - as above
    wanted = [value for kind, value in temporalities.items() if issubclass(kind, sdk.Histogram)]
    return AggregationTemporality.DELTA in wanted
