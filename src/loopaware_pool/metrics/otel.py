"""
Exports pools to OpenTelemetry. Call `instrument(pool)` once; every collection then reads the pool's statistics.

The names are those of the semantic conventions for database clients, version 1.44, in which all of them are still in
development: what changes there changes here, and nowhere else. What the conventions have no name for has the prefix
`loopaware_pool.` and the name that it has in `loopaware_pool.metrics.METRICS`.
"""

from __future__ import annotations

import threading
import weakref
from time import time_ns
from typing import TYPE_CHECKING, Final

from loopaware_pool.metrics._pools import HasStats, WatchedPools, stats_of
from loopaware_pool.metrics.table import METRICS, Level, Levels, Metric, Spent, Times, Totals

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider

    from loopaware_pool.metrics._otel_times import SCOPE, TimedPool, TimesExporter
except ImportError as _missing:
    raise ImportError(
        f"loopaware_pool.metrics.otel needs OpenTelemetry's SDK ({_missing}): pip install 'loopaware-pool[otel]'"
    ) from _missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from loopaware_pool.stats import PoolStats

    _Read = Callable[[PoolStats], Iterable[tuple[Mapping[str, str], float]]]

__all__ = ["POOL_NAME", "PREFIX", "STATE", "instrument"]

PREFIX: Final = "loopaware_pool."
POOL_NAME: Final = "db.client.connection.pool.name"
STATE: Final = "db.client.connection.state"
_CONVENTIONAL: Final = "db.client.connection."

# What the conventions call the histograms of our table.
_TIMES: Final = {
    "connect_seconds": ("create_time", "The time it took to create a new connection."),
    "acquire_wait_seconds": ("wait_time", "The time it took to obtain an open connection from the pool."),
    "use_seconds": ("use_time", "The time between borrowing a connection and returning it to the pool."),
}
# Metrics of our table that the conventions have under other names.
_RENAMED: Final = {*_TIMES, "min_size", "max_size", "waiting_callers", "acquires_timed_out"}


def instrument(pool: HasStats, meter_provider: MeterProvider | None = None) -> None:
    """
    Export *pool*'s metrics until it is closed. From any thread; the pool need not be open.

    Numbers are read at each collection, in its thread. Instrumenting a pool again does nothing.

    The histograms are counted by the pool, so that no lease costs a measurement. They are added to what the readers of
    OpenTelemetry's own SDK receive: views do not apply to them, and another SDK does not have them.

    Args:
        pool: The pool, held weakly.
        meter_provider: Where to; None takes the global one, also if that is set later.

    Raises:
        TypeError: *pool* is not one of our pools.
        ValueError: Another pool of this name is exported there, and not closed.
    """
    stats_of(pool)
    if meter_provider is get_meter_provider():
        meter_provider = None
    with _lock:
        exporter = _global if meter_provider is None else _exporters.setdefault(meter_provider, _PoolExporter())
        exporter.create_instruments(meter_provider)
    exporter.add(pool)


class _PoolExporter:
    """The pools that one provider exports."""

    def __init__(self) -> None:
        self._pools = WatchedPools()
        self._began: dict[str, int] = {}  # in nanoseconds since 1970, by the pool's name
        self._times = TimesExporter(self._timed_pools)
        self._has_instruments = False
        self._provider: weakref.ref[MeterProvider] | None = None

    def add(self, pool: HasStats) -> None:
        """Export *pool* from now on."""
        if self._pools.add(pool):
            began = {stats.name: self._began.get(stats.name, 0) for stats in self._pools.stats()}
            self._began = {**began, stats_of(pool).name: time_ns()}

    def create_instruments(self, provider: MeterProvider | None) -> None:
        """Create, once, what reads the pools. *provider* is None for the global one, which may be set later."""
        if self._has_instruments:
            return
        self._has_instruments = True
        self._provider = None if provider is None else weakref.ref(provider)
        meter = (provider or get_meter_provider()).get_meter(SCOPE)
        conventional = f"{_CONVENTIONAL}%s"
        for name, unit, read, description in _LEVELS:
            callbacks = [self._observe(read)]
            meter.create_observable_up_down_counter(conventional % name, callbacks, unit, description)
        meter.create_observable_counter(
            conventional % "timeouts",
            [self._observe(lambda stats: [({}, stats.totals.timed_out)])],
            unit="{timeout}",
            description="The number of connection timeouts that have occurred trying to obtain a connection.",
        )
        for metric in METRICS:
            if metric.name not in _RENAMED:
                is_level = isinstance(metric, Level | Levels)
                create = meter.create_observable_up_down_counter if is_level else meter.create_observable_counter
                unit = "s" if metric.name.endswith("_seconds") else ""
                create(PREFIX + metric.name, [self._observe(_reader_of(metric))], unit, metric.help)

    def _observe(self, read: _Read) -> Callable[[CallbackOptions], Iterator[Observation]]:
        def callback(_: CallbackOptions) -> Iterator[Observation]:
            self._times.join(get_meter_provider() if self._provider is None else self._provider())
            for stats in self._pools.stats():
                for attributes, number in read(stats):
                    yield Observation(number, {POOL_NAME: stats.name, **attributes})

        return callback

    def _timed_pools(self) -> Iterator[TimedPool]:
        """Read the histograms of all pools, for a reader."""
        for stats in self._pools.stats():
            for metric in METRICS:
                if isinstance(metric, Times):
                    name, description = _TIMES[metric.name]
                    yield TimedPool(
                        name=_CONVENTIONAL + name,
                        description=description,
                        attributes={POOL_NAME: stats.name},
                        began_ns=self._began.get(stats.name, 0),
                        times=metric.read(stats),
                    )


def _states(stats: PoolStats) -> Iterator[tuple[Mapping[str, str], float]]:
    """Count as the conventions do: what is neither being opened nor being closed is either idle or used."""
    yield {STATE: "idle"}, stats.idle
    yield {STATE: "used"}, stats.lent + stats.resetting


def _reader_of(metric: Metric) -> _Read:
    """Return what reads a metric of our table that the conventions do not have."""

    def read(stats: PoolStats) -> Iterator[tuple[Mapping[str, str], float]]:
        if isinstance(metric, Levels | Totals):
            for value, number in metric.read(stats).items():
                yield {PREFIX + metric.label: value}, number
        elif isinstance(metric, Spent | Times):
            yield {}, metric.read(stats)[1]
        elif (level := metric.read(stats)) is not None:
            yield {}, level

    return read


_LEVELS: Final[tuple[tuple[str, str, _Read, str], ...]] = (
    ("count", "{connection}", _states, "The number of connections that are currently in the state."),
    (
        *("idle.max", "{connection}", lambda stats: [] if stats.max_idle_size is None else [({}, stats.max_idle_size)]),
        "The maximum number of idle open connections allowed.",
    ),
    (
        *("idle.min", "{connection}", lambda stats: [({}, stats.min_size)]),
        "The minimum number of idle open connections allowed.",
    ),
    ("max", "{connection}", lambda stats: [({}, stats.max_size)], "The maximum number of open connections allowed."),
    (
        *("pending_requests", "{request}", lambda stats: [({}, stats.waiting)]),
        "The number of current pending requests for an open connection.",
    ),
)
_global: Final = _PoolExporter()
_exporters: weakref.WeakKeyDictionary[MeterProvider, _PoolExporter] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
