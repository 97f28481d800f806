"""
Does on one loop what its shard decides: connects, resets, closes, parks, and keeps the timer.

The shard queues here what it has decided. Whoever calls the shard calls `act` next, which does it. The shard is
consistent by then, and may be called by anything that this leads to, a listener's `pool.terminate()` included.

Every task here belongs to the pool, not to the caller that caused it: a caller's cancellation does not reach it. A task
that is cancelled, as the end of the loop cancels all, gives its connection up; it never loses it.

Nothing outside refers to a runner strongly, neither the loop's timer nor its shutdown hook. So a pool that is dropped
can be collected.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
import weakref
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol

from loopaware_pool._core.deadlines import Deadlines
from loopaware_pool._core.housekeeping import Housekeeper
from loopaware_pool._core.leak_check import LeakCheck
from loopaware_pool._core.leases import lease_of, leases
from loopaware_pool._core.parking import Parking
from loopaware_pool._core.recent import Recent
from loopaware_pool._core.reporter import Reporter, logger
from loopaware_pool._core.shard import Shard
from loopaware_pool._core.slot import Slot, SlotState
from loopaware_pool._core.sqlstate import BECAME_READ_ONLY
from loopaware_pool._core.timeouts import within
from loopaware_pool._platform import event_loops
from loopaware_pool._platform.frames import has_interrupted_a_decision
from loopaware_pool._platform.log_fields import fields
from loopaware_pool._platform.sockets import peer_address
from loopaware_pool.driver import HookFailed, Liveness, S

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from loopaware_pool._core.leak_check import Ledger
    from loopaware_pool._core.permits import Claimant, Permits
    from loopaware_pool._core.state import SharedState
    from loopaware_pool.driver import Driver
    from loopaware_pool.errors import ErrorFamily
    from loopaware_pool.stats import ConnectionReport, LeaseInfo

__all__ = ["SessionListener", "ShardRunner"]

_IDLE, _RESETTING = SlotState.IDLE, SlotState.RESETTING  # bound once: see shard.py
_IN_TRANSIT: Final = (SlotState.RESETTING, SlotState.CLOSING)

# How long a loop that shuts down waits for callers to return their connections, and for polite closes.
LEASE_GRACE_SECONDS: Final = 0.25
FAREWELL_SECONDS: Final = 1.0
# The longest that a polite close, or a ping, may take.
GOODBYE_SECONDS: Final = 10.0
# How long a connect may go on that no caller waits for any more, where no timeout of the pool's ends it.
ABANDONED_CONNECT_SECONDS: Final = 1.0
# After so many iterations of the loop a readable socket has been read.
READ_ITERATIONS: Final = 3


class PoolOfLoops(Protocol[S]):
    """
    The part of the registry that a runner uses.

    Attributes:
        shared: What the loops share, the pool's settings among it.
        driver: How connections are made.
        permits: The pool's permits.
        ledger: Sockets whose loops ended before they were seen gone.
        jitter: Draws a number between 0 and 1, for lifetimes.
    """

    shared: SharedState
    driver: Driver[S]
    permits: Permits
    ledger: Ledger
    jitter: Callable[[], float]

    def size(self) -> int:
        """Count the connections on all loops, connecting ones included."""

    def idle_size(self) -> int:
        """Count the idle connections on all loops."""

    def counts(self) -> dict[str, Any]:
        """Count connections and callers on all loops, as fields for the log."""

    def deliver_grant(self, claimant: Claimant) -> None:
        """Tell the loop of *claimant* that a permit is its own now."""

    def deliver_request(self, donor: Claimant) -> None:
        """Ask the loop of *donor* for an idle connection's permit."""

    def run_errands_of_idle_loops(self) -> None:
        """Do what loops were asked to do and have stopped before they did it."""

    def reclaim_on_all_loops(self) -> None:
        """Have every loop look for leases that were dropped."""

    def drain(self) -> None:
        """Have every connection that is open now replaced."""

    def loop_emptied(self) -> None:
        """Note that a loop may have no connection left."""

    def loop_ending(self, loop: asyncio.AbstractEventLoop, shard: Claimant) -> None:
        """Route no caller to *shard* any more."""

    def loop_ended(self, shard: Claimant) -> None:
        """Take back the permits of a loop that has no connection left."""


