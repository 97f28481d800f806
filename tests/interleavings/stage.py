"""A pool's core on a world of loops, the parties that use it, and what must hold whatever happens."""

from __future__ import annotations

import asyncio
import functools
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import loopaware_pool._core.registry
import loopaware_pool._core.shard
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.housekeeping import Housekeeper
from loopaware_pool._core.pool import PoolCore
from loopaware_pool._core.shard import Shard
from loopaware_pool._core.slot import Slot, SlotState
from loopaware_pool._core.state import PoolState
from loopaware_pool.driver import ReturnCheck
from loopaware_pool.testing import FakeDriver, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from interleavings.world import VirtualLoop, World
    from loopaware_pool.stats import PoolEvent

__all__ = ["Scenario", "Stage", "Violation", "counted_decisions", "numbered_slots"]

MOST_STEPS = 5_000


class Violation(AssertionError):
    """Something that must never happen did."""


@dataclass(frozen=True)
class Scenario:
    """
    A story to be told in every order.

    Attributes:
        name: What it is called.
        begin: Starts the parties, which then move in every order.
        options: The pool's, `max_size` among them.
        warm: Connections that are idle on the first loop when it begins.
        loops: How many loops there are.
        allowed: What parties may end with besides success, and cancellation if they are cancelled.
        departures: How often at most the order may differ from a real loop's; None for no limit.
        time_races: Whether timers may fire although something is ready.
    """

    name: str
    begin: Callable[[Stage], object]
    options: dict[str, Any] = field(default_factory=dict)
    warm: int = 0
    loops: int = 1
    allowed: tuple[type[BaseException], ...] = ()
    departures: int | None = None
    time_races: bool = False


class _NumberedSlot(Slot):
    """The pool keeps slots in sets: their order would be chance, and a replay would not be one."""

    __slots__ = ("number",)
    made = 0

    def __init__(self, generation: int, now: float) -> None:
        super().__init__(generation, now)
        _NumberedSlot.made += 1
        self.number = _NumberedSlot.made

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class numbered_slots:
    """Have shards make slots whose order in a set is always the same."""

    def __enter__(self) -> None:
        loopaware_pool._core.shard.Slot = _NumberedSlot  # type: ignore[misc]

    def __exit__(self, *exc: object) -> None:
        loopaware_pool._core.shard.Slot = Slot  # type: ignore[misc]


class counted_decisions:
    """Have it known whether a shard is in the middle of a decision: nobody is to be called then who may call back."""

    under_way = 0
    disturbed: ClassVar[list[str]] = []

    @classmethod
    def demand_none(cls, what: str) -> None:
        """Note that something has happened in the middle of a decision, if it has."""
        if cls.under_way:
            cls.disturbed.append(f"{what} in the middle of a decision")

    def __enter__(self) -> None:
        counted_decisions.under_way = 0
        counted_decisions.disturbed.clear()
        self._methods = [
            (kind, name, getattr(kind, name)) for kind in (Shard, Housekeeper) for name in _decisions_of(kind)
        ]
        for kind, name, decide in self._methods:
            setattr(kind, name, _counting(decide))

    def __exit__(self, *exc: object) -> None:
        for kind, name, decide in self._methods:
            setattr(kind, name, decide)


def _decisions_of(kind: type) -> list[str]:
    return [name for name, found in vars(kind).items() if inspect.isfunction(found) and not name.startswith("__")]


