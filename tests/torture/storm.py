"""Plays one history on one pool, and holds what happens against what must."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg_pool

from loopaware_pool.audit import stale_registrations
from torture.history import segments
from torture.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from torture.history import History, Step
    from torture.surfaces import Surface
    from torture.witness import Witness

__all__ = ["Broken", "Storm"]

_pools = itertools.count(1)
_numbers = itertools.count(1)
_LATE = (TimeoutError, psycopg_pool.PoolTimeout)

# asyncpg's word for a transaction that a lease has left open.
_MEANT = "Resetting connection with an active transaction"


class Broken(Exception):
    """
    A promise was broken.

    Attributes:
        promise: Its key in `tally.PROMISES`.
    """

    def __init__(self, promise: str, text: str) -> None:
        super().__init__(text)
        self.promise = promise


class _RollBack(Exception):
    """Ends a transaction."""


@dataclass(eq=False)
class _Caller:
    """A task that wants a connection; *began* is monotonic seconds, *timeout* milliseconds."""

    what: str
    timeout: int | None
    began: float = field(default_factory=monotonic)
    was_cancelled: bool = False
    task: Any = None


class Storm:
    """
    One round.

    Args:
        surface: The kind of pool.
        history: What happens.
        dsn: The server.
        loop_factory: Makes the loops.
        witness: Looks on.
        is_strict: Whether the first broken promise ends it; else it is counted.
        patience: Seconds after which whoever waits, waits for ever.
    """

    def __init__(
        self,
        surface: Surface,
        history: History,
        dsn: str,
        loop_factory: Callable[[], asyncio.AbstractEventLoop],
        witness: Witness,
        *,
        is_strict: bool = True,
        patience: float = 20.0,
    ) -> None:
        self.tally = Tally(rounds=1)
        self.name = f"torture-{os.getpid()}-{next(_pools)}"
        self.largest = history.options["max_size"]
        self._surface, self._history, self._dsn = surface, history, dsn
        self._loop_factory, self._witness = loop_factory, witness
        self._is_strict, self._patience = is_strict, patience
        self._max_size = self.largest
        self._pool: Any = None
        self._callers: list[_Caller] = []
        self._threads: list[threading.Thread] = []
        self._disturbed = float("-inf")
        self._has_faults = any(step["do"] in ("kill", "cut") for step in history.steps)
        self._complaints: list[str] = []

    @property
    def _inside(self) -> Any:
        return self._surface.inside(self._pool)

    # ---- the round ----

    def play(self) -> Tally:
        """
        Let it happen.

        Raises:
            Broken: A promise was broken, if it is strict.
        """
        self._witness.begin()
        with self._listening():
            try:
                self._play()
            except Exception as error:
                if self._is_strict:
                    raise
                self._break("unexplained", f"the round ended with {error!r}")
            self._listen()
        return self.tally

    def _play(self) -> None:
        parts = segments(self._history)
        for number, (steps, end) in enumerate(parts):
            self._live(self._segment(steps, end, is_last=number == len(parts) - 1), end)
            self.tally.loop_ends += 1
            self._judge_callers()
            self._nothing_is_left_of_the_loop()

    def _live(self, work: Any, end: str) -> None:
        """Run *work* on a loop of its own."""
        if end == "polite":
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.get_loop().set_exception_handler(self._complain)
                try:
                    runner.run(work)
                finally:
                    for caller in self._callers:  # the runner cancels them
                        if caller.task.get_loop() is runner.get_loop():
                            caller.was_cancelled |= not caller.task.done()
            return
        loop = self._loop_factory()
        loop.set_exception_handler(self._complain)
        try:
            loop.run_until_complete(work)
        finally:
            loop.close()

    async def _segment(self, steps: list[Step], end: str, *, is_last: bool) -> None:
        if self._pool is None:
            self._pool = self._surface.make(self._dsn, self.name, self._history.options)
        await self._surface.open(self._pool)
        self._resume()
        for step in steps:
            self.tally.steps += 1
            await getattr(self, step["do"])(**{key: value for key, value in step.items() if key != "do"})
            self._permits_balance()
        if is_last or end == "abrupt":
            await self.settle()
        if is_last:
            await self._end(self._history.end)
        await self._threads_end()

    # ---- what happens ----

    async def lease(self, **lease: Any) -> None:
        """Have callers acquire, ask and release."""
        for _ in range(lease.pop("times")):
            self._call(f"lease {lease['kind']}", lease["timeout"], self._lease(**lease))

    def _call(self, what: str, timeout: int | None, work: Any) -> _Caller:
        caller = _Caller(what, timeout)
        caller.task = asyncio.get_running_loop().create_task(work)
        self._callers.append(caller)
        return caller

    async def _lease(self, kind: str, queries: int, pause: int, timeout: int | None) -> None:
        async with self._surface.lease(self._pool, None if timeout is None else timeout / 1000) as connection:
            self.tally.leases += 1
            for _ in range(queries):
                await self._ask(connection)
                await asyncio.sleep(pause / 1000)
            await getattr(self, "_" + kind.replace(" ", "_"))(connection)

    async def _ask(self, connection: Any, owner: str = "") -> None:
        number = next(_numbers)
        answer, found = await self._surface.ask(connection, number)
        self.tally.queries += 1
        if answer != number:
            self._break("wrong", f"asked for {number}, the answer was {answer}")
        if found not in ("", owner):
            self._break("leaked_state", f"found the state of {found}")

    async def _query(self, connection: Any) -> None:
        await self._ask(connection)

    async def _slow(self, connection: Any) -> None:
        await self._surface.execute(connection, "SELECT pg_sleep(0.01)")
        await self._ask(connection)

    async def _transaction(self, connection: Any) -> None:
        async with self._surface.transaction(connection):
            await self._ask(connection)

    async def _rolled_back(self, connection: Any) -> None:
        with suppress(_RollBack):
            async with self._surface.transaction(connection):
                await self._ask(connection)
                raise _RollBack
        await self._ask(connection)

    async def _error(self, connection: Any) -> None:
        with suppress(*self._surface.division):
            await self._surface.execute(connection, "SELECT 1/0")
        await self._ask(connection)

    async def _state(self, connection: Any) -> None:
        owner = str(next(_numbers))
        await self._surface.execute(connection, f"SET torture.owner = '{owner}'")
        await self._surface.execute(connection, "LISTEN torture")
        await self._ask(connection, owner)

    async def _left_open(self, connection: Any) -> None:
        await self._surface.execute(connection, "BEGIN")
        await self._ask(connection)

    async def _given_up(self, connection: Any) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.002):
                await self._surface.execute(connection, "SELECT pg_sleep(0.05)")

    async def _closed(self, connection: Any) -> None:
        await self._surface.close_connection(connection)

    async def hand_off(self, waiting: int, times: int) -> None:
        """Cancel a caller at the instant at which it is handed a connection."""
        self._call("hand-off", 10_000, self._hand_off(waiting, times))

    async def _hand_off(self, waiting: int, times: int) -> None:
        connection = await self._surface.acquire(self._pool, 10.0)
        try:
            lease = {"kind": "query", "queries": 1, "pause": 0, "timeout": 10_000}
            waiters = [self._call("waits", 10_000, self._lease(**lease)) for _ in range(waiting)]
            for _ in range(3):
                await asyncio.sleep(0)
        finally:
            await self._surface.release(self._pool, connection)
        self.tally.hand_offs += 1
        for _ in range(times):
            self._cancel(waiters[0])

    async def cancel(self, victim: int, times: int, apart: int) -> None:
        """Cancel somebody, *times* times, *apart* milliseconds between."""
        living = [caller for caller in self._callers if not caller.task.done()]
        for number in range(times if living else 0):
            if number and apart:
                await asyncio.sleep(apart / 1000)
            self._cancel(living[victim % len(living)])

    def _cancel(self, caller: _Caller) -> None:
        if caller.task.cancel():
            caller.was_cancelled = True
            self.tally.cancellations += 1

    async def pause(self, ms: int) -> None:
        """Let things happen."""
        await asyncio.sleep(ms / 1000)

    async def kill(self, count: int, which: str) -> None:
        """Have the server end sessions."""
        self._disturbed = monotonic()  # a thread may hear of it before this one goes on
        self.tally.faults += self._witness.kill(self.name, count, which)
        self._disturbed = monotonic()

    async def cut(self, count: int) -> None:
        """Cut sockets."""
        self._disturbed = monotonic()
        self.tally.faults += self._witness.cut(count)
        self._disturbed = monotonic()

    async def expire(self) -> None:
        """Have every connection replaced when it is idle."""
        await self._surface.expire(self._pool)

    async def drain(self) -> None:
        """Have every connection replaced."""
        await self._pool.drain()

    async def check(self) -> None:
        """Make a round trip on each idle connection."""
        self._call("check", None, self._pool.check())

    async def resize(self, max_size: int) -> None:
        """Allow another number of connections."""
        self._max_size = max_size
        self.largest = max(self.largest, max_size)
        await self._pool.resize(min(self._history.options["min_size"], max_size), max_size)

    async def suspend(self, ms: int) -> None:
        """Serve nobody for a while."""
        self._inside.suspend()
        asyncio.get_running_loop().call_later(ms / 1000, self._inside.resume)

    def _resume(self) -> None:
        """End a suspension whose timer may have gone with its loop."""
        if self._surface.is_ours:
            self._inside.resume()

    async def thread(self, leases: int, queries: int, end: str) -> None:
        """Use the pool on another loop, in a thread."""

        async def use() -> None:
            await asyncio.gather(*(self._visit(queries) for _ in range(leases)))

        def live() -> None:
            try:
                self._live(use(), end)
            except BaseException as error:
                self._complaints.append(f"in a thread: {error!r}")

        thread = threading.Thread(target=live, name="torture-thread", daemon=True)
        self._threads.append(thread)
        self.tally.threads += 1
        self.tally.loop_ends += 1
        thread.start()

    async def _visit(self, queries: int) -> None:
        """A lease on a loop that is not the storm's; errors that have a cause are not told."""
        began = monotonic()
        try:
            async with self._surface.lease(self._pool, self._patience) as connection:
                self.tally.leases += 1
                for _ in range(queries):
                    await self._ask(connection)
        except self._surface.errors as error:
            if isinstance(error, TimeoutError) or not self._is_explained(began):
                raise

    async def fork(self, leases: int) -> None:
        """Use the pool in a child, which must not disturb its parent."""
        await self._threads_end()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._be_child(leases)
        _, status = os.waitpid(pid, 0)
        self.tally.forks += 1
        self.tally.leases += leases
        if status:
            self._break("complaints", f"a forked child failed: {os.waitstatus_to_exitcode(status)}")

    def _be_child(self, leases: int) -> None:
        """Never returns."""
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(self._patience))
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._childhood(leases))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    async def _childhood(self, leases: int) -> None:
        self._resume()
        await asyncio.gather(*(self._visit(2) for _ in range(leases)))
        await self._surface.close(self._pool)

    # ---- what must hold ----

    async def settle(self) -> None:
        """Let everybody finish; then look at everything."""
        self._resume()
        await self._callers_end()
        await self._threads_end()
        self._judge_callers()
        await self._all_can_be_had()
        if self._surface.is_ours:
            await self._within(self._inside.settled(), "settled()")
            await self._books_agree()
        else:
            await self._size_is_kept()
        self._listen()

    async def _callers_end(self) -> None:
        tasks = [caller.task for caller in self._callers if not caller.task.done()]
        if not tasks:
            return
        _, pending = await asyncio.wait(tasks, timeout=self._patience)
        stuck = [caller.what for caller in self._callers if caller.task in pending]
        for caller in self._callers:
            if caller.task in pending:
                self._cancel(caller)
        if stuck:
            await asyncio.wait(pending, timeout=self._patience)
            self._break("waiters", f"after {self._patience} s still there: {stuck}; {self._pool!r}", len(stuck))

    async def _threads_end(self) -> None:
        if self._threads:
            self._resume()
        deadline = monotonic() + self._patience
        while any(thread.is_alive() for thread in self._threads):
            if monotonic() > deadline:
                self._break("waiters", "a thread does not end")
                break
            await asyncio.sleep(0.002)
        self._threads.clear()

    def _judge_callers(self) -> None:
        callers, self._callers = self._callers, []
        for caller in callers:
            if caller.task.done():
                self._judge(caller)
            else:
                self._callers.append(caller)

    def _judge(self, caller: _Caller) -> None:
        if caller.task.cancelled():
            if not caller.was_cancelled:
                self._break("unexplained", f"{caller.what} was cancelled by nobody")
            return
        error = caller.task.exception()
        is_explained = isinstance(error, self._surface.errors) and self._is_explained(caller.began)
        if caller.was_cancelled and not is_explained:
            self._break("swallowed", f"{caller.what} was cancelled, and ended with {error!r}")
        elif isinstance(error, _LATE) and caller.timeout is not None:
            self.tally.timeouts += 1
            if caller.timeout > 1000:
                self._break("waiters", f"{caller.what}: {error}")
        elif error is not None and not is_explained:
            self._break("unexplained", f"{caller.what} was told {error!r}")

    def _is_explained(self, began: float) -> bool:
        """Whether something was done to connections since, or so shortly before that it may have come later."""
        return began < self._disturbed + 1.0

    async def _all_can_be_had(self) -> None:
        """As many connections as there may be, at once."""
        began = monotonic()
        errors = await self._acquire_all()
        if errors and self._surface.connects_once and self._is_explained(began):
            errors = await self._acquire_all()  # a connect that was cut had begun before
        if errors:
            self._break("lost", f"{len(errors)} of {self._max_size} cannot be had: {errors[0]!r}", len(errors))

    async def _acquire_all(self) -> list[BaseException]:
        """Acquire, and release, as many connections as there may be; what those were told that got none."""
        acquires = (self._surface.acquire(self._pool, self._patience) for _ in range(self._max_size))
        outcomes = await asyncio.gather(*acquires, return_exceptions=True)
        for outcome in outcomes:
            if not isinstance(outcome, BaseException):
                await self._surface.release(self._pool, outcome)
        return [outcome for outcome in outcomes if isinstance(outcome, BaseException)]

    def _permits_balance(self) -> None:
        """After each step."""
        if not self._surface.is_ours:
            return
        core = self._inside._core
        in_use = core.permits.in_use
        if in_use > self.largest:
            self._break("over", f"{in_use} permits of {self.largest}", in_use - self.largest)

    async def _books_agree(self) -> None:
        """At a quiet moment the pool, the process, the selector and the server say the same."""
        pool, loop = self._inside, asyncio.get_running_loop()

        def count() -> tuple[int, int, int, int]:
            stats = pool.stats()
            return (
                stats.size,
                len(self._witness.sockets()),
                pool._core.permits.in_use,
                self._witness.sessions(self.name),
            )

        def is_so() -> bool:
            size, sockets, permits, sessions = count()
            return size == sockets - self._own_sockets() == permits and sessions <= size

        if not await self._eventually(is_so):
            size, sockets, permits, sessions = count()
            promise = "sockets" if sockets > size else "over" if sessions > size else "lost"
            self._break(promise, f"size {size}, sockets {sockets}, permits {permits}, sessions {sessions}")
        stats = pool.stats()
        if stats.lent or stats.waiting:
            self._break("lost", f"nobody is there, but {stats.summary()}")
        keeps = self._surface.dialect == "asyncpg"  # on uvloop; see docs/architecture.md
        if not await self._eventually(lambda: not self._witness.stale(loop, keeps_kernel_entries=keeps)):
            self._break("stale", f"watched: {self._witness.stale(loop, keeps_kernel_entries=keeps)}")

    async def _size_is_kept(self) -> None:
        """What can be told of any pool at a quiet moment, without a look inside."""
        for promise, what, count in (
            ("over", "sessions", lambda: self._witness.sessions(self.name)),
            ("sockets", "sockets", lambda: len(self._witness.peers())),
        ):
            if not await self._eventually(lambda count=count: count() <= self._max_size):
                self._break(promise, f"{count()} {what} of {self._max_size}", count() - self._max_size)
        stale = stale_registrations(asyncio.get_running_loop())
        if stale:
            self._break("stale", "; ".join(map(str, stale)), len(stale))

    def _own_sockets(self) -> int:
        """The loop's own: its wake-up pair."""
        return len(self._witness.sockets()) - len(self._witness.peers())

    def _nothing_is_left_of_the_loop(self) -> None:
        deadline = monotonic() + 2.0
        while self._witness.sockets() and monotonic() < deadline:
            threading.Event().wait(0.005)
        left = len(self._witness.sockets())
        if left:
            self._break("sockets", f"{left} sockets are left of a loop that has ended", left)
            self._witness.begin()

    async def _end(self, how: str) -> None:
        """Close the pool; nothing stays."""
        permits = self._inside._core.permits if self._surface.is_ours else None
        lease = {"kind": "slow", "queries": 1, "pause": 1, "timeout": None}
        if how != "close":
            await self.lease(times=3, **lease)
            await asyncio.sleep(0.003)
            self._disturbed = monotonic() + self._patience
        if how == "terminate":
            self._surface.terminate(self._pool)
        elif how == "cancelled close":
            closing = asyncio.ensure_future(self._surface.close(self._pool))
            await asyncio.sleep(0.002)
            closing.cancel()
            await asyncio.wait([closing], timeout=self._patience)
        else:
            await self._within(self._surface.close(self._pool), "close()")
        await self._callers_end()
        self._judge_callers()
        if permits is not None and not await self._eventually(lambda: not permits.in_use):
            self._break("lost", f"{permits.in_use} permits are held by a closed pool")
        if not await self._eventually(lambda: not self._witness.peers()):
            self._break("sockets", f"{len(self._witness.peers())} sockets of a closed pool", len(self._witness.peers()))
        if not await self._eventually(lambda: not self._witness.sessions(self.name)):
            self._break("sockets", "the server has sessions of a closed pool")

    async def _within(self, work: Any, what: str) -> None:
        try:
            await asyncio.wait_for(work, self._patience)
        except TimeoutError:
            self._break("waiters", f"{what} does not end")

    async def _eventually(self, condition: Callable[[], bool]) -> bool:
        deadline = monotonic() + 5.0
        while not condition():
            if monotonic() > deadline:
                return False
            await asyncio.sleep(0.002)
        return True

    # ---- complaints ----

    def _break(self, promise: str, text: str, count: int = 1) -> None:
        self.tally.note(promise, text, count)
        if self._is_strict:
            raise Broken(promise, text)

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        is_judged = any(caller.task is context.get("task") for caller in self._callers)
        if not is_judged and not context["message"].startswith(_MEANT):
            self._complaints.append(f"{context['message']}: {context.get('exception')!r}")

    def _listening(self) -> Any:
        return _Listening(self._complaints)

    def _listen(self) -> None:
        """Nobody complained."""
        complaints, self._complaints[:] = self._complaints[:], []
        if complaints:
            self._break("complaints", "; ".join(complaints), len(complaints))


class _Listening:
    """Takes down what the interpreter complains of."""

    def __init__(self, complaints: list[str]) -> None:
        self._complaints = complaints

    def __enter__(self) -> None:
        self._hooks = sys.unraisablehook, warnings.showwarning
        sys.unraisablehook = lambda raised: self._complaints.append(
            f"unraisable: {raised.exc_value!r} in {raised.object!r}"
        )
        warnings.showwarning = self._warned  # type: ignore[assignment]

    def __exit__(self, *exc: object) -> None:
        sys.unraisablehook, warnings.showwarning = self._hooks

    def _warned(self, message: Warning | str, category: type[Warning], *rest: object, **more: object) -> None:
        # uvloop's word for a socket that it closes with its loop.
        if not str(message).startswith("unclosed resource <"):
            self._complaints.append(f"{category.__name__}: {message}")
