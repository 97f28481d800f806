"""
Runs a program on a pool, step by step, and writes down what could be seen.

Each task is an actor that does what the script tells it, one step at a time. The next step comes when the actor is
done, or plainly waits for something. So steps happen in the same order on both pools.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import signal
import sys
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import uvloop
from psycopg import _cursor_base, _pipeline_base, _server_cursor_base, generators

from differential.describe import Describer, name_of_class
from differential.sides import KINDS
from differential.values import make_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from differential.control import Control
    from differential.program import Program, Step

__all__ = ["HASTY", "PATIENT", "PENDING", "SKIPPED", "Pace", "Transcript", "perform"]

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
TASKS = 3
# After that a run is hung, on an idle machine; it is ended from outside.
HUNG_SECONDS = 25.0
_CLOSE_SECONDS = 3.0
SKIPPED = "skipped"
PENDING = "pending"


@dataclass(frozen=True)
class Pace:
    """
    How long to wait for what is under way.

    Attributes:
        patience: Seconds after which a step that has not ended waits for something.
        calm: Seconds that what goes on behind a step is given.
    """

    patience: float
    calm: float

    def stretched(self, factor: float) -> Pace:
        """The same, for a machine on which everything takes longer."""
        return Pace(self.patience * factor, self.calm * factor)


HASTY = Pace(patience=0.06, calm=0.002)
PATIENT = Pace(patience=0.6, calm=0.06)


@dataclass
class Transcript:
    """
    What could be seen of a run.

    Attributes:
        entries: By the number of the step and what is told: an outcome, the callbacks that ran, counts.
        known: By the same, the step in which that came to be known.
    """

    entries: dict[tuple[int, str], Any] = field(default_factory=dict)
    known: dict[tuple[int, str], int] = field(default_factory=dict)

    def tell(self, step: int, what: str, told: Any, known: int | None = None) -> None:
        """Write something down, once."""
        self.entries[step, what] = told
        self.known[step, what] = step if known is None else known

    def outcome(self, step: int) -> Any:
        """What came of a step; None if nothing did."""
        return self.entries.get((step, "outcome"))

    def is_busy(self, step: int, at: int) -> bool:
        """Whether a step was still under way when another began."""
        is_skipped = self.entries.get((step, "at once")) == SKIPPED
        return step < at and not is_skipped and self.known.get((step, "outcome"), at) >= at

    def add(self, step: int, what: str, told: Any) -> None:
        """Write one of many things down, whose order does not count."""
        self.known[step, what] = step
        found = self.entries.setdefault((step, what), [])
        found.append(told)
        found.sort(key=repr)


class Hung(BaseException):
    """A run that does not end by itself."""


class UsersError(Exception):
    """Raised by a callback of the program's."""


class Callback:
    """
    What a pool calls.

    Args:
        stage: The run.
        name: The pool's name for it.
        does: "run": statements for the connection; "add": its methods that take a callback; "await": methods that
            are awaited; "raises": the numbers of the calls that raise, or "always", and "error" with what.
    """

    def __init__(self, stage: Stage, name: str, does: dict[str, Any]) -> None:
        self._stage, self._name, self._does = stage, name, does
        self._calls = 0

    async def called(self, *args: Any, **kwargs: Any) -> Any:
        """Do it."""
        self._calls += 1
        self._stage.called(self._name, *args, *kwargs)
        on = await asyncpg.connect(*args, **kwargs) if self._name == "connect" else args[0]
        for statement in self._does.get("run", ()):
            await self._stage.kind.run(on, statement)
        for method in self._does.get("add", ()):
            getattr(on, method)(self._stage.recorder(f"{self._name}'s"))
        for method in self._does.get("await", ()):
            await getattr(on, method)()
        raises = self._does.get("raises", ())
        if raises == "always" or self._calls in raises:
            if self._name == "connect":
                on.terminate()
            raise _errors()[self._does.get("error", "user")]
        return on

    def as_function(self) -> Callable[..., Any]:
        """What is given to the pool."""

        async def callback(*args: Any, **kwargs: Any) -> Any:
            return await self.called(*args, **kwargs)

        return callback


def _errors() -> dict[str, BaseException]:
    return {
        "user": UsersError("raised by a callback"),
        "timeout": TimeoutError("raised by a callback"),
        "os": ConnectionResetError("raised by a callback"),
        "cancelled": asyncio.CancelledError("raised by a callback"),
        "slip": TypeError("raised by a callback"),
    }


