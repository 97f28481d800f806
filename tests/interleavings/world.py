"""
Event loops whose next step is a choice, on one clock that is a number.

A real loop runs its callbacks in the order in which they became ready; which order that is, sockets and threads decide.
Here whatever is ready on any loop may be next, so every order in which a real loop could meet the same events is among
those that can be chosen, and many more are. What threads post to a loop keeps its order, as there is code that relies
on it. Time stands still while anything is ready, unless time may race.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Choice", "Choices", "VirtualLoop", "World", "virtual_clock"]

# Between two looks at the clock: no two events are simultaneous.
TICK_SECONDS = 1e-7
# Timers further away than this are never due.
HORIZON_SECONDS = 600.0


class VirtualLoop(asyncio.BaseEventLoop):
    """A loop that a `World` steps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._alive = True
        self._stands_still = False
        self._posted: deque[asyncio.Handle] = deque()
        super().__init__()
        self.set_exception_handler(world.complain)

    def time(self) -> float:
        return self._world.now

    def is_running(self) -> bool:
        return self._alive and not self._stands_still

    def stand_still(self) -> None:
        """Stop, as `run_until_complete` does when it has what it was run for."""
        self._stands_still = True

    def go_on(self) -> None:
        """Run again."""
        self._stands_still = False

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        self._posted.append(handle)
        return handle

    def ready(self) -> list[asyncio.Handle]:
        """What could run now, the oldest first."""
        if self._stands_still:
            return []
        out_of_turn = list(self._posted)[1:]
        return [handle for handle in self._ready if handle not in out_of_turn and not handle.cancelled()]

    def next_timer(self) -> asyncio.TimerHandle | None:
        """The first timer that will ever be due."""
        if self._stands_still:
            return None
        timers = [timer for timer in self._scheduled if not timer.cancelled()]
        first = min(timers, key=lambda timer: timer.when(), default=None)
        return first if first is not None and first.when() <= self._world.now + HORIZON_SECONDS else None

    def run(self, handle: asyncio.Handle) -> None:
        """Let one callback run, as if this were the loop of the thread."""
        self._ready.remove(handle)
        if handle in self._posted:
            self._posted.remove(handle)
        asyncio._set_running_loop(self)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(None)

    def end(self) -> None:
        """Close the loop."""
        self._alive = False
        if not self.is_closed():
            self.close()


class Choice(NamedTuple):
    """Which of how many was chosen."""

    chosen: int
    of: int


class Choices:
    """
    Replays the choices it is given, then always chooses what came first, and remembers.

    Args:
        prefix: What is to be chosen first.
    """

    def __init__(self, prefix: tuple[int, ...] = ()) -> None:
        self._prefix = prefix
        self.made: list[Choice] = []

    def choose(self, count: int) -> int:
        """Choose one of *count*."""
        if count == 1:
            return 0
        place = len(self.made)
        chosen = self._prefix[place] if place < len(self._prefix) else 0
        assert chosen < count, f"a replay that differs: choice {place} is one of {count}, not {chosen + 1}"
        self.made.append(Choice(chosen, count))
        return chosen


class World:
    """
    Loops, and what is chosen among what could happen next.

    Args:
        choices: Who chooses.
        time_races: Whether the next timer may fire although something is ready.
    """

    def __init__(self, choices: Choices, *, time_races: bool) -> None:
        self.now = 1000.0
        self.complaints: list[str] = []
        self.steps = 0
        self._choices = choices
        self._time_races = time_races
        self.loops: list[VirtualLoop] = []
        self.trace: list[str] | None = None

    def loop(self) -> VirtualLoop:
        """Make another loop."""
        loop = VirtualLoop(self)
        self.loops.append(loop)
        return loop

    def complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Note what a loop would have logged."""
        self.complaints.append(f"{context['message']}: {context.get('exception')!r}")

    def step(self, *, in_order: bool) -> bool:
        """Let one thing happen: the oldest if *in_order*, else what is chosen. False if nothing can."""
        ready = [(loop, handle) for loop in self.loops for handle in loop.ready()]
        if not ready:
            return self._pass_time()
        may_tick = self._time_races and not in_order and self._next_timer() is not None
        chosen = 0 if in_order else self._choices.choose(len(ready) + may_tick)
        if chosen == len(ready):
            return self._pass_time()
        loop, handle = ready[chosen]
        self._note(loop, handle)
        loop.run(handle)
        self.steps += 1
        return True

    def _next_timer(self) -> tuple[VirtualLoop, asyncio.TimerHandle] | None:
        timers = [(loop, timer) for loop in self.loops if (timer := loop.next_timer()) is not None]
        return min(timers, key=lambda pair: pair[1].when(), default=None)

    def _pass_time(self) -> bool:
        found = self._next_timer()
        if found is None:
            return False
        loop, timer = found
        self.now = max(self.now, timer.when())
        loop._scheduled.remove(timer)
        timer._scheduled = False
        loop._ready.append(timer)
        return True

    def _note(self, loop: VirtualLoop, handle: asyncio.Handle) -> None:
        if self.trace is not None:
            self.trace.append(f"loop {self.loops.index(loop)}: {handle!r}")

    def end(self) -> None:
        """Close every loop."""
        for loop in self.loops:
            loop.end()


class _Clock:
    world: World

    def __call__(self) -> float:
        self.world.now += TICK_SECONDS
        return self.world.now


@contextmanager
def virtual_clock() -> Iterator[_Clock]:
    """Have the pool's core ask for the time a world that may change; and async generators know their loops."""
    clock = _Clock()
    modules = [module for name, module in sys.modules.items() if name.startswith("loopaware_pool")]
    patched = [(module, module.monotonic) for module in modules if hasattr(module, "monotonic")]
    hooks = sys.get_asyncgen_hooks()
    try:
        for module, _ in patched:
            module.monotonic = clock
        sys.set_asyncgen_hooks(
            lambda generator: asyncio.get_running_loop()._asyncgen_firstiter_hook(generator), lambda generator: None
        )
        yield clock
    finally:
        sys.set_asyncgen_hooks(*hooks)
        for module, monotonic in patched:
            module.monotonic = monotonic
