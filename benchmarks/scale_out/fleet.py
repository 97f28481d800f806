"""
Processes with pools, on simulated time. The pools decide by the library's `Shard`, which needs neither loop nor server.

A caller comes, acquires within its deadline, runs a transaction of two statements with a round trip between them, works
on with the lease held, and releases. A proxy in transaction mode is one more pool, which lends for a transaction.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.scale_out.model import CONNECTION_MIB, Clock, ModelServer, ServerKind
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.housekeeping import Housekeeper
from loopaware_pool._core.permits import Permits
from loopaware_pool._core.shard import Shard
from loopaware_pool._core.slot import SlotState
from loopaware_pool._core.state import SharedState
from loopaware_pool.cli.measure import percentile
from loopaware_pool.driver import ReturnCheck
from loopaware_pool.testing import FakeDriver, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool._core.permits import Claimant
    from loopaware_pool._core.slot import Slot
    from loopaware_pool.errors import ErrorFamily

__all__ = ["Plan", "Simulation", "Work"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a caller does; all in seconds."""

    statement_cpu_seconds: float = 0.0005  # of each of two, on average
    round_trip_seconds: float = 0.0005
    rest_seconds: float = 0.004  # with the lease held, and no transaction open
    deadline_seconds: float = 1.0  # for all of it, and for the acquire

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the server that a lease costs."""
        return 2 * self.statement_cpu_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What is simulated.

    Attributes:
        processes: Each with a pool for each server.
        rate: Callers a second that come to all processes together.
        max_size: Of each pool.
        min_size: Of each pool.
        shed_after: Seconds after which a pool refuses callers while its queue is backed up; None never.
        proxy_pool: Connections of the proxy before each server; None without proxies.
        servers: Over which the data are spread; each caller needs one of them.
        kind: What each server has.
        work: What a caller does.
    """

    processes: int
    rate: float
    max_size: int = 10
    min_size: int = 0
    shed_after: float | None = None
    proxy_pool: int | None = None
    servers: int = 1
    kind: ServerKind
    work: Work = Work()


class _Backend(Protocol):
    """What a pool's connections lead to: a server, or a proxy."""

    def connect(self, done: Callable[[bool], object]) -> None: ...

    def disconnect(self) -> None: ...

    def transact(self, done: Callable[[], object]) -> None: ...


class _Direct:
    """Connections to a server."""

    def __init__(self, clock: Clock, server: ModelServer, work: Work, draws: random.Random) -> None:
        self._clock, self._server, self._work, self._draws = clock, server, work, draws

    def connect(self, done: Callable[[bool], object]) -> None:
        self._server.connect(done)

    def disconnect(self) -> None:
        self._server.disconnect()

    def transact(self, done: Callable[[], object]) -> None:
        """Run two statements with a round trip between them."""
        mean = 1 / self._work.statement_cpu_seconds
        first, second = self._draws.expovariate(mean), self._draws.expovariate(mean)

        def go_on() -> None:
            self._clock.after(self._work.round_trip_seconds, lambda: self._server.run(second, done))

        self._server.run(first, go_on)


class _Proxy:
    """Connections to a proxy, which are free; each transaction waits for one of the pool that all share."""

    def __init__(self, clock: Clock, behind: _Backend, size: int) -> None:
        self._clock, self._behind = clock, behind
        self.pool = _Pool(clock, behind, PoolConfig(min_size=0, init_size=0, max_size=size))

    def connect(self, done: Callable[[bool], object]) -> None:
        self._clock.after(0.0, lambda: done(True))

    def disconnect(self) -> None:
        pass

    def transact(self, done: Callable[[], object]) -> None:
        def lent(slot: Slot[FakeSession]) -> None:
            def ended() -> None:
                self.pool.give_back(slot)
                done()

            self._behind.transact(ended)

        self.pool.acquire(lent, failed=lambda: None, seconds=None)