class Actor:
    """
    A task that does what it is told.

    Attributes:
        done: Set while it has nothing to do.
        keeps: The name of what comes of its step.
    """

    def __init__(self, stage: Stage, number: int) -> None:
        self._stage = stage
        self._orders: asyncio.Queue[tuple[int, Step]] = asyncio.Queue()
        self.done = asyncio.Event()
        self.done.set()
        self.keeps: str | None = None
        self.task = asyncio.create_task(self._run(), name=f"actor {number}")

    def order(self, number: int, step: Step) -> None:
        """Have it do a step."""
        self.done.clear()
        self.keeps = step.get("keep")
        self._orders.put_nowait((number, step))

    async def _run(self) -> None:
        while True:
            number, step = await self._orders.get()
            try:
                await self._stage.act(number, step)
            finally:
                self.done.set()


def _names_in(step: Step) -> set[str]:
    """The things that a step uses."""
    used = {argument["name"] for argument in step.get("args", []) if isinstance(argument, dict) and "name" in argument}
    return used | {step["on"]} if "on" in step else used


class Stage:
    """A run of a program on one pool."""

    def __init__(self, program: Program, factory: Callable[..., Any], control: Control, pace: Pace) -> None:
        self.program, self.kind = program, KINDS[program.kind]
        self._factory, self._control, self._pace = factory, control, pace
        self._pids: dict[int, int] = {}
        self._describe = Describer(self._pids)
        self.transcript = Transcript()
        self.now = -1
        self._calms = 0
        self._things: dict[str, Any] = {}
        self._leases: list[Any] = []
        self._kept: list[Any] = []
        self._recorders: dict[str, Any] = {}

    # ---- what the program's values stand for ----

    def _special(self, written: dict[str, Any]) -> Any:
        if written["$"] == "thing":
            return self._things.get(written["name"])
        if written["$"] == "recorder":
            return self.recorder(written["name"])
        raise ValueError(written)

    def recorder(self, name: str) -> Any:
        """A callback of the program's that only writes down that it was called; the same each time."""
        if name not in self._recorders:
            self._recorders[name] = lambda *args: self.called(name, *args)
        return self._recorders[name]

    def called(self, name: str, *args: Any) -> None:
        """Write down that a callback ran, and with what."""
        told = [self._describe_argument(argument) for argument in args]
        self.transcript.add(len(self.program.steps), "callbacks", [name, told])

    def _describe_argument(self, argument: Any) -> Any:
        if (query := getattr(argument, "query", None)) is not None and hasattr(argument, "elapsed"):
            return [query, self._describe.value(argument.exception)]
        if isinstance(argument, int):  # a listener is told who notifies
            return self._describe.pid(argument)
        return self._describe.value(argument)

    # ---- the run ----

    async def play(self) -> None:
        """Run the program."""
        asyncio.get_running_loop().set_exception_handler(self._complain)
        try:
            pool = self._make()
        except Exception as error:
            self.transcript.tell(-1, "made", self._describe.error(error))
            return
        self._things["pool"] = pool
        self._actors = [Actor(self, number) for number in range(TASKS)]
        try:
            await self._steps()
            await self._finish(pool)
        finally:
            for actor in self._actors:
                actor.task.cancel()
            await asyncio.wait([actor.task for actor in self._actors])

    def _make(self) -> Any:
        options = make_value(self.program.options, self._special)
        callbacks = {name: Callback(self, name, does).as_function() for name, does in self.program.callbacks.items()}
        return self.kind.make(self._factory, self._control.dsn, options | callbacks)

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        told = name_of_class(type(error)) if error is not None else self._describe.text(context["message"])
        self.transcript.add(len(self.program.steps), "complaints", told)

    async def _steps(self) -> None:
        opening = {"task": 0, "do": "open"}
        for number, step in enumerate((opening, *self.program.steps), -1):
            self.now = number
            await self._step(number, step)

    async def _step(self, number: int, step: Step) -> None:
        do = step["do"]
        if do in _DIRECTIONS:
            await asyncio.sleep(self._pace.calm)
            await _DIRECTIONS[do](self, number, step)
        else:
            actor = self._actors[step["task"]]
            for busy in self._actors:
                if busy is actor or busy.keeps in _names_in(step):
                    await self._see(busy)
            if not actor.done.is_set():
                self.transcript.tell(number, "at once", SKIPPED)
                return
            actor.order(number, step)
            if step.get("together"):
                return
            await self._see(actor)
            if not actor.done.is_set():
                self.transcript.tell(number, "at once", PENDING)
        if not step.get("hurried"):
            await self._calm(number)

    async def _see(self, actor: Actor) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pace.patience):
                await actor.done.wait()

    async def _calm(self, number: int) -> None:
        """Give what goes on behind the steps some time, and count."""
        for _ in range(3):
            await asyncio.sleep(0)
        await asyncio.sleep(self._pace.calm)
        try:
            counts = self.kind.counts(self._things["pool"])
        except Exception as error:
            counts = self._describe.error(error)
        self.transcript.tell(number, "counts", counts)
        self._calms += 1

    # ---- what the script itself does ----

    async def _cancel(self, number: int, step: Step) -> None:
        actor = self._actors[step["task"]]
        await self._see(actor)
        if actor.done.is_set():
            self.transcript.tell(number, "at once", SKIPPED)
            return
        actor.task.cancel()
        await self._see(actor)

    async def _kill(self, number: int, step: Step) -> None:
        """End sessions from outside, that of a lease or all, and wait until they are gone, and seen to be."""
        on = self._things.get(step["on"]) if "on" in step else None
        pids = [self.kind.pid(on)] if on is not None else None
        if on is None and "on" in step:
            self.transcript.tell(number, "at once", SKIPPED)
            return
        self._control.kill(pids)
        await asyncio.sleep(0.02)

    async def _sleep(self, number: int, step: Step) -> None:
        await asyncio.sleep(step["seconds"])

    # ---- what actors do ----

    async def act(self, number: int, step: Step) -> None:
        """Do a step, and write down what came of it."""
        began = self._calms
        try:
            outcome = await self._outcome(step)
        except asyncio.CancelledError as error:
            asyncio.current_task().uncancel()
            outcome = self._describe.error(error)
        except Exception as error:
            self._kept.append(error)
            outcome = self._describe.error(error)
        self.transcript.tell(number, "outcome", outcome, self.now)
        if self._calms != began:
            self.transcript.tell(number, "ended after", self._calms - began, self.now)

    async def _outcome(self, step: Step) -> Any:
        if step["do"] == "open":
            return await self.kind.open(self._things["pool"])
        on = self._things.get(step["on"])
        if on is None:
            return SKIPPED
        found = await _ACTS[step["do"]](self, on, step)
        if "keep" in step:
            self._keep(step["keep"], found)
        if step["on"] in ("pool", "lease") and hasattr(found, "execute"):
            return await self._begin_lease(found, step.get("probe"))
        return self._describe.value(found)

    def _keep(self, name: str, found: Any) -> None:
        self._things[name] = found
        self._kept.append(found)  # what is lent is held until the end

    async def _begin_lease(self, connection: Any, probe: str | None) -> Any:
        """Look at a session as the first thing that happens in a lease."""
        self._leases.append(connection)
        pid = self.kind.pid(connection)
        self._pids.setdefault(pid, len(self._pids) + 1)
        told: dict[str, Any] = {"session": self._pids[pid], "remembered": self.kind.memory(connection)}
        if probe == "outside":
            told["seen"] = self._control.look(pid)
        if probe == "asked":
            told["found"] = await self.kind.probe(connection)
            if self.program.kind != "asyncpg":
                await connection.rollback()
        return self._describe.value(told)

    async def _call(self, on: Any, step: Step) -> Any:
        arguments = make_value(step.get("args", []), self._special)
        keywords = make_value(step.get("kwargs", {}), self._special)
        found = getattr(on, step["name"])(*arguments, **keywords)
        if step["name"] == self.kind.release and arguments:
            with self._ending_lease(arguments[0]):
                found = await found
        elif inspect.isawaitable(found) and not step.get("lazily"):
            found = await found
        if step["name"] == "fileno" and isinstance(found, int):
            return "a number"  # the lowest that is free: that of the process, not of the pool
        sinks = [value for value in keywords.values() if hasattr(value, "getvalue")]
        return [found, *sinks] if sinks else found

    @contextlib.contextmanager
    def _ending_lease(self, connection: Any) -> Iterator[None]:
        """Note that it need not be given back at the end, unless this fails: upstream's may take it back twice."""
        number = next((number for number, lease in enumerate(self._leases) if lease is connection), None)
        if number is not None:
            del self._leases[number]  # this one: the next lease of the same connection may have begun
        try:
            yield
        except Exception:
            if number is not None:
                self._leases.append(connection)
            raise

    async def _get(self, on: Any, step: Step) -> Any:
        return getattr(on, step["name"])

    async def _enter(self, on: Any, step: Step) -> Any:
        return await on.__aenter__()

    async def _exit(self, on: Any, step: Step) -> Any:
        error = UsersError("raised in the block") if step.get("error") else None
        return await on.__aexit__(type(error) if error else None, error, None)

    async def _next(self, on: Any, step: Step) -> Any:
        return await anext(on, "the end")

    async def _aclose(self, on: Any, step: Step) -> Any:
        return await on.aclose()

    async def _iterate(self, on: Any, step: Step) -> Any:
        return aiter(on)

    def forget(self) -> None:
        """Let go of all that the program had."""
        self._things.clear()
        self._leases.clear()
        self._kept.clear()

    # ---- the end ----

    async def _finish(self, pool: Any) -> None:
        """End as a careful program does: who waits is cancelled, leases come back, the pool is closed."""
        number = self.now = len(self.program.steps)
        for actor in self._actors:
            await self._see(actor)
            if not actor.done.is_set():
                actor.task.cancel()
                await self._see(actor)
        for lease in {id(lease): lease for lease in self._leases}.values():
            with contextlib.suppress(BaseException):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self.kind.give_back(pool, lease)
        await self._calm(number)
        self.transcript.tell(number, "closed", await self._closed(pool))
        self.transcript.tell(number, "actors", [actor.done.is_set() for actor in self._actors])

    async def _closed(self, pool: Any) -> Any:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await pool.close()
        except TimeoutError:
            return "hangs"
        except Exception as error:
            return self._describe.error(error)
        return "closed"