class ShardRunner(Generic[S]):
    """
    One loop's part of a pool: a shard, and what acts for it.

    Args:
        core: The pool.
        loop: The running loop.

    Attributes:
        callers: How many callers are in the middle of something here, whatever they wait for.
        changes: Wakes tasks that wait for connections to change on this loop.
        decided: What the shard has decided and `act` has not done yet; otherwise empty.
        hasty_callers: How many of the queued callers have a timeout of 0 or less.
        recent_leases: Who held connections a moment ago, for errors.
    """

    def __init__(self, core: PoolOfLoops[S], loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.label: str = event_loops.label(loop)
        counts = functools.partial(_counts, weakref.ref(core))
        self.reporter: Reporter = Reporter(core.shared, self.label, counts)
        self.shard: Shard[S] = Shard(
            *(core.shared, core.permits, self),
            pool_size=core.size,
            jitter=core.jitter,
            pool_idle_size=core.idle_size,
        )
        self.housekeeper: Housekeeper[S] = Housekeeper(self.shard, core.shared, self, pool_size=core.size)
        self._core = weakref.ref(core)
        self._shared = core.shared
        self._driver = core.driver
        self.errors: ErrorFamily = core.driver.errors
        self.decided: deque[Callable[[], object]] = deque()
        self._acting: set[int] = set()  # threads in the middle of `act`
        self._tasks: dict[Slot[S], asyncio.Task[BaseException | None]] = {}
        self._abandoned: weakref.WeakSet[asyncio.Task[BaseException | None]] = weakref.WeakSet()
        parks_at_once = core.shared.config.parks_at_once
        self._parking = Parking(loop, self.shard.is_in_use, self.notify, is_at_once=parks_at_once)
        self.park_when_idle: Callable[[Slot[S]], None] = self._parking.park_when_idle
        self._leak_check = LeakCheck(loop, self.shard, self.reporter, core.ledger, core.shared.config.fd_check)
        self._timer: asyncio.TimerHandle | None = None
        self.deadlines: Deadlines = Deadlines(loop)
        self.changes: event_loops.Condition = event_loops.Condition(loop)
        self.callers = 0
        self.hasty_callers = 0
        self.errands: event_loops.Errands = event_loops.Errands(loop)
        self._openers: dict[Slot[S], asyncio.Future[None]] = {}
        self.recent_leases: Recent[tuple[LeaseInfo, ...]] = Recent(lambda: tuple(self.leases()))
        self._myself = weakref.ref(self)
        self._end = event_loops.LoopShutdownHook(loop, functools.partial(_farewell, self._myself))
        self.shard.is_ending = self._end.is_too_late
        self._call_off = event_loops.on_closed(loop, functools.partial(_loop_closed, self._myself))

    # ---- what the shard has decided ----

    def begin_connect(self, slot: Slot[S]) -> None:
        """Connect, in a task. When its loop ends, the task gets the second that `shut` allows."""
        self.decided.append(functools.partial(self._open, slot))

    def begin_reset(self, slot: Slot[S]) -> None:
        """Reset the session, in a task."""
        self.decided.append(functools.partial(self._reset, slot))

    def begin_ping(self, slot: Slot[S]) -> None:
        """Make a round trip, in a task."""
        self.decided.append(functools.partial(self._begin, slot, self._ping))

    def begin_read(self, slot: Slot[S]) -> None:
        """Let the driver read what arrived."""
        self.decided.append(functools.partial(self._begin, slot, self._read))

    def begin_close(self, slot: Slot[S], *, politely: bool) -> None:
        """Close the connection. A polite close is a task."""
        close = functools.partial(self._close, politely=politely)
        self.decided.append(functools.partial(self._begin, slot, close))

    def cut_goodbye(self, slot: Slot[S]) -> None:
        """Cut a polite close short."""
        self.decided.append(functools.partial(self._break_off, slot))

    def is_here(self) -> bool:
        """Whether the calling thread is running this loop."""
        return self.loop is event_loops.running()

    def is_awake(self) -> bool:
        """Whether the loop runs."""
        return self.loop.is_running()

    def wake_at(self, due: float) -> None:
        """Have the housekeeper sweep at *due* (monotonic seconds)."""
        # A loop that is not running may start any moment, and its timers are not thread-safe.
        if self.loop is not event_loops.running():
            event_loops.post(self.loop, self.wake_at, due)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(max(0.0, due - monotonic()), _sweep, self._myself)

    def tell_granted(self, claimant: Claimant) -> None:
        """Tell another loop that a permit is its own now."""
        self._ask_core(lambda core: core.deliver_grant(claimant))

    def ask_for_permit(self, donor: Claimant) -> None:
        """Ask another loop for an idle connection's permit."""
        self._ask_core(lambda core: core.deliver_request(donor))

    def run_errands_of_idle_loops(self) -> None:
        """Do what loops were asked to do and have stopped before they did it."""
        self._ask_core(lambda core: core.run_errands_of_idle_loops())

    def reclaim_dropped_on_all_loops(self) -> None:
        """Have every loop look for leases that were dropped."""
        self._ask_core(lambda core: core.reclaim_on_all_loops())

    def report_floor_not_restored(self, error: BaseException) -> None:
        """Tell the driver, which logs it in upstream's words."""
        self.decided.append(functools.partial(self._driver.floor_not_restored, error))

    def report_opened(self, slot: Slot[S], seconds: float) -> None:
        """Tell the task that waits for the connect, the leak check and the listener."""
        self.decided.append(functools.partial(self._report_opened, slot, seconds))

    def report_connect_failed(self, slot: Slot[S], error: BaseException) -> None:
        """Tell the task that waits for the connect, and the listener."""
        self.decided.append(functools.partial(self._report_connect_failed, slot, error))

    def report_gone(self, slot: Slot[S], reason: str) -> None:
        """Tell the leak check and the listener."""
        self.decided.append(functools.partial(self._report_gone, slot, reason))

    def report_overdue(self, slot: Slot[S]) -> None:
        """Report a lease that lasts too long, with where its task stands."""
        slot.reported = lease = lease_of(slot, monotonic(), has_stack=True)
        self.decided.append(functools.partial(self.reporter.emit_overdue, lease))

    def report_late_return(self, slot: Slot[S], held_seconds: float) -> None:
        """Report that a lease has ended which was reported as overdue."""
        reported, slot.reported = slot.reported, None
        if reported is not None:
            lease = dataclasses.replace(reported, held_seconds=held_seconds, stack=())
            self.decided.append(functools.partial(self.reporter.emit_late_return, lease))

    def report_dropped(self, slot: Slot[S]) -> None:
        """Report a lease that will never be ended."""
        self.decided.append(functools.partial(self.reporter.emit_dropped, lease_of(slot, monotonic())))

    def _ask_core(self, question: Callable[[PoolOfLoops[S]], object]) -> None:
        self.decided.append(functools.partial(self._tell_core, question))

    # ---- acting ----

    def act(self) -> None:
        """
        Do what the shard has decided, and what it decides because of that.

        A call from inside one of these actions leaves the rest to the call under way. An error goes to the loop's
        exception handler: whichever caller happens to run this has not caused it, and the other actions must still be
        done.
        """
        if not self.decided:
            return
        thread = threading.get_ident()
        if thread in self._acting:
            return
        self._acting.add(thread)
        try:
            while self.decided:
                if self._runs_elsewhere():
                    event_loops.post(self.loop, self.act)
                    return
                self._do_next()
        finally:
            self._acting.discard(thread)

    def _runs_elsewhere(self) -> bool:
        """Whether the loop runs, in another thread: it has begun to, while this thread acted for it."""
        return self.loop.is_running() and not self.is_here()

    def _do_next(self) -> None:
        try:
            action = self.decided.popleft()
        except IndexError:  # the loop has begun to run, and was quicker
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a driver's; the handler logs it
            message = f"{self._shared.config.name}: the pool's work on a connection failed"
            self.loop.call_exception_handler({"message": message, "exception": error})

    def do(self, action: Callable[[], object]) -> None:
        """Call *action*, in which the shard may decide something, and do what it has decided."""
        try:
            action()
        finally:
            self.act()

    def _begin(self, slot: Slot[S], work: Callable[[Slot[S]], object]) -> None:
        """Begin to work on a connection. If that fails, the connection is closed: its permit must not be lost."""
        try:
            work(slot)
        except Exception:
            if slot.state is SlotState.CLOSING:
                self._cut(slot)
            else:
                self.shard.discard(slot, "failed")
            raise

    def _open(self, slot: Slot[S]) -> None:
        if slot.state is SlotState.CONNECTING:  # else it was given up before the connect began
            event_loops.keep_from_shutdown(self._spawn(slot, self._connect(slot)))

    def _reset(self, slot: Slot[S]) -> None:
        if slot.state is SlotState.RESETTING:
            self._spawn(slot, self._service(slot, slot.session.reset, self.count_reset_failure))

    def _ping(self, slot: Slot[S]) -> None:
        if slot.state is SlotState.RESETTING:
            slot.session.unpark()
            ping = functools.partial(within, GOODBYE_SECONDS, slot.session.ping, slot.session.abort)
            self._spawn(slot, self._service(slot, ping, self._found_dead))

    def _read(self, slot: Slot[S]) -> None:
        if slot.state is SlotState.RESETTING:
            slot.session.unpark()
            self.loop.call_soon(self._look_again, slot, READ_ITERATIONS)

    def _close(self, slot: Slot[S], *, politely: bool) -> None:
        if slot.state is not SlotState.CLOSING:
            return
        task = self._tasks.pop(slot, None)
        if task is not None and task is not asyncio.current_task(self.loop):
            task.cancel()
        if politely and slot.session.says_goodbye and self.loop.is_running():
            slot.session.unpark()
            # `farewell` waits for it, and cuts it when its time is up.
            event_loops.keep_from_shutdown(self._spawn(slot, self._say_goodbye(slot)))
        else:
            self._cut(slot)

    def _break_off(self, slot: Slot[S]) -> None:
        if slot.state is not SlotState.CLOSING:
            return
        task = self._tasks.pop(slot, None)
        if task is not None:
            task.cancel()
        self._cut(slot)

    def _tell_core(self, question: Callable[[PoolOfLoops[S]], object]) -> None:
        if (core := self._core()) is not None:
            question(core)

    def _report_opened(self, slot: Slot[S], seconds: float) -> None:
        self._tell_opener(slot, None)
        self._leak_check.remember_opened(slot.session.identity)
        self.reporter.emit_opened(seconds)

    def _report_connect_failed(self, slot: Slot[S], error: BaseException) -> None:
        self._tell_opener(slot, error)
        self.reporter.emit_connect_failed(error)
        self.notify()

    def _report_gone(self, slot: Slot[S], reason: str) -> None:
        self._leak_check.remember_closed(slot.session.identity, reason)
        self.reporter.emit_closed(slot, reason)
        self.notify()

    # ---- tasks ----

    def _spawn(
        self, slot: Slot[S], work: Coroutine[Any, Any, BaseException | None]
    ) -> asyncio.Task[BaseException | None]:
        # Not `create_task`: an eager task factory would run the first step here, in the middle of another action.
        task = asyncio.Task(work, loop=self.loop)
        self._tasks[slot] = task
        task.add_done_callback(functools.partial(self._ended, slot))
        return task

    def _ended(self, slot: Slot[S], task: asyncio.Task[BaseException | None]) -> None:
        """
        Forget a task that has ended, and finish what it left undone.

        A task that is cancelled before its first step runs none of its own code, not even a `finally`. So its slot is
        cleaned up here.
        """
        if self._tasks.get(slot) is not task:
            return
        del self._tasks[slot]
        if task.cancelled() or task.exception() is not None:
            if slot.state is SlotState.CONNECTING:
                self._tell_opener(slot, self._closed_error())
                self.shard.connect_cancelled(slot, monotonic())
            elif slot.state is SlotState.RESETTING:
                self.shard.discard(slot, "interrupted")
            elif slot.state is SlotState.CLOSING:
                self._cut(slot)
        self.act()
        self.notify()

    async def _connect(self, slot: Slot[S]) -> None:
        try:
            session = await self._driver.connect()
        except HookFailed as failure:
            cause = failure.__cause__ or failure
            self.shard.connect_failed(slot, cause, monotonic(), is_final=True)
        except event_loops.INTERRUPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the driver raises, waiting callers get it
            # One that is no `Exception` is a callback's.
            self.shard.connect_failed(slot, error, monotonic(), is_final=not isinstance(error, Exception))
        else:
            if slot.state is not SlotState.CONNECTING:  # given up, and the driver has ignored the cancellation
                session.abort()
                return
            session.owner = SessionListener(self, slot)
            self.shard.connected(slot, session, monotonic(), peer_address(session.identity))
        self.act()

    async def _service(
        self, slot: Slot[S], work: Callable[[], Coroutine[Any, Any, None]], failed: Callable[[BaseException], str]
    ) -> BaseException | None:
        try:
            await work()
        except asyncio.CancelledError as error:
            if slot.state is SlotState.RESETTING and not event_loops.is_cancelled():  # a callback has raised it
                self.shard.discard(slot, failed(error))
                self.act()
            raise
        except event_loops.INTERRUPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001 - returned to the caller that waits for it
            if slot.state is SlotState.RESETTING:
                self.shard.discard(slot, failed(error))
                self.shard.suspect(monotonic())
                self.act()
            return error
        self.shard.serviced(slot, monotonic())
        self.act()
        return None

    async def _say_goodbye(self, slot: Slot[S]) -> None:
        try:
            await within(GOODBYE_SECONDS, slot.session.close, slot.session.abort)
        except Exception:  # noqa: BLE001 - the next line aborts it
            name = self._shared.config.name
            told = fields("goodbye_failed", name, loop=self.label)
            logger.debug("%s: a connection did not close politely", name, exc_info=True, extra=told)
        self._cut(slot)

    def _cut(self, slot: Slot[S]) -> None:
        """Close the socket, whatever its loop does."""
        try:
            if self.loop.is_running():
                slot.session.abort()
            else:
                slot.session.discard(forked=False)
        finally:  # an error in a driver must not cost a permit
            self.shard.closed(slot, monotonic())
            self.act()

    def _look_again(self, slot: Slot[S], iterations: int) -> None:
        """Decide on a connection that had unread data, once the driver has had time to read it."""
        if slot.state is not SlotState.RESETTING:
            return
        if iterations:
            self.loop.call_soon(self._look_again, slot, iterations - 1)
        elif slot.session.liveness() is Liveness.DEAD:
            self.shard.counters.found_dead += 1
            self.shard.discard(slot, "closed by the server")
        else:
            self.shard.serviced(slot, monotonic())
        self.act()

    def keep_floor(self) -> None:
        """Keep `min_size` connections open from now on."""
        self.shard.keep_floor(monotonic())
        self.act()

    def permit_granted(self) -> None:
        """Use, or return, a permit that another loop gave to this one."""
        self.shard.permit_granted(monotonic())
        self.act()

    # ---- what callers ask ----

    async def open_one(self) -> bool:
        """
        Open a connection.

        Returns:
            False if no permit is free.

        Raises:
            Exception: What connecting failed with.

        Cancellation: ends the waiting, not the connect.
        """
        slot = self.shard.open_one(monotonic())
        if slot is None:
            return False
        opener = self._openers[slot] = self.loop.create_future()
        self.act()
        await opener
        return True

    def abandon_connects(self) -> None:
        """
        Cancel connects that no caller waits for, unless they end within `ABANDONED_CONNECT_SECONDS`.

        One that ends joins the pool, so that callers with little patience get somewhere. One that hangs would keep a
        permit from callers whom another connect could serve.
        """
        surplus = len(self.shard.connecting) - len(self.shard.waiters)
        if surplus <= 0:
            return
        for slot in sorted(self.shard.connecting, key=lambda slot: slot.opened_at)[:surplus]:
            task = self._tasks.get(slot)
            if task is not None and task not in self._abandoned:
                self._abandoned.add(task)
                self.loop.call_later(ABANDONED_CONNECT_SECONDS, task.cancel)

    async def until_settled(self) -> None:
        """Wait until every connection that was released is ready, out of the selector, or closed."""
        await self.changes.until(self._is_settled)

    def is_unneeded(self) -> bool:
        """Whether the loop is not running, and nothing of the pool is on it: no connection, no caller, no task."""
        return event_loops.is_idle(self.loop) and not (
            self.callers
            or self.shard.slots
            or self.shard.waiters
            or self._tasks
            or self._openers
            or self.errands
            or self.changes.are_awaited()
        )

    def is_unused(self) -> bool:
        """Whether all connections left are lent."""
        return len(self.shard.slots) == self._lent()

    def ping_all(self) -> list[Slot[S]]:
        """Make a round trip on each idle connection. Returns their slots."""
        return self.housekeeper.ping_all(monotonic())

    async def check_idle(self) -> None:
        """
        Make a round trip on each idle connection; those that fail are closed.

        Cancellation: ends the waiting, not the checks.
        """
        slots = self.ping_all()
        self.act()
        for slot in slots:
            await self.task_finished(slot)

    async def task_finished(self, slot: Slot[S], patience: float | None = None) -> BaseException | None:
        """
        Wait for the task that works on *slot*.

        Args:
            slot: The connection's slot.
            patience: Seconds to wait at most; None waits as long as it takes.

        Returns:
            What the task failed with; None if it succeeded, if there is none, or if *patience* has passed.

        Cancellation: ends the waiting, not the task.
        """
        task = self._tasks.get(slot)
        if task is None:
            return None
        try:
            if patience is not None:
                await asyncio.wait([task], timeout=patience)
                if not task.done():
                    self.shard.left_to_pool(slot, monotonic(), is_late=True)
                    self.act()
                    return None
            return await event_loops.outcome_of(task)
        except asyncio.CancelledError:
            if not task.done():
                self.shard.left_to_pool(slot, monotonic(), is_late=False)
                self.act()
            raise

    def leases(self) -> list[LeaseInfo]:
        """List who holds connections, the longest lease first."""
        return leases(list(self.shard.slots), monotonic())

    def report(self) -> list[ConnectionReport]:
        """Describe every connection."""
        return [self.reporter.row(slot, self.loop) for slot in list(self.shard.slots)]

    def _is_settled(self) -> bool:
        return self._parking.is_settled() and all(
            slot.state is not SlotState.RESETTING
            and slot.state is not SlotState.CLOSING
            and (slot.state is not SlotState.IDLE or slot.session.is_settled)
            for slot in self.shard.slots
        )

    # ---- the end ----

    def shut(self, error: Callable[[], BaseException]) -> None:
        """
        Stop serving: raise *error*'s result in waiting callers, and close idle connections.

        A connect under way gets a second to end and to close politely: asyncpg complains about one cut at the wrong
        moment.
        """
        self.shard.shut(error)
        self.act()
        if not self.loop.is_running():
            self.cut_unused()  # nothing runs that could finish what has begun
        else:
            self.housekeeper.sweep(monotonic())
            self.act()
            if self.shard.connecting:
                self.loop.call_later(FAREWELL_SECONDS, self._cancel_connects)
        self.notify()

    def _cancel_connects(self) -> None:
        for slot in list(self.shard.connecting):
            task = self._tasks.get(slot)
            if task is not None:
                task.cancel()

    def terminate(self, error: Callable[[], BaseException]) -> None:
        """Close every connection now, lent ones included. Connects get the time that `shut` allows."""
        self.shut(error)
        self._end_now(self.shard.slots - self.shard.connecting, "terminated")
        for slot in list(self.shard.connecting):
            self._tell_opener(slot, error())
        self.notify()

    def cut_unused(self) -> None:
        """Close every connection now except the lent ones, and cancel every connect."""
        self._end_now({slot for slot in self.shard.slots if slot.state in _IN_TRANSIT}, "pool closed")
        self._cancel_connects()
        self.notify()

    def _end_now(self, slots: set[Slot[S]], reason: str) -> None:
        for slot in slots:
            task = self._tasks.pop(slot, None)
            if task is not None:
                task.cancel()
            if slot.state is SlotState.CLOSING:
                self._cut(slot)
            else:
                self.shard.retire(slot, reason, politely=False)
        self.act()

    def cut_all(self, error: Callable[[], BaseException]) -> None:
        """Close every connection now, and end every connect: the loop ends, or is not running."""
        self.terminate(error)
        for slot in list(self.shard.connecting):
            task = self._tasks.pop(slot, None)
            if task is not None:
                task.cancel()
            self.shard.connect_cancelled(slot, monotonic())
        self.act()
        self.notify()

    def dismiss(self) -> None:
        """Let go of a loop that has no connection left."""
        self._end.cancel()
        self._stop_timers()

    def _stop_timers(self) -> None:
        self._call_off()
        self.deadlines.stop()
        self._leak_check.stop()
        if self._timer is not None:
            self._timer.cancel()

    async def farewell(self) -> None:
        """Close everything while the loop shuts down, politely as far as a second allows."""
        self._leave_pool()
        count = len(self.shard.slots)
        self.shut(self._closed_error)
        await self.changes.until(lambda: not self._lent(), LEASE_GRACE_SECONDS)
        await self.changes.until(self.is_unused, FAREWELL_SECONDS)
        self.cut_all(self._closed_error)
        self._ended_with(count)
        await asyncio.sleep(0)  # transports that were cut close their sockets in the next iteration

    def loop_closed(self) -> None:
        """Close everything although the loop is closed. To other threads, a loop that is being closed looks idle."""
        with self.errands.closing():
            self._leave_pool()
            count = len(self.shard.slots)
            # No caller can be told any more: futures of a closed loop cannot even be resolved.
            self.shard.waiters.clear()
            self._openers.clear()
            self.changes.clear()
            while self._tasks:
                event_loops.close_abandoned_task(self._tasks.popitem()[1])
            self.cut_all(self._closed_error)
            self._ended_with(count)

    def forget_in_child(self) -> None:
        """Forget everything in a child process, where all of it belongs to the parent."""
        for slot in self.shard.slots:
            if slot.state is not SlotState.CONNECTING:
                slot.session.owner = None
                slot.session.discard(forked=True)
        self.shard.idle.clear()
        self.shard.is_open = False

    def _leave_pool(self) -> None:
        if (core := self._core()) is not None:
            core.loop_ending(self.loop, self.shard)

    def _ended_with(self, connections: int) -> None:
        self._stop_timers()
        if connections:
            self.reporter.emit_loop_ended(connections)
        if (core := self._core()) is not None:
            core.loop_ended(self.shard)

    def _lent(self) -> int:
        return self.shard.count(SlotState.LENT, SlotState.RESERVED)

    def _closed_error(self) -> BaseException:
        return self._driver.errors.closed(
            f"pool {self._shared.config.name!r} closed its connections on {self.label}: the loop ends",
            pool=self._shared.config.name,
        )

    # ---- telling ----

    def count_reset_failure(self, error: BaseException) -> str:
        """Count and report a session that could not be reset. Returns the reason to close it."""
        self.shard.counters.reset_failures += 1
        self.reporter.emit_reset_failed(error)
        return "reset failed"

    def replace_read_only(self, slot: Slot[S]) -> None:
        """
        Close a connection whose server has become read-only, and replace all that were opened before, on every loop.
        """
        if (core := self._core()) is not None and slot.generation == core.shared.generation:
            name = self._shared.config.name
            told = fields("server_became_read_only", name, loop=self.label, **core.counts())
            logger.warning("%s: %s; replacing all connections", name, BECAME_READ_ONLY, extra=told)
            core.drain()
        self.shard.discard(slot, BECAME_READ_ONLY)
        self.act()

    def _found_dead(self, _: BaseException) -> str:
        self.shard.counters.found_dead += 1
        return "did not answer"

    def _tell_opener(self, slot: Slot[S], error: BaseException | None) -> None:
        opener = self._openers.pop(slot, None)
        if opener is not None and not opener.done():
            if error is None:
                opener.set_result(None)
            else:
                opener.set_exception(error)

    def notify(self) -> None:
        """Wake the tasks that wait for a change."""
        self.changes.notify()
        if not self.shard.slots and (core := self._core()) is not None:
            core.loop_emptied()


class SessionListener(Generic[S]):
    """Does what the events of a session demand, on its loop."""

    __slots__ = ("runner", "slot")

    def __init__(self, runner: ShardRunner[S], slot: Slot[S]) -> None:
        self.runner: ShardRunner[S] = runner
        self.slot: Slot[S] = slot

    async def finished(self, patience: float | None = None) -> None:
        """
        Wait for the task that works on the connection.

        Args:
            patience: Seconds after which it is left to the pool; None waits as long as it takes.

        Raises:
            Exception: What it failed with.

        Cancellation: ends the waiting, not the task.
        """
        error = await self.runner.task_finished(self.slot, patience)
        if error is not None:
            raise error

    def settled(self) -> None:
        """The last answer due has come: park an idle connection, or make available one that waits for it."""
        runner, slot = self.runner, self.slot
        if slot.state is _IDLE:
            runner.park_when_idle(slot)
        elif slot.state is _RESETTING:
            runner.shard.reset_answered(slot, monotonic())
            if runner.decided:
                runner.act()
        if runner.changes.are_awaited():
            runner.notify()

    def reset_failed(self, error: BaseException) -> None:
        """Count and report it."""
        self.runner.count_reset_failure(error)

    def demoted(self) -> None:
        """Close the connection, and replace all that were opened before: their server takes no writes any more."""
        self.runner.replace_read_only(self.slot)

    def silent(self) -> None:
        """Look whether the idle connections are answered: a caller's connection is not."""
        self.runner.shard.suspect(monotonic())
        self.runner.act()

    def dropped(self) -> None:
        """Close the connection, and report its lease. The garbage collector may call this between any two lines."""
        if has_interrupted_a_decision():
            self.runner.errands.add_for_later(self._reclaim)
        else:
            self._reclaim()

    def _reclaim(self) -> None:
        self.runner.housekeeper.reclaim(self.slot)
        self.runner.act()
        self.runner.notify()

    def lost(self, reason: str) -> None:
        """Close the connection."""
        self.runner.shard.discard(self.slot, reason)
        self.runner.act()
        self.runner.notify()


def _counts(dead_or_alive: weakref.ref[PoolOfLoops[Any]]) -> dict[str, Any]:
    core = dead_or_alive()
    return {} if core is None else core.counts()


def _sweep(myself: weakref.ref[ShardRunner[Any]]) -> None:
    runner = myself()
    if runner is not None:
        runner.do(functools.partial(runner.housekeeper.sweep, monotonic()))


async def _farewell(myself: weakref.ref[ShardRunner[Any]]) -> None:
    runner = myself()
    if runner is not None:
        await runner.farewell()


def _loop_closed(myself: weakref.ref[ShardRunner[Any]]) -> None:
    runner = myself()
    if runner is not None:
        runner.loop_closed()