class _Waiter:
    """A caller in a shard's queue."""

    def __init__(
        self, clock: Clock, served: Callable[[Slot[FakeSession]], object], failed: Callable[[], object]
    ) -> None:
        self._clock, self._served, self._failed = clock, served, failed
        self._is_done = False

    def done(self) -> bool:
        return self._is_done

    def set_result(self, slot: Slot[FakeSession], /) -> None:
        self._is_done = True
        self._clock.after(0.0, lambda: self._served(slot))

    def set_exception(self, _: BaseException, /) -> None:
        self._is_done = True
        self._clock.after(0.0, self._failed)


class _Pool:
    """One loop's pool: the library's `Shard`, and what it has done for it on simulated time."""

    errors: ErrorFamily = FakeDriver.errors

    def __init__(self, clock: Clock, backend: _Backend, config: PoolConfig) -> None:
        self._clock, self._backend = clock, backend
        shared = SharedState(config)
        self.permits = Permits(shared)
        self.shard: Shard[FakeSession] = Shard(shared, self.permits, self, pool_size=self._size, jitter=lambda: 0.0)
        self._housekeeper = Housekeeper(self.shard, shared, self, pool_size=self._size)
        self._wake: float | None = None
        for _ in range(config.min_size):
            self.shard.open_one(clock.now)

    def _size(self) -> int:
        return len(self.shard.slots)

    def acquire(
        self, served: Callable[[Slot[FakeSession]], object], *, failed: Callable[[], object], seconds: float | None
    ) -> None:
        """Call *served* with a connection, or *failed* after so many *seconds*, or if none can be opened."""
        slot = self.shard.take(self._clock.now)
        if slot is not None:
            served(slot)
            return
        since = self._clock.now

        def claimed(slot: Slot[FakeSession]) -> None:
            self.shard.claim(slot, self._clock.now - since, self._clock.now)
            served(slot)

        waiter = _Waiter(self._clock, claimed, failed)
        self.shard.enqueue(waiter, since, has_deadline=seconds is not None)

        def too_late() -> None:
            if not waiter.done():
                self.shard.dequeue(waiter)
                failed()

        if seconds is not None:
            self._clock.after(seconds, too_late)

    def give_back(self, slot: Slot[FakeSession]) -> None:
        """End a lease."""
        self.shard.returned(slot, ReturnCheck.READY, self._clock.now)

    def lost(self) -> int:
        """Count permits and connections that are nobody's, once all callers have gone: 0 if nothing was lost."""
        not_idle = len(self.shard.slots) - self.shard.count(SlotState.IDLE)
        return not_idle + abs(self.permits.in_use - len(self.shard.slots)) + len(self.shard.waiters)

    # ---- what a shard has done for it: see `ShardEffects` ----

    def is_awake(self) -> bool:
        return True

    def begin_connect(self, slot: Slot[FakeSession]) -> None:
        def done(is_open: bool) -> None:
            if is_open:
                self.shard.connected(slot, FakeSession(), self._clock.now)
            else:
                error = ConnectionRefusedError("too many clients already")
                self.shard.connect_failed(slot, error, self._clock.now, is_final=False)

        self._backend.connect(done)

    def begin_close(self, slot: Slot[FakeSession], *, politely: bool) -> None:
        def closed() -> None:
            self._backend.disconnect()
            self.shard.closed(slot, self._clock.now)

        self._clock.after(0.0, closed)

    def wake_at(self, due: float) -> None:
        if self._wake is not None and self._wake <= due:
            return
        self._wake = due

        def wake() -> None:
            if self._wake == due:
                self._wake = None
                self._housekeeper.sweep(self._clock.now)

        self._clock.after(max(0.0, due - self._clock.now), wake)

    def begin_reset(self, slot: Slot[FakeSession]) -> None:
        raise AssertionError("no session is reset here")

    begin_ping = begin_read = cut_goodbye = begin_reset

    def tell_granted(self, claimant: Claimant) -> None:
        raise AssertionError("each pool has one loop here")

    ask_for_permit = tell_granted

    def _nothing(self, *_: Any) -> None:
        pass

    park_when_idle = run_errands_of_idle_loops = reclaim_dropped_on_all_loops = _nothing
    report_floor_not_restored = report_overdue = report_late_return = report_dropped = _nothing
    report_opened = report_connect_failed = report_gone = _nothing