_DIRECTIONS = {"cancel": Stage._cancel, "kill": Stage._kill, "sleep": Stage._sleep}
_ACTS = {
    "call": Stage._call,
    "get": Stage._get,
    "enter": Stage._enter,
    "exit": Stage._exit,
    "next": Stage._next,
    "aclose": Stage._aclose,
    "iterate": Stage._iterate,
}


def perform(program: Program, side: str, control: Control, pace: Pace) -> Transcript:
    """
    Run a program on a fresh loop, against a server that is as it was.

    Args:
        program: What to run.
        side: "upstream" or "ours".
        control: A session of its own at the server.
        pace: How long to wait for what is under way.
    """
    control.prepare()
    stage = Stage(program, getattr(KINDS[program.kind], side), control, pace)
    with _heard(stage), _alarm(HUNG_SECONDS * max(1.0, pace.patience / PATIENT.patience)), _generators_in_python():
        try:
            _run(LOOPS[program.loop], stage)
        except Hung:
            stage.transcript.tell(stage.now, "hung", "the run did not end")
        stage.transcript.tell(len(program.steps), "sessions left", control.sessions_left())
        stage.forget()
        gc.collect()  # what is told of garbage is told of this run
    stage.transcript.tell(len(program.steps), "items", control.items())
    return stage.transcript


