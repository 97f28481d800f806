"""
Connects at one server when many processes lose their connections at the same moment.

The shards that decide are the library's own. Time, network, server and callers are simulated, so that a run takes
seconds and gives the same figures each time:

    python -m benchmarks.herd

The server works on a few connects at once, first come, first served, also on those whose clients have given up.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from loopaware_pool._core import shard as shard_module
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.connect_pacing import PROBE_FIRST_SECONDS, MinSizeBackoff, SlowStart
from loopaware_pool._core.housekeeping import Housekeeper
from loopaware_pool._core.permits import Permits
from loopaware_pool._core.shard import Shard
from loopaware_pool._core.slot import SlotState
from loopaware_pool._core.state import SharedState
from loopaware_pool.driver import Liveness, ReturnCheck
from loopaware_pool.testing import FakeDriver, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool._core.slot import Slot

__all__ = ["LIVES", "LOSSES", "PACES", "Outcome", "Scenario", "run"]

WORKERS: Final = 4
CONNECT_WORK_SECONDS: Final = 0.005
NETWORK_SECONDS: Final = 0.0005
CONNECT_TIMEOUT_SECONDS: Final = 2.0
LEASE_SECONDS: Final = 0.005
DEADLINE_SECONDS: Final = 5.0
BEGIN_SECONDS: Final = 10.0  # when the connections are lost: everything is warm by then
BUCKET_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Scenario:
    """
    What happens, and to how many.

    Attributes:
        name: For the table.
        down_seconds: How long the server then refuses; 0 if its successor is there already, and the pools are drained.
        processes: How many processes, with a pool each.
        min_size, max_size: Of each pool.
        callers_per_second: In each process.
        watch_seconds: How long to go on after that.
        max_connecting: As the pool's option.
        max_lifetime: Of each connection, in seconds; 0 for no limit.
        lifetime_jitter: As the pool's option.
    """

    name: str
    down_seconds: float = 0.0
    processes: int = 300
    min_size: int = 5
    max_size: int = 10
    callers_per_second: float = 10.0
    watch_seconds: float = 10.0
    max_connecting: int | None = None
    max_lifetime: float = 0.0
    lifetime_jitter: float = 0.1


@dataclass(slots=True)
class Outcome:
    """
    What the server, and the callers, saw from the loss on.

    Attributes:
        connects: When each connect came, in seconds after the loss.
        most_at_once: Most connects that the server had to do at one time.
        given_up: Connects whose client did not wait for the end.
        refused: Connects while the server was down.
        failed_callers: Callers whose deadline passed.
        waits: How long each caller waited, in seconds.
    """

    connects: list[float] = field(default_factory=list)
    most_at_once: int = 0
    given_up: int = 0
    refused: int = 0
    failed_callers: int = 0
    waits: list[float] = field(default_factory=list)

    def peak(self, since: float = 0.0) -> int:
        """Count the connects of the busiest tenth of a second, *since* so many seconds after the loss."""
        buckets = Counter(int(at / BUCKET_SECONDS) for at in self.connects if at >= since)
        return max(buckets.values(), default=0)


class Clock:
    """Simulated time, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Callable[[], object]]] = []

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Call *action* then."""
        heapq.heappush(self._due, (max(when, self.now), next(self._numbers), action))

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Call *action* after so long."""
        self.at(self.now + seconds, action)

    def run_until(self, end: float) -> None:
        """Let time pass."""
        while self._due and self._due[0][0] <= end:
            self.now, _, action = heapq.heappop(self._due)
            action()
        self.now = end


class Server:
    """Opens connections, a few at once. Attributes: `is_up`, and what `Outcome` has."""

    def __init__(self, clock: Clock) -> None:
        self.is_up = True
        self.outcome = Outcome()
        self._clock = clock
        self._free_at = [0.0] * WORKERS
        self._under_way = 0

    def connect(self, connected: Callable[[], object], failed: Callable[[BaseException], object]) -> None:
        """Answer a connect."""
        clock = self._clock
        if not self.is_up:
            self.outcome.refused += 1
            clock.after(NETWORK_SECONDS, lambda: failed(ConnectionRefusedError("refused")))
            return
        self.outcome.connects.append(clock.now - BEGIN_SECONDS)
        self._under_way += 1
        self.outcome.most_at_once = max(self.outcome.most_at_once, self._under_way)
        done_at = max(clock.now, heapq.heappop(self._free_at)) + CONNECT_WORK_SECONDS
        heapq.heappush(self._free_at, done_at)
        clock.at(done_at, self._done)
        if done_at - clock.now < CONNECT_TIMEOUT_SECONDS:
            clock.at(done_at + NETWORK_SECONDS, connected)
        else:
            self.outcome.given_up += 1
            clock.after(CONNECT_TIMEOUT_SECONDS, lambda: failed(TimeoutError()))

    def _done(self) -> None:
        self._under_way -= 1