class Simulation:
    """
    Runs a plan; the same seed gives the same callers.

    Args:
        plan: What to simulate.
        seed: Of all that is random: when callers come, where, and how long their statements are.

    Attributes:
        came, answered, failed: Callers so far; the rest of those that came are still about.
    """

    def __init__(self, plan: Plan, seed: int = 1) -> None:
        self.came = self.answered = self.failed = 0
        self._plan = plan
        self._clock = Clock()
        self._draws = random.Random(seed)
        self._latencies: list[float] = []
        self._counts_since = float("inf")
        self._is_over = False
        self.servers = [ModelServer(self._clock, plan.kind) for _ in range(plan.servers)]
        config = PoolConfig(
            min_size=plan.min_size, init_size=plan.min_size, max_size=plan.max_size, shed_after=plan.shed_after
        )
        backends = [self._backend(server) for server in self.servers]
        # For each process, its pools: one for each server, with the backend that their connections lead to.
        self._pools = [
            [(_Pool(self._clock, backend, config), backend) for backend in backends] for _ in range(plan.processes)
        ]
        self._proxies = [backend for backend in backends if isinstance(backend, _Proxy)]

    def _backend(self, server: ModelServer) -> _Backend:
        direct = _Direct(self._clock, server, self._plan.work, self._draws)
        size = self._plan.proxy_pool
        return direct if size is None else _Proxy(self._clock, direct, size)

    def run(self, seconds: float, warm_up_seconds: float = 0.0) -> dict[str, float]:
        """Let callers come, and return what came of it; answers of the warm-up do not count."""
        self._clock.after(0.0, self._come)
        self._counts_since = warm_up_seconds
        self._clock.run(warm_up_seconds + seconds)
        in_time = [latency for latency in self._latencies if latency <= self._plan.work.deadline_seconds]
        most = max(server.most_connections for server in self.servers)
        return {
            "offered_per_second": self._plan.rate,
            "answered_per_second": round(len(self._latencies) / seconds, 1),
            "in_time_per_second": round(len(in_time) / seconds, 1),
            "p99_ms": round(percentile(self._latencies, 99) * 1e3, 1) if self._latencies else 0.0,
            "connections_of_a_server": most,
            "memory_of_a_server_mib": round(most * CONNECTION_MIB, 1),
            "active_at_a_server": max(server.most_active for server in self.servers),
            "refused_connects": sum(server.refused for server in self.servers),
        }

    def drain(self) -> None:
        """Let no more callers come, and those that are about end."""
        self._is_over = True
        self._clock.run(self._clock.now + 3600.0)

    def lost(self) -> int:
        """Count what is nobody's after `drain`: permits, connections, and callers that were told nothing."""
        pools = [pool for several in self._pools for pool, _ in several] + [proxy.pool for proxy in self._proxies]
        direct = pools if not self._proxies else [proxy.pool for proxy in self._proxies]
        connections = sum(server.connections for server in self.servers)
        return (
            sum(pool.lost() for pool in pools)
            + abs(connections - sum(len(pool.shard.slots) for pool in direct))
            + abs(self.came - self.answered - self.failed)
        )

    def _come(self) -> None:
        """Have a caller come, and the next one after a random time."""
        if self._is_over:
            return
        self._clock.after(self._draws.expovariate(self._plan.rate), self._come)
        pools = self._draws.choice(self._pools)
        pool, backend = self._draws.choice(pools)
        self.came += 1
        work, began = self._plan.work, self._clock.now

        def served(slot: Slot[FakeSession]) -> None:
            backend.transact(lambda: self._clock.after(work.rest_seconds, lambda: ended(slot)))

        def ended(slot: Slot[FakeSession]) -> None:
            pool.give_back(slot)
            self.answered += 1
            if self._clock.now >= self._counts_since:
                self._latencies.append(self._clock.now - began)

        def failed() -> None:
            self.failed += 1

        pool.acquire(served, failed=failed, seconds=work.deadline_seconds)
