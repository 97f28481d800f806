"""
Which loop has which shard, and what they share: permits, settings that may change, what has ended.

Everything here may be called from any thread. What is decided per loop is decided by that loop's runner, on that loop;
a runner of another loop is told, never touched, unless its loop stands still and nobody else can be touching it.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from loopaware_pool._core.leak_check import Ledger
from loopaware_pool._core.permits import Budget
from loopaware_pool._core.runner import Keeper
from loopaware_pool._core.slot import Slot, SlotState
from loopaware_pool._core.terms import CoreState, Phase, Terms
from loopaware_pool._platform import event_loops
from loopaware_pool.stats import ConnectionReport, Counters, PoolStats

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from loopaware_pool import errors
    from loopaware_pool._core.config import PoolConfig
    from loopaware_pool._core.permits import Claimant
    from loopaware_pool.driver import Driver, Session

__all__ = ["Registry"]


class _Census(NamedTuple):
    """The keepers by their shards, and what those have counted that have ended. Replaced as a whole: each is in one."""

    keepers: Mapping[Claimant, Keeper]
    ended: Counters

    def with_one(self, keeper: Keeper) -> _Census:
        return _Census({**self.keepers, keeper.shard: keeper}, self.ended)

    def without(self, keeper: Keeper) -> _Census:
        others = {shard: other for shard, other in self.keepers.items() if other is not keeper}
        return _Census(others, self.ended.plus(keeper.shard.counters))


class Registry:
    """
    The loops of one pool.

    Args:
        config: The pool's settings.
        driver: How connections are made.
    """

    def __init__(self, config: PoolConfig, driver: Driver) -> None:
        self.config = config
        self.driver = driver
        self.terms = Terms(config.min_size)
        self.jitter = random.random
        self.state = CoreState.NEW
        self._suspended = False
        self._start_afresh(config.max_size)

    def _start_afresh(self, max_size: int) -> None:
        """Have no loop and no connection, at first and in a forked child."""
        self.budget = Budget(max_size, self.config.patience)
        # For those who change what is below. A signal handler, or the collector, may interrupt its holder and come back
        # here, so it can be taken again; and who only looks takes none.
        self._lock = threading.RLock()
        self._keepers: dict[asyncio.AbstractEventLoop, Keeper] = {}
        self._recent: Keeper | None = None
        self._floor_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._census = _Census({}, Counters())
        self.ledger = Ledger()

    # ---- routing ----

    def keeper(self) -> Keeper:
        """
        Find the running loop's part of the pool, or make it.

        Raises:
            UnsupportedLoop: No loop is running, or one that cannot watch sockets.
        """
        recent = self._recent
        if recent is not None and recent.loop is event_loops.running():
            return recent
        loop, complaint = event_loops.supported_loop()
        if loop is None:
            raise self.driver.errors.unsupported_loop(f"pool {self.config.name!r}: {complaint}", pool=self.config.name)
        self._recent = keeper = self._keepers.get(loop) or self._make_keeper(loop)
        return keeper

    def _make_keeper(self, loop: asyncio.AbstractEventLoop) -> Keeper:
        self._bury_closed()
        for other in self.keepers():
            self._forget_if_unneeded(other)
        with self._lock:
            if (known := self._keepers.get(loop)) is not None:  # it was only looked at: see below
                return known
            keeper = self._keepers[loop] = Keeper(self, loop)
            self._census = self._census.with_one(keeper)
        if self._suspended:
            keeper.shard.phase = Phase.SUSPENDED
        if self.state in (CoreState.CLOSING, CoreState.CLOSED):  # meanwhile, by another thread
            keeper.shut(self.closed_error)
        elif loop in self._floor_loops:
            keeper.keep_floor()
        return keeper

    def _forget_if_unneeded(self, keeper: Keeper) -> None:
        """
        Let go of a loop that stands still with nothing of the pool's on it: whoever made it may have forgotten it.

        It may begin to run at any moment, and its caller find the keeper. So the way to it is barred first, and then it
        is looked at: a caller who has come that way before has left something there, or runs.
        """
        if self.state is not CoreState.OPEN or not keeper.is_unneeded():
            return
        with self._lock:
            self.loop_ending(keeper.loop, keeper.shard)
            if keeper.is_unneeded():
                if keeper.shard.keeps_floor:
                    self._floor_loops.add(keeper.loop)
                keeper.shard.phase = Phase.CLOSED
                keeper.dismiss()
                self.loop_ended(keeper.shard)
            else:
                self._keepers[keeper.loop] = keeper

    def _bury_closed(self) -> None:
        """Clear up after loops whose end went unnoticed."""
        for keeper in self.keepers():
            if keeper.loop.is_closed():
                keeper.loop_closed()

    def keeper_here(self) -> Keeper | None:
        """Find the running loop's part of the pool, if it has one."""
        loop = event_loops.running()
        return None if loop is None else self._keepers.get(loop)

    def keepers(self) -> list[Keeper]:
        """List the keepers of all loops. Takes no lock: making a list is one step."""
        return list(self._keepers.values())

    def loop_ending(self, loop: asyncio.AbstractEventLoop, shard: Claimant) -> None:
        """Route nobody to *shard* any more."""
        with self._lock:
            keeper = self._keepers.get(loop)
            if keeper is not None and keeper.shard is shard:
                self._keepers.pop(loop, None)  # a signal handler may have come in between, and done it
            if self._recent is not None and self._recent.shard is shard:
                self._recent = None

    def loop_ended(self, shard: Claimant) -> None:
        """Take back the permits of a loop that has no connection left."""
        with self._lock:
            keeper = self._census.keepers.get(shard)
            if keeper is None:
                return
            self._census = self._census.without(keeper)
        self._forget(shard)

    def _forget(self, claimant: Claimant) -> None:
        for served in self.budget.forget(claimant):
            self.tell(served)

    # ---- telling ----

    def tell(self, claimant: Claimant) -> None:
        """Tell the loop of *claimant* that a permit is its own now."""
        keeper = self._census.keepers.get(claimant)
        if keeper is None or keeper.loop.is_closed():
            self._forget(claimant)
        else:
            keeper.errands.add(keeper.granted)

    def ask(self, donor: Claimant) -> None:
        """Ask the loop of *donor* for an idle connection's permit."""
        keeper = self._census.keepers.get(donor)
        if keeper is not None:
            self._on(keeper, lambda: keeper.shard.asked(monotonic()))
            self._forget_if_unneeded(keeper)

    def look_for_dropped(self) -> None:
        """Have every loop look for leases that were dropped."""
        for keeper in self.keepers():
            self._on(keeper, keeper.housekeeper.reclaim_dropped)

    def run_errands_of_idle_loops(self) -> None:
        """Do, for loops that have stopped, what they were told and have not heard."""
        for keeper in self.keepers():
            keeper.errands.run_if_idle()

    def _on(self, keeper: Keeper, action: Callable[[], object]) -> None:
        """Act on a keeper: here if its loop runs here or stands still, else on its loop."""
        if keeper.loop is event_loops.running():
            keeper.do(action)
        else:
            keeper.errands.add(functools.partial(keeper.do, action))

    def _sweep(self, keeper: Keeper, sweep: Callable[[float], None]) -> None:
        self._on(keeper, lambda: sweep(monotonic()))

    # ---- switches ----

    def suspend(self) -> None:
        """Serve nobody until `resume`; callers queue, leases go on."""
        self._suspended = True
        for keeper in self.keepers():
            if keeper.shard.phase is Phase.OPEN:
                keeper.shard.phase = Phase.SUSPENDED

    def resume(self) -> None:
        """Serve those who queued, on every loop."""
        self._suspended = False
        for keeper in self.keepers():
            self._sweep(keeper, keeper.shard.resume)

    def expire(self) -> None:
        """Have every connection that is open now replaced when it is next idle."""
        self.terms.generation += 1
        for keeper in self.keepers():
            self._on(keeper, keeper.shard.expired)

    def drain(self) -> None:
        """Have every connection that is open now replaced: the idle ones at once, the others when they come back."""
        self.expire()
        for keeper in self.keepers():
            self._sweep(keeper, keeper.housekeeper.sweep)

    def resize(self, min_size: int, max_size: int) -> None:
        """Keep, and allow, another number of connections. What is too much goes as it would be idle for too long."""
        self.terms.min_size = min_size
        for served in self.budget.resize(max_size):
            self.tell(served)
        for keeper in self.keepers():
            self._sweep(keeper, keeper.shard.resized)

    def reconfigure(self, **settings: Any) -> None:
        """
        Go by other settings from now on; other loops do as soon as they hear of it. From any thread.

        Args:
            **settings: Of `PoolConfig`'s, such as are read each time they are needed: sizes are for `resize`.

        Raises:
            ValueError, TypeError: One makes no sense; nothing has changed.
        """
        with self._lock:  # a keeper that is being made has these from the start, or is among those that are told
            self.config = dataclasses.replace(self.config, **settings)
            keepers = self.keepers()
        for keeper in keepers:
            self._on(keeper, functools.partial(self._reconfigure, keeper))

    def _reconfigure(self, keeper: Keeper) -> None:
        keeper.reconfigured(self.config)  # today's: another thread may have set more meanwhile

    async def check_idle(self) -> None:
        """
        Make a round trip on every idle connection, and open what the floor lacks, if the pool is open.

        Other loops do so on their own; it is not waited for.

        Cancellation: ends the waiting.
        """
        if self.state is not CoreState.OPEN:
            return
        here = self.keeper()
        for keeper in self.keepers():
            self._sweep(keeper, keeper.shard.refill)
            if keeper is not here:
                self._on(keeper, keeper.housekeeper.ping_all)
        await here.check_idle()

    def for_each_session(self, action: Callable[[Session], object]) -> None:
        """Act on every session, on its own loop."""
        for keeper in self.keepers():
            self._act_on_sessions(keeper, action)

    def _act_on_sessions(self, keeper: Keeper, action: Callable[[Session], object]) -> None:
        def act() -> None:
            for slot in list(keeper.shard.slots):
                if slot.state not in (SlotState.CONNECTING, SlotState.CLOSING):
                    action(slot.session)

        self._on(keeper, act)

    # ---- counts ----

    def live_size(self) -> int:
        """Count the connections on all loops that are neither being opened nor closed."""
        return sum(keeper.shard.size for keeper in self.keepers())

    def size(self) -> int:
        """Count the connections on all loops, connecting ones included."""
        return self.live_size() + sum(len(keeper.shard.connecting) for keeper in self.keepers())

    def slots(self, *without: SlotState) -> list[Slot]:
        """List the slots of all loops, those in some states left out."""
        return [slot for keeper in self.keepers() for slot in list(keeper.shard.slots) if slot.state not in without]

    def stats(self) -> PoolStats:
        """Count everything. From any thread, and from a signal handler."""
        keepers, ended = self._census
        return PoolStats(
            name=self.config.name,
            min_size=self.terms.min_size,
            max_size=self.budget.max_size,
            loops=tuple(keeper.shard.stats(keeper.label) for keeper in keepers.values()),
            ended=ended,
            state=self.state.value,
            process_fds=self.ledger.process_fds,
        )

    def fd_report(self) -> list[ConnectionReport]:
        """Describe every connection on every loop."""
        return [row for keeper in self.keepers() for row in keeper.report()]

    # ---- the end ----

    def keeper_emptied(self) -> None:
        """Hear that a loop may have no connection left."""

    def closed_error(self) -> errors.PoolClosed:
        """Make the error of a caller that comes when the pool is closed."""
        return self._closed(self.driver.errors.closed_text)

    def _closed(self, text: str) -> errors.PoolClosed:
        return self.driver.errors.closed(text.format(self.config.name), pool=self.config.name)
