"""Two pools that take turns, and what their figures come to."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import asyncpg
import psycopg_pool

import loopaware_pool
import loopaware_pool.psycopg
from loopaware_pool.cli.measure import Spread, ratios, run_burst

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from loopaware_pool.asyncpg import SessionReset
    from loopaware_pool.cli.measure import Burst

__all__ = ["CONNECTIONS", "Contenders", "Duel", "Finding", "Lab", "Question", "Target", "label", "speed_and_cost"]

CONNECTIONS = 10
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """
    What a figure should come to, relative to the peer's, or to the ideal where there is one.

    Attributes:
        limit: A factor.
        is_floor: Whether more is better.
    """

    limit: float
    is_floor: bool

    def is_met(self, factor: float) -> bool:
        """Whether *factor* is good enough, to the two digits that are shown of it."""
        shown = round(factor, 2)
        return shown >= self.limit if self.is_floor else shown <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.is_floor else '<='} {self.limit:g}x"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One figure of both pools: medians over the rounds.

    Attributes:
        peer: The pool that ours is measured against.
        name: What was measured.
        unit: In what.
        theirs: The peer.
        ours: loopaware-pool.
        ratio: Ours divided by theirs, round by round.
        ideal: The best there could be, in *unit*; None where nobody can tell.
        target: What ours should come to; None where that is left open.
    """

    peer: str
    name: str
    unit: str
    theirs: Spread
    ours: Spread
    ratio: Spread
    ideal: float | None
    target: Target | None

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.target.is_met(self.ratio.median if self.ideal is None else self.ours.median / self.ideal)


@dataclass(frozen=True, slots=True)
class Duel(Generic[T]):
    """What both pools did, one entry a round."""

    peer: str
    theirs: Sequence[T]
    ours: Sequence[T]

    def compare(
        self,
        name: str,
        unit: str,
        figure: Callable[[T], float],
        *,
        target: Target | None = None,
        ideal: float | None = None,
    ) -> Finding:
        """Take one figure out of each round of both, and compare them."""
        theirs, ours = ([figure(one) for one in side] for side in (self.theirs, self.ours))
        return Finding(self.peer, name, unit, Spread.of(theirs), Spread.of(ours), ratios(ours, theirs), ideal, target)


@dataclass(frozen=True, slots=True)
class Contenders:
    """
    Both pools, open.

    Attributes:
        peer: Whose pool ours is measured against.
        theirs: That pool.
        ours: loopaware-pool's.
        lab: How often they take turns, and at how much.
    """

    peer: str
    theirs: Any
    ours: Any
    lab: Lab

    async def duel(self, measure: Callable[[Any], Awaitable[T]]) -> Duel[T]:
        """Let each pool be measured once a round. Who goes first changes from round to round."""
        theirs: list[T] = []
        ours: list[T] = []
        for number in range(self.lab.rounds):
            turns = [(self.theirs, theirs), (self.ours, ours)]
            for pool, results in turns if number % 2 == 0 else reversed(turns):
                results.append(await measure(pool))
            self.lab.finish_round()
        return Duel(self.peer, theirs, ours)

    async def burst(self, operation: Callable[[Any], Awaitable[object]], *, operations: int, tasks: int) -> Duel[Burst]:
        """Have *tasks* tasks run *operation*, which is given the pool, *operations* times, after a short warm-up."""

        async def measure(pool: Any, operations: int = self.lab.scaled(operations)) -> Burst:
            return await run_burst(lambda: operation(pool), operations=operations, tasks=tasks)

        for pool in (self.theirs, self.ours):
            await measure(pool, self.lab.scaled(operations) // 10)
        return await self.duel(measure)


class _NoReset(asyncpg.Connection):  # type: ignore[misc]  # the driver is not typed
    """The documented way to have asyncpg's pool reset nothing."""

    def get_reset_query(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Lab:
    """
    Where questions are answered: on the loop that runs.

    Attributes:
        dsn: The server.
        rounds: How often contenders take turns.
        is_quick: Whether to do less in each round.
        finish_round: Called after each round, for the progress bar.
    """

    dsn: str
    rounds: int
    is_quick: bool
    finish_round: Callable[[], None]

    def scaled(self, operations: int) -> int:
        """Tell how many *operations* a round should have."""
        return operations // 2 if self.is_quick else operations

    @asynccontextmanager
    async def asyncpg_contenders(self, session_reset: SessionReset = "pipelined") -> AsyncIterator[Contenders]:
        """Open both pools, of the same size; asyncpg's resets its sessions unless ours is never to."""
        sizes: dict[str, Any] = {"min_size": CONNECTIONS, "max_size": CONNECTIONS}
        kind = _NoReset if session_reset == "never" else asyncpg.Connection
        async with (
            asyncpg.create_pool(self.dsn, **sizes, connection_class=kind) as theirs,
            loopaware_pool.create_pool(self.dsn, **sizes, session_reset=session_reset) as ours,
        ):
            yield Contenders("asyncpg", theirs, ours, self)

    @asynccontextmanager
    async def psycopg_contenders(self) -> AsyncIterator[Contenders]:
        """Open psycopg_pool's pool and ours for psycopg, of the same size, with connections in autocommit mode."""
        options: dict[str, Any] = {"min_size": CONNECTIONS, "max_size": CONNECTIONS, "kwargs": {"autocommit": True}}
        async with (
            psycopg_pool.AsyncConnectionPool(self.dsn, open=False, **options) as theirs,
            loopaware_pool.psycopg.AsyncConnectionPool(self.dsn, open=False, **options) as ours,
        ):
            for pool in (theirs, ours):
                await pool.wait()
            yield Contenders("psycopg_pool", theirs, ours, self)


@dataclass(frozen=True, slots=True)
class Question:
    """
    Something to be measured.

    Attributes:
        name: For `--only`.
        duels: How many `Contenders.duel` it takes, for the progress bar.
        ask: Measures it.
    """

    name: str
    duels: int
    ask: Callable[[Lab], Awaitable[list[Finding]]]


def label(tasks: int) -> str:
    """Say how many tasks."""
    return f"{tasks} task{'s' if tasks > 1 else ''}"


def speed_and_cost(
    duel: Duel[Burst], what: str, speed_target: Target | None = None, cpu_target: Target | None = None
) -> list[Finding]:
    """Compare queries per second, and processor time per query."""
    return [
        duel.compare(f"queries, {what}", "/s", lambda burst: burst.per_second, target=speed_target),
        duel.compare(f"CPU/query, {what}", "us", lambda burst: burst.cpu_us, target=cpu_target),
    ]
