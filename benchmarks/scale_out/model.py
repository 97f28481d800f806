"""
A PostgreSQL server on simulated time: processors that sessions share, a limit of connections, a price for connecting.

What the model says, and no more:

* A statement needs processor time. All statements that run share the processors evenly.
* The more statements run at once, the more processor time each needs, because their sessions drive each other's data
  out of the processors' caches: the factor that was measured on a real server (`DEARER_READS`). Beyond the most that
  was measured, it stays as it is.
* An idle connection costs memory and a place of `max_connections`, and no processor time: none was measured. Where
  memory for connections is limited, it limits their number, too.
* A connect needs processor time. One that finds no place is refused, and costs nothing.

Not in it: locks, disks, network, autovacuum, replication, and resets of sessions.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "CONNECTION_MIB",
    "CONNECT_CPU_SECONDS",
    "DEARER_READS",
    "Clock",
    "ModelServer",
    "ServerKind",
    "dearer",
]

# As measured by `python -m benchmarks.scale_out measure` (docs/benchmarks/scale-out/measured.json): statements at work
# for each processor, and the processor time of a read as a multiple of that with the fewest.
DEARER_READS: Final = ((5.0, 1.0), (25.0, 1.17), (50.0, 1.25), (100.0, 1.54), (200.0, 1.64))
CONNECT_CPU_SECONDS: Final = 0.0019
CONNECTION_MIB: Final = 1.4


def dearer(active_per_processor: float, table: Sequence[tuple[float, float]] = DEARER_READS) -> float:
    """Return the factor by which a statement needs more processor time, from *table*, with straight lines between."""
    place = bisect_right(table, (active_per_processor, float("inf")))
    if place == 0 or place == len(table):
        return table[min(place, len(table) - 1)][1]
    (below, low), (above, high) = table[place - 1 : place + 1]
    return low + (high - low) * (active_per_processor - below) / (above - below)


class Clock:
    """
    Simulated time, and what is to happen when.

    Attributes:
        now: Seconds since the beginning.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        """Have *act* called in so many *seconds*: never at once, so nothing is called in the middle of a decision."""
        self._number += 1
        heapq.heappush(self._due, (self.now + seconds, self._number, act))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._due and self._due[0][0] <= until:
            self.now, _, act = heapq.heappop(self._due)
            act()
        self.now = max(self.now, until)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKind:
    """What a server has."""

    processors: int
    max_connections: int
    memory_mib: float | None = None  # for connections; None for enough
    connect_cpu_seconds: float = CONNECT_CPU_SECONDS
    dearer: Sequence[tuple[float, float]] = DEARER_READS

    def __post_init__(self) -> None:
        if not all(one < other for one, other in pairwise(self.dearer)):
            raise ValueError(f"dearer={self.dearer}: expected numbers that grow")

    @property
    def places(self) -> int:
        """How many connections it accepts."""
        if self.memory_mib is None:
            return self.max_connections
        return min(self.max_connections, int(self.memory_mib / CONNECTION_MIB))


class ModelServer:
    """
    A server of a *kind*, on a *clock*.

    Attributes:
        connections: Open ones.
        most_connections: The most that were open at once.
        most_active: The most statements that ran at once.
        refused: Connects that found no place.
    """

    def __init__(self, clock: Clock, kind: ServerKind) -> None:
        self.connections = self.most_connections = self.most_active = self.refused = 0
        self._clock = clock
        self._kind = kind
        self._running: list[tuple[float, int, Callable[[], object]]] = []  # by the share at which each is done
        self._shared = 0.0  # processor time that each statement has had which has run since the beginning
        self._since = 0.0
        self._number = self._version = 0

    def connect(self, done: Callable[[bool], object]) -> None:
        """Open a connection, or refuse; then call *done* with whether it is open."""
        if self.connections >= self._kind.places:
            self.refused += 1
            self._clock.after(0.0, lambda: done(False))
            return
        self.connections += 1
        self.most_connections = max(self.most_connections, self.connections)
        self.run(self._kind.connect_cpu_seconds, lambda: done(True))

    def disconnect(self) -> None:
        """Close a connection."""
        self.connections -= 1

    def run(self, cpu_seconds: float, done: Callable[[], object]) -> None:
        """Have a statement run that needs so much processor time; then call *done*."""
        self._catch_up()
        self._number += 1
        heapq.heappush(self._running, (self._shared + cpu_seconds, self._number, done))
        self.most_active = max(self.most_active, len(self._running))
        self._set_alarm()

    def _speed(self) -> float:
        """Tell how much of its processor time each statement gets in a second."""
        active, processors = len(self._running), self._kind.processors
        return min(1.0, processors / active) / dearer(active / processors, self._kind.dearer)

    def _catch_up(self) -> None:
        if self._running:
            self._shared += (self._clock.now - self._since) * self._speed()
        self._since = self._clock.now

    def _set_alarm(self) -> None:
        self._version += 1
        if self._running:
            left = max(0.0, self._running[0][0] - self._shared)
            version = self._version
            self._clock.after(left / self._speed(), lambda: self._alarm(version))

    def _alarm(self, version: int) -> None:
        if version != self._version:  # something began or ended meanwhile, and set another
            return
        self._catch_up()
        self._shared = max(self._shared, self._running[0][0])  # whatever the rounding
        _, _, done = heapq.heappop(self._running)
        self._set_alarm()
        done()
