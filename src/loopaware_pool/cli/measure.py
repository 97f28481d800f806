"""How fast, at what cost and how steadily something runs: for the demo and the benchmarks."""

from __future__ import annotations

import asyncio
import gc
import resource
import statistics
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["Burst", "Spread", "median_of", "percentile", "ratios", "run_burst"]


@dataclass(frozen=True, slots=True)
class Burst:
    """
    Many operations run by several tasks at once.

    Attributes:
        wall_seconds: From the first to the end of the last.
        cpu_seconds: Processor time that this process, all threads of it, spent meanwhile.
        latencies: How long each operation took, in seconds.
        page_faults: How often this process touched memory meanwhile that had to be mapped first.
    """

    wall_seconds: float
    cpu_seconds: float
    latencies: Sequence[float]
    page_faults: int = 0

    @property
    def per_second(self) -> float:
        """Operations per second."""
        return len(self.latencies) / self.wall_seconds

    @property
    def cpu_us(self) -> float:
        """Processor time per operation, in microseconds."""
        return self.cpu_seconds / len(self.latencies) * 1e6

    @property
    def faults_each(self) -> float:
        """Page faults per operation."""
        return self.page_faults / len(self.latencies)

    @property
    def p50_ms(self) -> float:
        """What half of the operations took at most, in milliseconds."""
        return percentile(self.latencies, 50) * 1e3

    @property
    def p99_ms(self) -> float:
        """What 99 of 100 operations took at most, in milliseconds."""
        return percentile(self.latencies, 99) * 1e3


@dataclass(frozen=True, slots=True)
class Spread:
    """
    Several measurements of one thing.

    Attributes:
        median: The one in the middle.
        low: The smallest.
        high: The largest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up *values*, of which there is one at least."""
        return cls(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """Find what *percent* of 100 of the *values* do not exceed, to a tenth of a percent."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=1000, method="inclusive")[round(percent * 10) - 1]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Divide what was measured in the same round, round by round: what slows a round down slows both."""
    return Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])


def median_of(bursts: Sequence[Burst], what: Callable[[Burst], float]) -> float:
    """Find the median of one figure of several bursts."""
    return statistics.median(map(what, bursts))


async def run_burst(operation: Callable[[], Awaitable[object]], *, operations: int, tasks: int) -> Burst:
    """
    Run *operation* so many times, shared evenly among so many tasks that all start at once.

    Cancellation, and an error of one operation, end all tasks.
    """
    latencies: list[float] = []

    async def work(count: int) -> None:
        for _ in range(count):
            began = perf_counter()
            await operation()
            latencies.append(perf_counter() - began)

    shares = [operations // tasks + (number < operations % tasks) for number in range(tasks)]
    gc.collect()
    faults, cpu, began = _page_faults(), process_time(), perf_counter()
    async with asyncio.TaskGroup() as group:
        for share in shares:
            group.create_task(work(share))
    return Burst(perf_counter() - began, process_time() - cpu, latencies, _page_faults() - faults)


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
