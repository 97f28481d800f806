"""
The pool that all flavours share: finds the running loop's keeper, opens, closes, and survives loops and forks.

Everything here may be called from any thread. What is decided per loop is decided by that loop's keeper, on that loop;
a keeper of another loop is told, never touched, unless its loop stands still and nobody else can be touching it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
import threading
import warnings
import weakref
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loopaware_pool._core.acquire import Queue
from loopaware_pool._core.leak_check import Ledger
from loopaware_pool._core.permits import Budget
from loopaware_pool._core.runner import Keeper
from loopaware_pool._core.slot import Slot, SlotState
from loopaware_pool._core.terms import Phase, Terms
from loopaware_pool._platform import event_loops, frames
from loopaware_pool.stats import ConnectionReport, Counters, PoolStats

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loopaware_pool import errors
    from loopaware_pool._core.config import PoolConfig
    from loopaware_pool._core.permits import Claimant
    from loopaware_pool.driver import Driver, Session

__all__ = ["Core", "CoreState"]

CLOSE_WARNING_SECONDS: Final = 60.0
# How often `close()` looks for loops that have stopped before they heard of it.
IDLE_LOOP_LOOK_SECONDS: Final = 0.5


class CoreState(Enum):
    """Where a pool is in its life."""

    NEW = "new"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class _Census(NamedTuple):
    """The keepers by their shards, and what those have counted that have ended. Replaced as a whole: each is in one."""

    keepers: Mapping[Claimant, Keeper]
    ended: Counters

    def with_one(self, keeper: Keeper) -> _Census:
        return _Census({**self.keepers, keeper.shard: keeper}, self.ended)

    def without(self, keeper: Keeper) -> _Census:
        others = {shard: other for shard, other in self.keepers.items() if other is not keeper}
        return _Census(others, self.ended.plus(keeper.shard.counters))


class Core:
    """
    A pool without a face.

    Args:
        config: Its settings.
        driver: How connections are made.
        face: The object callers know, whose collection drops the pool.
    """

    def __init__(self, config: PoolConfig, driver: Driver, face: object) -> None:
        self.config = config
        self.driver = driver
        self.max_size = config.max_size
        self.terms = Terms(config.min_size)
        self.jitter = random.random
        self.state = CoreState.NEW
        self._suspended = False
        self._opener: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self.queue = Queue(config, driver, self.keepers, self.stats, self.closed_error)
        self._begin()
        event_loops.call_in_child(self)
        weakref.finalize(face, _dropped, weakref.ref(self)).atexit = False

    def _begin(self) -> None:
        """Start without connections, at first and in a forked child."""
        self.budget = Budget(self.max_size, self.config.patience)
        # For those who change what is below. A signal handler, or the collector, may interrupt its holder and come back
        # here, so it can be taken again; and who only looks takes none.
        self._lock = threading.RLock()
        self._keepers: dict[asyncio.AbstractEventLoop, Keeper] = {}
        self._recent: Keeper | None = None
        self._floor_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._census = _Census({}, Counters())
        self.ledger = Ledger()
        self._closers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

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
            self.loop_ending(keeper)
            if keeper.is_unneeded():
                if keeper.shard.keeps_floor:
                    self._floor_loops.add(keeper.loop)
                keeper.shard.phase = Phase.CLOSED
                keeper.dismiss()
                self.loop_ended(keeper)
            else:
                self._keepers[keeper.loop] = keeper

    def keeper_here(self) -> Keeper | None:
        """Find the running loop's part of the pool, if it has one."""
        loop = event_loops.running()
        return None if loop is None else self._keepers.get(loop)

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
            self._on(keeper, keeper.shard.upkeep.reclaim_dropped)

    def _on(self, keeper: Keeper, action: Callable[[], object]) -> None:
        """Act on a keeper: here if its loop runs here or stands still, else on its loop."""
        if keeper.loop is event_loops.running():
            keeper.do(action)
        else:
            keeper.errands.add(functools.partial(keeper.do, action))

    def run_errands_of_idle_loops(self) -> None:
        """Do, for loops that have stopped, what they were told and have not heard."""
        for keeper in self.keepers():
            keeper.errands.run_if_idle()

    def keepers(self) -> list[Keeper]:
        """List the keepers of all loops. Takes no lock: making a list is one step."""
        return list(self._keepers.values())

    # ---- opening ----

    async def open(self) -> None:
        """
        Introduce the running loop: open `init_size` connections on it, less those open elsewhere.

        The first connects alone, so that what is wrong shows at once. If the pool was not open before and this fails,
        it is closed and nothing is left.

        Raises:
            Exception: What connecting failed with.

        Cancellation: as a failure.
        """
        keeper = self.keeper()
        if keeper.shard.keeps_floor:
            return
        first_loop = self.state is CoreState.NEW
        if first_loop:
            self.state = CoreState.OPENING
            self._opener = weakref.ref(keeper.loop)
        keeper.callers += 1
        try:
            missing = self.config.init_size - self.size()
            if missing > 0 and await keeper.open_one() and missing > 1:
                async with asyncio.TaskGroup() as group:
                    for _ in range(missing - 1):
                        group.create_task(keeper.open_one())
        except BaseException as error:
            if first_loop:
                self.terminate()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise
        finally:
            keeper.callers -= 1
        if self.state is CoreState.OPENING:
            self.state = CoreState.OPEN
        keeper.keep_floor()

    def start(self) -> None:
        """
        Introduce the running loop: serve callers at once, and open `min_size` connections meanwhile.

        Raises:
            UnsupportedLoop: No loop is running, or one that cannot watch sockets.
        """
        keeper = self.keeper()
        if self.state is CoreState.NEW:
            self.state = CoreState.OPEN
        keeper.keep_floor()

    def is_opening_here(self) -> bool:
        """Whether the running loop is the one that is opening the pool."""
        return self._opener is not None and self._opener() is event_loops.running()

    # ---- the end ----

    async def close(self) -> None:
        """
        Close the pool on every loop: tell those who wait, wait for leases, say goodbye to the server.

        Leases are waited for as long as `close_timeout` allows; then they are terminated, and a warning is logged.

        Cancellation: terminates everything at once.
        """
        if self.state is CoreState.CLOSED:
            return
        self.state = CoreState.CLOSING
        loop = asyncio.get_running_loop()
        emptied: asyncio.Future[None] = loop.create_future()
        closer = (loop, emptied)
        self._closers.append(closer)
        timers = [loop.call_later(CLOSE_WARNING_SECONDS, self._warn_of_long_close)]
        if self.config.close_timeout is not None:
            timers.append(loop.call_later(self.config.close_timeout, self._cut_short))
        try:
            for keeper in self.keepers():
                self._on(keeper, functools.partial(keeper.shut, self.closing_error))
            self.keeper_emptied()
            while not emptied.done():
                self._close_where_nobody_is()
                await asyncio.wait([emptied], timeout=IDLE_LOOP_LOOK_SECONDS)
        except BaseException:
            self.terminate()
            raise
        finally:
            self._closers.remove(closer)
            for timer in timers:
                timer.cancel()
        self._finish()

    def _close_where_nobody_is(self) -> None:
        """Close what is unused on loops that have stopped since they heard of the end, or before they did."""
        for keeper in self.keepers():
            if event_loops.is_idle(keeper.loop):
                self._on(keeper, keeper.cut_unused)

    async def close_unused(self, timeout: float | None) -> None:
        """
        Close the pool on every loop at once, without waiting for leases: their connections close when they come back.

        Args:
            timeout: Seconds for other loops to take notice, and for connections that are being opened, reset or
                closed; then those are cut. None gives them the time it takes.

        Cancellation: ends the waiting. The pool is closed.
        """
        if self.state is CoreState.CLOSED:
            return
        self.state = CoreState.CLOSED
        loop = asyncio.get_running_loop()
        keepers = self.keepers()
        pending = [asyncio.ensure_future(self._shut_and_wait(keeper, loop, timeout)) for keeper in keepers]
        if pending:
            try:
                await asyncio.wait(pending, timeout=timeout)
            finally:
                for waiting in pending:
                    waiting.cancel()
                for keeper in keepers:
                    self._on(keeper, keeper.cut_unused)
        self.keeper_emptied()

    def terminate(self) -> None:
        """
        Close every connection on every loop now, lent ones included. From any thread, and without a loop.

        Called by what has interrupted the pool in the middle of a decision, as a signal handler or a listener may, it
        waits for the end of that: connections on this loop are closed in its next iteration.
        """
        if self.state is CoreState.CLOSED:
            return
        self.state = CoreState.CLOSED
        if frames.has_interrupted_a_decision():
            for keeper in self.keepers():
                keeper.errands.leave(functools.partial(self._terminate, keeper))
        else:
            for keeper in self.keepers():
                self._terminate(keeper)
            self._finish()

    async def _shut_and_wait(self, keeper: Keeper, here: asyncio.AbstractEventLoop, timeout: float | None) -> None:
        """Shut a keeper; wait until nothing is left but leases, as far as that can be seen from this loop."""
        if keeper.loop is here:
            keeper.shut(self.closed_error)
            await keeper.until(keeper.is_unused, timeout)
        else:
            shut: asyncio.Future[None] = here.create_future()
            self._on(keeper, lambda: self._shut_for(keeper, here, shut))
            await shut

    def _shut_for(self, keeper: Keeper, here: asyncio.AbstractEventLoop, shut: asyncio.Future[None]) -> None:
        keeper.shut(self.closed_error)
        event_loops.post(here, _set, shut)

    def _terminate(self, keeper: Keeper) -> None:
        end = keeper.cut_all if event_loops.is_idle(keeper.loop) else keeper.terminate
        self._on(keeper, lambda: end(self.closed_error))

    def _cut_short(self) -> None:
        held = "; ".join(str(lease) for keeper in self.keepers() for lease in keeper.leases()) or "nobody"
        self.driver.logger.warning(
            "%s: close() ends after %s s, close_timeout; connections still held by: %s",
            self.config.name,
            self.config.close_timeout,
            held,
        )
        for keeper in self.keepers():
            self._terminate(keeper)

    def _finish(self) -> None:
        self.state = CoreState.CLOSED
        self.keeper_emptied()

    def keeper_emptied(self) -> None:
        """Let go of loops that have no connection left, if the pool is closed; wake those who wait in `close()`."""
        if self.state is CoreState.CLOSED:
            for keeper in self.keepers():
                if not keeper.shard.slots:
                    self._on(keeper, functools.partial(self._let_go, keeper))
        if self._closers and not any(keeper.shard.slots for keeper in self.keepers()):
            for loop, emptied in self._closers:
                event_loops.post(loop, _set, emptied)

    def _let_go(self, keeper: Keeper) -> None:
        if not keeper.shard.slots:  # it may have begun to connect meanwhile
            keeper.dismiss()
            self.loop_ending(keeper)
            self.loop_ended(keeper)

    def loop_ending(self, keeper: Keeper) -> None:
        """Route nobody to *keeper* any more."""
        with self._lock:
            if self._keepers.get(keeper.loop) is keeper:
                self._keepers.pop(keeper.loop, None)  # a signal handler may have come in between, and done it
            if self._recent is keeper:
                self._recent = None

    def loop_ended(self, keeper: Keeper) -> None:
        """Take back the permits of a loop that has no connection left."""
        with self._lock:
            if keeper.shard not in self._census.keepers:
                return
            self._census = self._census.without(keeper)
        self._forget(keeper.shard)
        if self._closers:
            self.keeper_emptied()

    def forked(self) -> None:
        """Start afresh in a child process. The parent's connections, loops and locks are not touched."""
        keepers = list(self._keepers.values())
        self._begin()
        if self.state is CoreState.OPENING:
            self.state = CoreState.NEW
        elif self.state is CoreState.CLOSING:
            self.state = CoreState.CLOSED
        self.driver.forked()
        for keeper in keepers:
            keeper.forked()

    def _forget(self, claimant: Claimant) -> None:
        for served in self.budget.forget(claimant):
            self.tell(served)

    def _bury_closed(self) -> None:
        """Clear up after loops whose end went unnoticed."""
        for keeper in self.keepers():
            if keeper.loop.is_closed():
                keeper.loop_closed()

    def _warn_of_long_close(self) -> None:
        self.driver.logger.warning(
            "Pool.close() is taking over 60 seconds to complete. Check if you have any unreleased connections left. "
            "Use asyncio.wait_for() to set a timeout for Pool.close()."
        )

    # ---- switches and counts ----

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

    def resize(self, min_size: int, max_size: int) -> None:
        """Keep, and allow, another number of connections. What is too much goes as it would be idle for too long."""
        self.terms.min_size = min_size
        self.max_size = max_size
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
            self.config = self.queue.config = dataclasses.replace(self.config, **settings)
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
            self._sweep(keeper, keeper.shard.upkeep.refill)
            if keeper is not here:
                self._on(keeper, keeper.shard.upkeep.ping_all)
        await here.check_idle()

    def drain(self) -> None:
        """Have every connection that is open now replaced: the idle ones at once, the others when they come back."""
        self.expire()
        for keeper in self.keepers():
            self._sweep(keeper, keeper.shard.sweep)

    def _sweep(self, keeper: Keeper, sweep: Callable[[float], None]) -> None:
        self._on(keeper, lambda: sweep(monotonic()))

    def live_size(self) -> int:
        """Count the connections on all loops that are neither being opened nor closed."""
        return sum(keeper.shard.size for keeper in self.keepers())

    def size(self) -> int:
        """Count the connections on all loops, connecting ones included."""
        return self.live_size() + sum(len(keeper.shard.connecting) for keeper in self.keepers())

    def slots(self, *without: SlotState) -> list[Slot]:
        """List the slots of all loops, those in some states left out."""
        return [slot for keeper in self.keepers() for slot in list(keeper.shard.slots) if slot.state not in without]

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

    def closing_error(self) -> errors.PoolClosed:
        """Make the error of a caller that comes, or waits, while the pool closes."""
        return self._closed(self.driver.errors.closing_text)

    def closed_error(self) -> errors.PoolClosed:
        """Make the error of a caller that comes after that."""
        return self._closed(self.driver.errors.closed_text)

    def _closed(self, text: str) -> errors.PoolClosed:
        return self.driver.errors.closed(text.format(self.config.name), pool=self.config.name)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _dropped(dead_or_alive: weakref.ref[Core]) -> None:
    """
    End a pool whose last user has let go of it, unless the collector is quicker.

    Its loops hold the core weakly: a collector that runs first takes connections and all, and the driver warns of
    them. Without one, this closes them at the next iteration.
    """
    if (core := dead_or_alive()) is not None and core.state not in (CoreState.NEW, CoreState.CLOSED):
        for keeper in core.keepers():
            event_loops.post(keeper.loop, _end_dropped, dead_or_alive)


def _end_dropped(dead_or_alive: weakref.ref[Core]) -> None:
    if (core := dead_or_alive()) is not None and core.state is not CoreState.CLOSED:
        core.terminate()
        warnings.warn(f"unclosed pool {core.config.name!r}", ResourceWarning, source=core, stacklevel=1)
