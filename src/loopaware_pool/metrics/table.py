"""
The metrics that exporters export: name, kind, meaning, and how each is read from a pool's statistics.

Names are without a monitoring system's own prefixes and suffixes. Times are in seconds, and their names end in
`seconds`. The one label that all have is the pool's name; connections also have their state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loopaware_pool.stats import Histogram, PoolStats

__all__ = ["METRICS", "Level", "Levels", "Metric", "Spent", "Times", "Total", "Totals"]


@dataclass(frozen=True, slots=True)
class Level:
    """
    A number that rises and falls: a gauge.

    Attributes:
        name: Its name.
        help: What it means, in one sentence.
        read: Reads it; None if it is not known.
    """

    name: str
    help: str
    read: Callable[[PoolStats], float | None]


@dataclass(frozen=True, slots=True)
class Levels:
    """
    Several gauges, told apart by a label.

    Attributes:
        name: Their common name.
        help: What they mean, in one sentence.
        label: Name of the label.
        read: Reads them, by the label's value. The set of values never changes.
    """

    name: str
    help: str
    label: str
    read: Callable[[PoolStats], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Total:
    """
    A number that only rises: a counter.

    Attributes:
        name: Its name.
        help: What it counts, in one sentence.
        read: Reads it.
    """

    name: str
    help: str
    read: Callable[[PoolStats], float]


@dataclass(frozen=True, slots=True)
class Totals:
    """
    Several counters, told apart by a label.

    Attributes:
        name: Their common name.
        help: What they count, in one sentence.
        label: Name of the label.
        read: Reads them, by the label's value. A value appears when it is first counted.
    """

    name: str
    help: str
    label: str
    read: Callable[[PoolStats], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Times:
    """
    How long something took, each time: a histogram.

    Attributes:
        name: Its name; ends in `seconds`.
        help: What took that time, in one sentence.
        read: Reads the counts by bucket, and how many seconds all took together.
    """

    name: str
    help: str
    read: Callable[[PoolStats], tuple[Histogram, float]]


@dataclass(frozen=True, slots=True)
class Spent:
    """
    Time spent, and how many times: a summary without quantiles.

    Attributes:
        name: Its name; ends in `seconds`.
        help: What took that time, in one sentence.
        read: Reads how many times, and how many seconds all of them took together.
    """

    name: str
    help: str
    read: Callable[[PoolStats], tuple[int, float]]


Metric = Level | Levels | Total | Totals | Times | Spent


def _connections(stats: PoolStats) -> Mapping[str, float]:
    states = ("connecting", "idle", "lent", "resetting", "closing")
    return {state: sum(getattr(loop, state) for loop in stats.loops) for state in states}


def _counted(name: str, help: str, counter: str) -> Total:  # noqa: A002 - what monitoring systems call it
    return Total(name, help, lambda stats: getattr(stats.totals, counter))


def _resets(stats: PoolStats) -> Mapping[str, int]:
    totals = stats.totals
    return {
        "pipelined": totals.resets_pipelined,
        "confirmed": totals.resets_confirmed,
        "awaited": totals.resets_awaited,
    }


def _gave_up(stats: PoolStats) -> tuple[int, float]:
    totals = stats.totals
    return totals.timed_out + totals.cancelled + totals.failed + totals.shed, totals.gave_up_seconds


METRICS: Final[tuple[Metric, ...]] = (
    Levels("connections", "Connections by state.", "state", _connections),
    Level("min_size", "Connections kept while idle.", lambda stats: stats.min_size),
    Level("max_size", "Most connections there may be.", lambda stats: stats.max_size),
    Level("waiting_callers", "Callers that wait for a connection.", lambda stats: stats.waiting),
    Level("loops", "Event loops that the pool serves.", lambda stats: len(stats.loops)),
    Level("process_fds", "Open fds of the whole process, when fd_check last looked.", lambda stats: stats.process_fds),
    _counted("acquires", "Leases begun.", "acquired"),
    _counted("acquires_queued", "Acquires that had to queue, served or not.", "queued"),
    _counted("acquires_timed_out", "Acquires that ended at their deadline.", "timed_out"),
    _counted("acquires_refused", "Acquires refused because of max_waiting.", "refused"),
    _counted("acquires_shed", "Acquires refused, after they had waited, because of shed_after.", "shed"),
    _counted("acquires_cancelled", "Acquires cancelled while they waited.", "cancelled"),
    _counted("acquires_failed", "Acquires that were told of another error while they waited.", "failed"),
    _counted("acquires_waited", "Leases begun after waiting in the queue.", "waited"),
    Times(
        *("acquire_wait_seconds", "Time that acquires waited before their lease began; most of them not at all."),
        lambda stats: (stats.totals.acquire_times, stats.totals.waited_seconds),
    ),
    Spent("acquire_gave_up_seconds", "Time in the queue of acquires that left it without a connection.", _gave_up),
    Times(
        *("use_seconds", "Time that leases lasted that have ended by a return."),
        lambda stats: (stats.totals.use_times, stats.totals.used_seconds),
    ),
    Times(
        *("connect_seconds", "Time that opening connections took."),
        lambda stats: (stats.totals.connect_times, stats.totals.connect_seconds),
    ),
    _counted("connections_opened", "Connections opened.", "opened"),
    Totals("connections_closed", "Connections closed, by reason.", "reason", lambda stats: stats.totals.closed_because),
    Total(
        *("permits_moved", "Connections closed because another loop needed the permit."),
        lambda stats: stats.totals.permits_moved,
    ),
    _counted("connect_failures", "Connects that failed.", "connect_failures"),
    _counted("connections_found_dead", "Connections that the server had closed while they were idle.", "found_dead"),
    _counted("connections_returned_dead", "Connections that came back closed, or in use.", "returned_dead"),
    Totals("resets", "Sessions reset, by how: pipelined, confirmed or awaited.", "kind", _resets),
    _counted("reset_failures", "Connections closed because their session could not be reset.", "reset_failures"),
    _counted("leases_overdue", "Leases that lasted for longer than leak_threshold.", "overdue"),
    _counted("leases_dropped", "Connections closed because their holder let go of them.", "dropped"),
    _counted("fd_leak", "Sockets found open after their connections were closed, by fd_check.", "fds_leaked"),
    _counted("fd_lost", "Idle connections found without their sockets, by fd_check.", "fds_lost"),
    _counted(
        "registration_left", "Selector entries found for sockets that were gone, by fd_check.", "registrations_left"
    ),
)
