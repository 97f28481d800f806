"""
Which loop has which shard, and what the loops share: permits, settings that may change, counts of loops that have
ended.

Any thread may call everything here. Each loop's runner decides for that loop, on that loop. A runner of another loop is
sent a message instead, unless its loop is not running: then no other thread touches it, and this thread may act for it.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple

from loopaware_pool._core.config import IdleOrder
from loopaware_pool._core.leak_check import Ledger
from loopaware_pool._core.permits import Permits
from loopaware_pool._core.recent import Recent
from loopaware_pool._core.runner import ShardRunner
from loopaware_pool._core.slot import Slot, SlotState
from loopaware_pool._core.state import PoolState, SharedState
from loopaware_pool._platform import event_loops
from loopaware_pool.driver import S
from loopaware_pool.stats import ConnectionReport, Counters, PoolStats

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from loopaware_pool import errors
    from loopaware_pool._core.config import PoolConfig
    from loopaware_pool._core.permits import Claimant
    from loopaware_pool.driver import Driver

__all__ = ["Registry"]

# Each loop with waiting callers asks once a second, and all loops are told each time.
RECLAIM_PAUSE_SECONDS: Final = 0.5


class _Census(NamedTuple, Generic[S]):
    """
    The runners by their shards, and the counts of runners that have ended. Replaced as a whole, so that each is counted
    once.
    """

    runners: Mapping[Claimant, ShardRunner[S]]
    ended: Counters

    def with_one(self, runner: ShardRunner[S]) -> _Census[S]:
        return _Census({**self.runners, runner.shard: runner}, self.ended)

    def without(self, runner: ShardRunner[S]) -> _Census[S]:
        others = {shard: other for shard, other in self.runners.items() if other is not runner}
        return _Census(others, self.ended.plus(runner.shard.counters))


class Registry(Generic[S]):
    """
    The loops of one pool.

    Args:
        config: The pool's settings.
        driver: How connections are made.

    Attributes:
        recent_stats: The statistics as they were a moment ago, for errors.
    """

    def __init__(self, config: PoolConfig, driver: Driver[S]) -> None:
        self.shared = SharedState(config)
        self.driver = driver
        self.jitter = random.random
        self.state = PoolState.NEW
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Begin without a loop or a connection, at first and in a forked child."""
        self.permits = Permits(self.shared)
        # Guards changes to what is below. A signal handler or the garbage collector may interrupt the holder and come
        # back here, so it is reentrant. Readers take no lock.
        self._lock = threading.RLock()
        self._runners: dict[asyncio.AbstractEventLoop, ShardRunner[S]] = {}
        self._recent: ShardRunner[S] | None = None
        self._floor_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._census: _Census[S] = _Census({}, Counters())
        self.ledger = Ledger()
        self._reclaimed_at = float("-inf")
        self.recent_stats: Recent[PoolStats] = Recent(self.stats)

    # ---- routing ----

    def runner(self) -> ShardRunner[S]:
        """
        Return the running loop's runner, or make one.

        Raises:
            UnsupportedLoop: No loop is running, or one that cannot watch sockets.
        """
        recent = self._recent
        if recent is not None and recent.loop is event_loops.running():
            return recent
        loop, complaint = event_loops.supported_loop()
        if loop is None:
            name = self.shared.config.name
            raise self.driver.errors.unsupported_loop(f"pool {name!r}: {complaint}", pool=name)
        self._recent = runner = self._runners.get(loop) or self._make_runner(loop)
        return runner

    def _make_runner(self, loop: asyncio.AbstractEventLoop) -> ShardRunner[S]:
        self._bury_closed()
        for other in self.runners():
            self._forget_if_unneeded(other)
        with self._lock:
            if (known := self._runners.get(loop)) is not None:  # `_forget_if_unneeded` had it taken out for a moment
                return known
            runner = self._runners[loop] = ShardRunner(self, loop)
            self._census = self._census.with_one(runner)
        if self.state in (PoolState.CLOSING, PoolState.CLOSED):  # meanwhile, by another thread
            runner.shut(self.closed_error)
        elif loop in self._floor_loops:
            runner.keep_floor()
        return runner

    def _forget_if_unneeded(self, runner: ShardRunner[S]) -> None:
        """
        Forget a loop that is not running and has nothing of the pool's: it may never run again.

        It may begin to run at any moment, and a caller on it may find the runner. So the runner is taken out of the
        routing first, and checked again then: a caller that found it earlier runs now, or has left something on it.
        """
        if self.state is not PoolState.OPEN or not runner.is_unneeded():
            return
        with self._lock:
            self.loop_ending(runner.loop, runner.shard)
            if runner.is_unneeded():
                if runner.shard.keeps_floor:
                    self._floor_loops.add(runner.loop)
                runner.shard.is_open = False
                runner.dismiss()
                self.loop_ended(runner.shard)
            else:
                self._runners[runner.loop] = runner

    def _bury_closed(self) -> None:
        """Clean up after loops whose end was not noticed."""
        for runner in self.runners():
            if runner.loop.is_closed():
                runner.loop_closed()

    def runner_here(self) -> ShardRunner[S] | None:
        """Return the running loop's runner, if it has one."""
        loop = event_loops.running()
        return None if loop is None else self._runners.get(loop)

    def runners(self) -> list[ShardRunner[S]]:
        """List the runners of all loops. Takes no lock: making a list is one step."""
        return list(self._runners.values())

    def loop_ending(self, loop: asyncio.AbstractEventLoop, shard: Claimant) -> None:
        """Route no caller to *shard* any more."""
        with self._lock:
            runner = self._runners.get(loop)
            if runner is not None and runner.shard is shard:
                self._runners.pop(loop, None)  # a signal handler may have done it in between
            if self._recent is not None and self._recent.shard is shard:
                self._recent = None

    def loop_ended(self, shard: Claimant) -> None:
        """Take back the permits of a loop that has no connection left."""
        with self._lock:
            runner = self._census.runners.get(shard)
            if runner is None:
                return
            self._census = self._census.without(runner)
        self._forget(shard)

    def _forget(self, claimant: Claimant) -> None:
        for served in self.permits.forget(claimant):
            self.deliver_grant(served)

    # ---- telling ----

    def deliver_grant(self, claimant: Claimant) -> None:
        """Tell the loop of *claimant* that a permit is its own now."""
        runner = self._census.runners.get(claimant)
        if runner is None or runner.loop.is_closed():
            self._forget(claimant)
        else:
            runner.errands.add(runner.permit_granted)

    def deliver_request(self, donor: Claimant) -> None:
        """Ask the loop of *donor* for an idle connection's permit."""
        runner = self._census.runners.get(donor)
        if runner is not None:
            self._on(runner, lambda: runner.shard.permit_requested(monotonic()))
            self._forget_if_unneeded(runner)

    def reclaim_on_all_loops(self) -> None:
        """Have every loop look for leases that were dropped, unless another loop has had it done a moment ago."""
        now = monotonic()
        if now - self._reclaimed_at < RECLAIM_PAUSE_SECONDS:
            return
        self._reclaimed_at = now
        for runner in self.runners():
            self._on(runner, runner.housekeeper.reclaim_dropped)

    def run_errands_of_idle_loops(self) -> None:
        """Do what loops were asked to do and have stopped before they did it."""
        for runner in self.runners():
            runner.errands.run_if_idle()

    def _on(self, runner: ShardRunner[S], action: Callable[[], object]) -> None:
        """Act on a runner: at once if its loop runs here or not at all, else on its loop."""
        if runner.loop is event_loops.running():
            runner.do(action)
        else:
            runner.errands.add(functools.partial(runner.do, action))

    def _sweep(self, runner: ShardRunner[S], sweep: Callable[[float], None]) -> None:
        self._on(runner, lambda: sweep(monotonic()))

    # ---- switches ----

    def suspend(self) -> None:
        """Serve no caller until `resume`. Callers queue; leases go on."""
        self.shared.is_suspended = True

    def resume(self) -> None:
        """Serve the callers that queued, on every loop."""
        self.shared.is_suspended = False
        for runner in self.runners():
            self._sweep(runner, runner.shard.resume)

    def expire(self) -> None:
        """Have every connection that is open now replaced when it is next idle."""
        with self._lock:  # two threads that read the same number would bring back a generation that has ended
            self.shared.generation += 1
        for runner in self.runners():
            self._on(runner, runner.shard.expired)

    def drain(self) -> None:
        """Replace every connection that is open now: idle ones at once, the others when they come back."""
        self.expire()
        for runner in self.runners():
            self._sweep(runner, runner.housekeeper.sweep)

    def resize(self, min_size: int, max_size: int) -> None:
        """
        Keep, and allow, another number of connections. Surplus connections close when they have been idle for too long.
        """
        self.reconfigure(min_size=min_size, init_size=min_size, max_size=max_size)

    def reconfigure(self, **settings: Any) -> None:
        """
        Use other settings from now on. From any thread.

        Args:
            **settings: Those of `PoolConfig` that are read each time they are needed, the sizes included.

        Raises:
            ValueError, TypeError: One makes no sense; nothing has changed.
        """
        with self._lock:  # a runner that is being made has them from the start, or is in the list
            self.shared.config = dataclasses.replace(self.shared.config, **settings)
            runners = self.runners()
        for served in self.permits.serve_claims():
            self.deliver_grant(served)
        for runner in runners:
            self._sweep(runner, runner.shard.settings_changed)

    async def check_idle(self) -> None:
        """
        Make a round trip on every idle connection, and open what `min_size` lacks, if the pool is open.

        Other loops do the same on their own; this does not wait for them.

        Cancellation: ends the waiting.
        """
        if self.state is not PoolState.OPEN:
            return
        here = self.runner()
        for runner in self.runners():
            self._sweep(runner, runner.shard.refill)
            if runner is not here:
                self._on(runner, runner.ping_all)
        await here.check_idle()

    def for_each_session(self, action: Callable[[S], object]) -> None:
        """Act on every session, on its own loop."""
        for runner in self.runners():
            self._act_on_sessions(runner, action)

    def _act_on_sessions(self, runner: ShardRunner[S], action: Callable[[S], object]) -> None:
        def act() -> None:
            for slot in list(runner.shard.slots):
                if slot.state not in (SlotState.CONNECTING, SlotState.CLOSING):
                    action(slot.session)

        self._on(runner, act)

    # ---- counts ----

    def live_size(self) -> int:
        """Count the connections on all loops that are neither being opened nor closed."""
        return sum(runner.shard.size for runner in self.runners())

    def size(self) -> int:
        """Count the connections on all loops, connecting ones included."""
        return sum(len(runner.shard.slots) - len(runner.shard.closing) for runner in self.runners())

    def idle_size(self) -> int:
        """Count the idle connections on all loops."""
        recent = self._recent
        if recent is not None and len(self._runners) == 1:
            return len(recent.shard.idle)
        return sum(len(runner.shard.idle) for runner in self.runners())

    def waiting(self) -> int:
        """Count the callers in the queues of all loops."""
        return sum([len(runner.shard.waiters) for runner in self.runners()])

    def slots(self, *without: SlotState) -> list[Slot[S]]:
        """List the slots of all loops, except those in the given states."""
        return [slot for runner in self.runners() for slot in list(runner.shard.slots) if slot.state not in without]

    def stats(self) -> PoolStats:
        """Count everything. From any thread, and from a signal handler."""
        (runners, ended), config = self._census, self.shared.config
        return PoolStats(
            name=config.name,
            min_size=config.min_size,
            max_size=config.max_size,
            loops=tuple(runner.shard.stats(runner.label) for runner in runners.values()),
            ended=ended,
            state=self.state.value,
            process_fds=self.ledger.process_fds,
            max_idle_size=0 if config.idle_order is IdleOrder.NONE else min(config.max_idle_size, config.max_size),
        )

    def counts(self) -> dict[str, Any]:
        """Count connections and callers on all loops, as fields for the log. From any thread."""
        max_size = self.shared.config.max_size
        return {
            "pool_size": self.size(),
            "pool_idle": self.idle_size(),
            "pool_waiting": self.waiting(),
            "pool_max_size": max_size,
        }

    def count_on_from(self, counters: Counters) -> None:
        """Count on from what a pool has counted whose place this one takes."""
        with self._lock:
            self._census = self._census._replace(ended=self._census.ended.plus(counters))

    def fd_report(self) -> list[ConnectionReport]:
        """Describe every connection on every loop."""
        return [row for runner in self.runners() for row in runner.report()]

    # ---- the end ----

    def loop_emptied(self) -> None:
        """Note that a loop may have no connection left."""

    def closed_error(self) -> errors.PoolClosed:
        """Make the error for a caller that comes when the pool is closed."""
        return self._closed(self.driver.errors.closed_text)

    def _closed(self, text: str) -> errors.PoolClosed:
        name = self.shared.config.name
        return self.driver.errors.closed(text.format(name), pool=name)