class Caller:
    """Waits for a connection, as a future does."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._began = process.clock.now
        self._is_done = False

    def done(self) -> bool:
        return self._is_done

    def set_result(self, slot: Slot[Any]) -> None:
        self._is_done = True
        self._process.clock.after(0.0, lambda: self._process.claim(slot, self._began))

    def set_exception(self, _: BaseException) -> None:
        self._is_done = True
        self._process.outcome.failed_callers += 1

    def give_up(self) -> None:
        if not self._is_done:
            self._is_done = True
            self._process.outcome.failed_callers += 1
            self._process.shard.dequeue(self)
            self._process.act()


class Process:
    """One pool with its callers: what acts for a shard, in simulated time."""

    errors = FakeDriver.errors

    def __init__(self, scenario: Scenario, clock: Clock, server: Server, draw: random.Random) -> None:
        self.clock, self._server, self._draw, self._scenario = clock, server, draw, scenario
        config = PoolConfig(
            min_size=scenario.min_size,
            init_size=scenario.min_size,
            max_size=scenario.max_size,
            max_connecting=scenario.max_connecting,
            max_lifetime=scenario.max_lifetime,
            lifetime_jitter=scenario.lifetime_jitter,
        )
        shared = SharedState(config)
        self._shared = shared
        self._decided: deque[Callable[[], object]] = deque()
        self._timer = 0
        self.shard: Shard[FakeSession] = Shard(shared, Permits(shared), self, pool_size=self._size, jitter=draw.random)
        self._housekeeper = Housekeeper(self.shard, shared, self, pool_size=self._size)
        self._do(lambda: self.shard.keep_floor(clock.now))
        clock.after(draw.expovariate(scenario.callers_per_second), self._call)

    @property
    def outcome(self) -> Outcome:
        return self._server.outcome

    def _size(self) -> int:
        return self.shard.size + len(self.shard.connecting)

    # ---- callers ----

    def _call(self) -> None:
        self.clock.after(self._draw.expovariate(self._scenario.callers_per_second), self._call)
        slot = self.shard.take(self.clock.now)
        if slot is not None:
            self._use(slot, 0.0)
        else:
            caller = Caller(self)
            self.shard.enqueue(caller, self.clock.now, has_deadline=True)
            self.clock.after(DEADLINE_SECONDS, caller.give_up)
        self.act()

    def claim(self, slot: Slot[Any], began: float) -> None:
        """Begin the lease of a caller that has waited."""
        if slot.state is SlotState.RESERVED:
            self.shard.claim(slot, self.clock.now - began, self.clock.now)
            self._use(slot, self.clock.now - began)

    def _use(self, slot: Slot[Any], waited: float) -> None:
        if self.clock.now >= BEGIN_SECONDS:
            self.outcome.waits.append(waited)
        self.clock.after(self._draw.expovariate(1 / LEASE_SECONDS), lambda: self._return(slot))

    def _return(self, slot: Slot[Any]) -> None:
        if slot.state is SlotState.LENT:
            is_well = slot.session.life is Liveness.ALIVE
            self._do(
                lambda: self.shard.returned(slot, ReturnCheck.READY if is_well else ReturnCheck.BROKEN, self.clock.now)
            )

    # ---- faults ----

    def lose_all(self) -> None:
        """The server ends all sessions, and each driver notices."""
        for slot in list(self.shard.slots):
            if slot.state not in (SlotState.CONNECTING, SlotState.CLOSING):
                slot.session.life = Liveness.DEAD
                if slot.state is SlotState.IDLE:
                    self._do(lambda slot=slot: self.shard.discard(slot, "lost"))  # type: ignore[misc]
        self._do(lambda: self._housekeeper.sweep(self.clock.now))

    def drain(self) -> None:
        """Have all connections replaced, as after a failover."""
        self._shared.generation += 1
        self._do(lambda: self._housekeeper.sweep(self.clock.now))

    # ---- what a shard has done for it ----

    def _do(self, action: Callable[[], object]) -> None:
        action()
        self.act()

    def act(self) -> None:
        while self._decided:
            self._decided.popleft()()

    def is_awake(self) -> bool:
        return True

    def begin_connect(self, slot: Slot[Any]) -> None:
        def connected() -> None:
            if slot.state is SlotState.CONNECTING:
                self._do(lambda: self.shard.connected(slot, FakeSession(), self.clock.now))

        def failed(error: BaseException) -> None:
            self._do(lambda: self.shard.connect_failed(slot, error, self.clock.now, is_final=False))

        self._decided.append(lambda: self._server.connect(connected, failed))

    def begin_ping(self, slot: Slot[Any]) -> None:
        self.clock.after(NETWORK_SECONDS, lambda: self._do(lambda: self.shard.serviced(slot, self.clock.now)))

    begin_reset = begin_read = begin_ping

    def begin_close(self, slot: Slot[Any], *, politely: bool) -> None:
        if politely:
            self.clock.after(NETWORK_SECONDS, lambda: self._do(lambda: self.shard.closed(slot, self.clock.now)))
        else:
            self._decided.append(lambda: self.shard.closed(slot, self.clock.now))

    def cut_goodbye(self, slot: Slot[Any]) -> None:
        self._decided.append(lambda: self.shard.closed(slot, self.clock.now))

    def wake_at(self, due: float) -> None:
        self._timer += 1
        number = self._timer
        self.clock.at(due, lambda: self._sweep(number))

    def _sweep(self, number: int) -> None:
        if number == self._timer:
            self._do(lambda: self._housekeeper.sweep(self.clock.now))

    def _nothing(self, *_: object) -> None:
        """There is one loop, and nobody is told."""

    park_when_idle = tell_granted = ask_for_permit = run_errands_of_idle_loops = _nothing
    reclaim_dropped_on_all_loops = report_floor_not_restored = report_overdue = report_late_return = _nothing
    report_dropped = report_opened = report_connect_failed = report_gone = _nothing


# ---- other ways to pace connects ----


class _Unpaced(SlowStart):
    """One connect for each caller that waits, and another attempt 50 ms after a refusal."""

    def allowance(self, now: float) -> int:
        return self.ceiling

    def refused(self, now: float) -> None:
        self.probe_at = now + PROBE_FIRST_SECONDS


class _Alone(SlowStart):
    """As if no other process used the server: neither answers nor chance matter."""

    def __init__(self, ceiling: int, _: Callable[[], float], **__: Any) -> None:
        super().__init__(ceiling, lambda: 0.0)

    def allowance(self, now: float) -> int:
        self._allowed = None
        return super().allowance(now)


PACES: Final = {"none": _Unpaced, "each process by itself": _Alone, "ours": SlowStart}


def run(scenario: Scenario, pace: str = "ours", seed: int = 1) -> Outcome:
    """Simulate a scenario, with connects paced in one of the ways of `PACES`."""
    backoff = MinSizeBackoff if pace == "ours" else lambda _: MinSizeBackoff(lambda: 0.0)
    with (
        mock.patch.object(shard_module, "SlowStart", PACES[pace]),
        mock.patch.object(shard_module, "MinSizeBackoff", backoff),
    ):
        return _run(scenario, random.Random(seed))


def _run(scenario: Scenario, draw: random.Random) -> Outcome:
    clock = Clock()
    server = Server(clock)
    processes = []
    for number in range(scenario.processes):
        begins = BEGIN_SECONDS * 0.5 * number / scenario.processes
        clock.at(begins, lambda: processes.append(Process(scenario, clock, server, draw)))
    clock.run_until(BEGIN_SECONDS)
    server.outcome = Outcome()
    server.is_up = not scenario.down_seconds
    for process in processes:
        if scenario.down_seconds:
            process.lose_all()
        else:
            process.drain()
    clock.run_until(BEGIN_SECONDS + scenario.down_seconds)
    server.is_up = True
    clock.run_until(clock.now + scenario.watch_seconds)
    return server.outcome


LOSSES: Final = (
    Scenario("drained, idle", callers_per_second=0.2),
    Scenario("drained, 3,000 callers/s"),
    Scenario("drained, 15,000 callers/s", callers_per_second=50),
    Scenario("the same, max_connecting=1", callers_per_second=50, max_connecting=1),
    Scenario("2 s down, idle", down_seconds=2, callers_per_second=0.2),
    Scenario("2 s down, 3,000 callers/s", down_seconds=2),
    Scenario("2 s down, 15,000 callers/s", down_seconds=2, callers_per_second=50),
)
# All connections are made within a second, and have half a minute each.
LIVES: Final = [
    Scenario(f"lifetime_jitter={jitter}", watch_seconds=40, max_lifetime=30, lifetime_jitter=jitter)
    for jitter in (0.0, 0.1, 0.5)
]


def _main() -> None:
    columns = ("refused", "connects", "in 0.1 s", "at once", "given up", "callers failed", "p99 of waits, ms")
    print(f"| what happens | pace | {' | '.join(columns)} |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for scenario, pace in itertools.product(LOSSES, PACES):
        outcome = run(scenario, pace)
        counts = (outcome.refused, len(outcome.connects), outcome.peak(), outcome.most_at_once, outcome.given_up)
        p99_ms = 1000 * sorted(outcome.waits)[int(len(outcome.waits) * 0.99)]
        figures = " | ".join(f"{figure:,.0f}" for figure in (*counts, outcome.failed_callers, p99_ms))
        print(f"| {scenario.name} | {pace} | {figures} |", flush=True)
    print("\n| ends of life | connects in 0.1 s, later than 5 s |\n|---|---:|")
    for scenario in LIVES:
        print(f"| {scenario.name} | {run(scenario).peak(5.0):,} |", flush=True)


if __name__ == "__main__":
    _main()