def _run(loop_factory: Callable[[], asyncio.AbstractEventLoop], stage: Stage) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(stage.play())


@contextlib.contextmanager
def _heard(stage: Stage) -> Iterator[None]:
    """Write warnings down, and exceptions that nobody could be told of."""

    def warned(message: Warning | str, category: type[Warning], *_: Any) -> None:
        stage.transcript.add(len(stage.program.steps), "warnings", category.__name__)

    def unraisable(what: Any) -> None:
        stage.transcript.add(len(stage.program.steps), "complaints", name_of_class(what.exc_type))

    before = sys.unraisablehook
    sys.unraisablehook = unraisable
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = warned
        try:
            yield
        finally:
            sys.unraisablehook = before


@contextlib.contextmanager
def _generators_in_python() -> Iterator[None]:
    """
    Have psycopg read answers by its generators in Python.

    Those in C keep a pointer to what libpq frees when psycopg_pool closes a connection under its query. Resumed after
    that they may take the interpreter down.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in (generators, _cursor_base, _pipeline_base, _server_cursor_base):
            for name in ("execute", "fetch", "fetch_many", "pipeline_communicate", "send"):
                patch.setattr(module, name, getattr(generators, f"_{name}"), raising=False)
        yield


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # again, should the end of the loop hang too
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