def _counting(decide: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(decide)
    def counting(*args: Any, **kwargs: Any) -> Any:
        counted_decisions.under_way += 1
        try:
            return decide(*args, **kwargs)
        finally:
            counted_decisions.under_way -= 1

    return counting


class _WatchedSession(FakeSession):
    """Whatever closes a connection may make a driver call the pool back."""

    def abort(self) -> None:
        counted_decisions.demand_none("a connection is closed")
        super().abort()


class _WatchedDriver(FakeDriver):
    """Makes such sessions."""

    session_class = _WatchedSession


class Stage:
    """
    One telling of a story.

    Args:
        scenario: The story.
        world: Its loops.

    Attributes:
        core: The pool.
        driver: Whose connections it has; each connect and each goodbye takes an iteration.
        listener: What the pool's `on_event` calls, with the event; None for nothing.
    """

    def __init__(self, scenario: Scenario, world: World) -> None:
        _NumberedSlot.made = 0
        self.scenario = scenario
        self.world = world
        self.loops = [world.loop() for _ in range(scenario.loops)]
        self.driver = _WatchedDriver()
        self.listener: Callable[[PoolEvent], object] | None = None
        sizes = {"min_size": 0, "init_size": 0, "max_size": 1, "name": "stage", "on_event": self._heard}
        config = PoolConfig(**{**sizes, **scenario.options})
        self.largest = config.max_size
        self.core = PoolCore(config, self.driver, face=self)
        self.parties: list[asyncio.Task[Any]] = []
        self._cancelled: set[asyncio.Task[Any]] = set()
        self._holders: dict[FakeSession, asyncio.Task[Any]] = {}

    def _heard(self, event: PoolEvent) -> None:
        counted_decisions.demand_none("a listener is called")
        if self.listener is not None:
            self.listener(event)

    # ---- what parties do ----

    def at_any_moment(self, action: Callable[[], object], loop: int = 0) -> None:
        """Something that happens once, whenever it is chosen."""
        self.loops[loop].call_soon(action)

    def party(self, work: Coroutine[Any, Any, Any], loop: int = 0) -> asyncio.Task[Any]:
        """Somebody on a loop."""
        task = asyncio.Task(work, loop=self.loops[loop])
        self.parties.append(task)
        return task

    def caller(
        self,
        loop: int = 0,
        *,
        hold: int = 1,
        check: ReturnCheck = ReturnCheck.READY,
        timeout: float | None = None,
        awaits: bool = False,
    ) -> asyncio.Task[Any]:
        """
        Somebody who acquires a connection, uses it for *hold* steps, and releases it.

        Args:
            loop: Where.
            hold: Steps between acquire and release.
            check: What the connection needs when it comes back.
            timeout: Of the acquire, in seconds.
            awaits: Whether to wait until the connection is reset.
        """
        return self.party(self._lease(hold, check, timeout, awaits=awaits), loop)

    async def _lease(self, hold: int, check: ReturnCheck, timeout: float | None, *, awaits: bool) -> None:
        slot = await self.acquire(timeout)
        session = slot.session
        try:
            for _ in range(hold):
                await asyncio.sleep(0)
        finally:
            del self._holders[session]
            session.check = check
            listener = self.release(slot)
        if awaits and slot.state is SlotState.RESETTING:
            await listener.runner.task_finished(slot)

    async def acquire(self, timeout: float | None = None) -> Slot:
        """As the flavours do."""
        core = self.core
        if core.state is not PoolState.OPEN:
            raise core.closed_error()
        runner = core.runner()
        slot = runner.shard.take(loopaware_pool._core.registry.monotonic())
        runner.act()
        if slot is None:
            slot = await core.queue.wait(runner, timeout)
        self._demand(slot.session not in self._holders, "a connection is lent twice")
        self._demand(slot.session.owner.runner.loop is asyncio.get_running_loop(), "a connection changed its loop")
        self._demand("abort" not in slot.session.calls, "a connection was lent that the pool has closed")
        self._holders[slot.session] = asyncio.current_task()
        slot.lent_to(asyncio.current_task(), None, 0)
        slot.session.unpark()
        return slot

    def release(self, slot: Slot) -> Any:
        """As the flavours do."""
        listener = slot.session.owner
        if slot.is_lent():
            listener.runner.shard.returned(slot, slot.session.take_back(), loopaware_pool._core.registry.monotonic())
            listener.runner.act()
        return listener

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a party; if it hears of it, it must end cancelled."""
        if task.cancel():
            self._cancelled.add(task)

    def cancel_all(self, loop: int = 0) -> None:
        """Cancel every task of a loop, as `asyncio.run` does at its end, but not whoever calls this."""
        tasks = sorted(asyncio.all_tasks(self.loops[loop]), key=lambda task: int(task.get_name().split("-")[1]))
        for task in tasks:
            if task in self.parties and task is not asyncio.current_task():
                self.cancel(task)
            elif task not in self.parties:
                task.cancel()

    def lose(self, number: int = 0) -> None:
        """Have a connection die, and its driver notice."""
        if number < len(self.driver.sessions) and "abort" not in self.driver.sessions[number].calls:
            self.driver.sessions[number].lose()

    def stand_still_for_a_while(self, loop: int) -> None:
        """Have a loop stop at any moment, and run again at any moment after that, which another loop chooses."""

        def stop() -> None:
            self.loops[loop].stand_still()
            self.at_any_moment(self.loops[loop].go_on, loop=1 - loop)

        self.at_any_moment(stop, loop)

    def resize(self, max_size: int) -> None:
        """Have another `max_size`. There may be as many connections as there were before."""
        self.largest = max(self.largest, max_size)
        self.core.resize(0, max_size)

    async def end_loop(self, loop: int) -> None:
        """End a loop as `asyncio.run` does: tasks are cancelled, then generators closed."""
        here = self.loops[loop]
        self.cancel_all(loop)
        while any(not task.done() for task in self._cancelled if task.get_loop() is here):
            await asyncio.sleep(0)
        await here.shutdown_asyncgens()

    # ---- how it goes ----

    def play(self) -> None:
        """
        Tell the story.

        Raises:
            Violation: Something happened that must not.
        """
        self._set_up()
        self.scenario.begin(self)
        while not all(party.done() for party in self.parties):
            self._step(in_order=False)
        self._settle()
        self._check_parties()
        if self.core.state is PoolState.OPEN:
            self._check_capacity()
        self._close()

    def _set_up(self) -> None:
        async def introduce(warm: int) -> None:
            self.core.start()
            runner = self.core.runner()
            slots = [runner.shard.open_one(loopaware_pool._core.registry.monotonic()) for _ in range(warm)]
            runner.act()
            while any(slot.state is not SlotState.IDLE for slot in slots):
                await asyncio.sleep(0)

        for number, loop in enumerate(self.loops):
            self._finish(loop.create_task(introduce(0 if number else self.scenario.warm)))
        self._settle()

    def _step(self, *, in_order: bool) -> None:
        self._demand(self.world.step(in_order=in_order), "somebody waits for ever")
        self._demand(self.world.steps < MOST_STEPS, "it never ends")
        self._check_connections()

    def _finish(self, task: asyncio.Task[Any]) -> Any:
        while not task.done():
            self._step(in_order=True)
        return task.result()

    def _settle(self) -> None:
        while any(loop.ready() for loop in self.loops):
            self._step(in_order=True)

    def _demand(self, is_so: object, otherwise: str) -> None:
        if not is_so:
            raise Violation(otherwise)

    # ---- what must hold ----

    def _check_connections(self) -> None:
        """After each step."""
        self._demand(not self.world.complaints, f"a loop complains: {self.world.complaints}")
        self._demand(not counted_decisions.disturbed, "; ".join(counted_decisions.disturbed))
        in_use = self.core.permits.in_use
        runners = self.core.runners()
        slots = [slot for runner in runners for slot in runner.shard.slots]
        self._demand(len(slots) <= in_use <= self.largest, f"{len(slots)} places, {in_use} permits")
        alive = [session for session in self.driver.sessions if not _is_closed(session)]
        self._demand(len(alive) <= in_use, f"{len(alive)} sessions, {in_use} permits")
        for runner in runners:
            shard = runner.shard
            is_to_serve = not self.core.shared.is_suspended and not runner.errands  # or it has yet to hear of that
            self._demand(
                not (is_to_serve and shard.idle and any(not waiter.done() for waiter in shard.waiters)),
                "somebody waits beside an idle connection",
            )

    def _check_parties(self) -> None:
        """When all have ended."""
        for party in self.parties:
            if party in self._cancelled:
                self._demand(party.cancelled(), f"a cancellation was swallowed: {party}")
            elif not party.cancelled() and (error := party.exception()) is not None:
                self._demand(isinstance(error, self.scenario.allowed), f"a caller was told {error!r}")
            else:
                self._demand(not party.cancelled(), "a caller was cancelled by nobody")
        for runner in self.core.runners():
            shard = runner.shard
            self._demand(not shard.waiters, "a waiter is left")
            self._demand(not shard.count(SlotState.LENT, SlotState.RESERVED), "a connection stays lent")

    def _check_capacity(self) -> None:
        """As many connections can be had at once as ever."""
        self.core.resume()

        async def take_all() -> None:
            slots = [await self.acquire(timeout=60.0) for _ in range(self.core.shared.config.max_size)]
            for slot in slots:
                del self._holders[slot.session]
                slot.session.check = ReturnCheck.READY
                self.release(slot)

        self._finish(self._living().create_task(take_all()))

    def _living(self) -> VirtualLoop:
        """A loop to act on."""
        for loop in self.loops:
            if not loop._asyncgens_shutdown_called and not loop.is_closed():
                return loop
        self.loops.append(self.world.loop())
        return self.loops[-1]

    def _close(self) -> None:
        """Closing ends, and nothing is left."""
        if self.core.state is not PoolState.NEW:
            self._finish(self._living().create_task(self.core.close()))
        self._settle()
        self._demand(self.core.permits.in_use == 0, f"{self.core.permits.in_use} permits are lost")
        self._demand(not self.core.permits.claims, "a claim is left")
        self._demand(all(map(_is_closed, self.driver.sessions)), "a connection is lost")
        self._demand(not self.core.runners(), "a closed pool clings to a loop")


def _is_closed(session: FakeSession) -> bool:
    return any(call.startswith(("abort", "discard")) for call in session.calls)
