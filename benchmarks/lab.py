"""Contenders that take turns, and what is kept of it."""

from __future__ import annotations

import functools
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from benchmarks.contenders import CONTENDERS, Setting
from loopaware_pool.cli.measure import Burst, Spread, percentile, ratios, run_burst

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from benchmarks.contenders import Client, Contender

__all__ = [
    "CPU",
    "FAULTS",
    "P50",
    "P99",
    "P999",
    "SPEED",
    "Goal",
    "Heat",
    "Lab",
    "NotHere",
    "Question",
    "application_name",
    "bursts_of",
    "label",
    "with_overall",
]

T = TypeVar("T")

SPEED = "queries/s"
CPU = "CPU us"
FAULTS = "page faults"
P50 = "p50 ms"
P99 = "p99 ms"
P999 = "p99.9 ms"


class NotHere(Exception):
    """A question cannot be answered on this machine or server; the message says why."""


@dataclass(frozen=True, slots=True)
class Goal:
    """
    What a figure should come to.

    Attributes:
        ours: Whose.
        figure: Which.
        limit: In the figure's unit; with a peer, a factor of the peer's.
        is_floor: Whether more is better.
        peer: Whom it is divided by, round by round; None where the figure counts as it is.
    """

    ours: str
    figure: str
    limit: float
    is_floor: bool
    peer: str | None = None

    def is_met(self, reached: float) -> bool:
        """Whether *reached* is good enough, to the two digits that are shown of it."""
        shown = round(reached, 2)
        return shown >= self.limit if self.is_floor else shown <= self.limit

    @property
    def text(self) -> str:
        """What is asked for, in a few words."""
        return f"{'>=' if self.is_floor else '<='} {self.limit:g}{'' if self.peer is None else 'x'}"


@dataclass(frozen=True, slots=True)
class Heat:
    """
    Some contenders measured in turn, in the same way.

    Attributes:
        title: What was measured.
        rounds: By contender, the figures of each round by their names, which tell the unit. The first contender is the
            one that others are compared with, and the first figure the one they are compared by.
        overall: By contender, figures that only all rounds together give.
        goals: What was hoped for.
        note: What a reader must know; empty for nothing.
    """

    title: str
    rounds: Mapping[str, Sequence[Mapping[str, float]]]
    overall: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    goals: Sequence[Goal] = ()
    note: str = ""

    def values(self, contender: str, figure: str) -> list[float]:
        """One figure of each round."""
        return [figures[figure] for figures in self.rounds[contender]]

    def ratio(self, ours: str, peer: str, figure: str) -> Spread:
        """Divide round by round: what slows a round down slows both."""
        return ratios(self.values(ours, figure), self.values(peer, figure))

    def reached(self, goal: Goal) -> Spread | None:
        """What *goal* is to be judged by; None where one of the two did not take part."""
        if goal.ours not in self.rounds or (goal.peer is not None and goal.peer not in self.rounds):
            return None
        if goal.peer is None:
            return Spread.of(self.values(goal.ours, goal.figure))
        return self.ratio(goal.ours, goal.peer, goal.figure)


@dataclass(frozen=True, slots=True)
class Lab:
    """
    Where questions are answered: on the loop that runs.

    Attributes:
        setting: The server.
        rounds: How often contenders take turns.
        effort: How much to do in each round; 1 for all of it.
        chosen: Names of the contenders that take part.
        heap: How malloc is set; None as it is.
    """

    setting: Setting
    rounds: int
    effort: float
    chosen: Sequence[str]
    heap: str | None = None

    @property
    def few_rounds(self) -> int:
        """How often contenders take turns at what takes seconds."""
        return min(self.rounds, 3 if self.effort == 1 else 1)

    def scaled(self, operations: int) -> int:
        """Tell how many *operations* a round should have."""
        return max(int(operations * self.effort), 1)

    def among(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Tell who of them takes part."""
        return [contender for contender in contenders if contender.name in self.chosen and contender.is_installed]

    @asynccontextmanager
    async def open(
        self, contenders: Sequence[Contender], setting: Setting | None = None
    ) -> AsyncIterator[dict[Contender, Client]]:
        """Open those of *contenders* that take part, all at once: those whose turn it is not stay idle."""
        async with AsyncExitStack() as stack:
            clients = {}
            for contender in self.among(contenders):
                opening = contender.open(setting or self.setting, application_name(contender))
                clients[contender] = await stack.enter_async_context(opening)
            yield clients

    async def take_turns(
        self, clients: Mapping[Contender, Client], measure: Callable[[Client], Awaitable[T]], rounds: int | None = None
    ) -> dict[Contender, list[T]]:
        """Let each be measured once a round, of which there are `rounds`. Who begins changes from round to round."""
        results: dict[Contender, list[T]] = {contender: [] for contender in clients}
        order = list(clients)
        for _ in range(rounds or self.rounds):
            for contender in order:
                results[contender].append(await measure(clients[contender]))
            order = [*order[1:], *order[:1]]
        return results

    async def burst(
        self,
        clients: Mapping[Contender, Client],
        operation: Callable[[Client], Awaitable[object]],
        *,
        operations: int,
        tasks: int,
    ) -> dict[Contender, list[Burst]]:
        """Have *tasks* tasks run *operation*, *operations* times in all. Who cannot have so many tasks is left out."""
        number = max(self.scaled(operations), tasks)

        async def measure(client: Client) -> Burst:
            return await run_burst(functools.partial(operation, client), operations=number, tasks=tasks)

        return await self.take_turns(_able(clients, tasks), measure)

    async def warm_up(
        self, clients: Mapping[Contender, Client], operation: Callable[[Client], Awaitable[object]], *, tasks: int
    ) -> None:
        """Have each task run *operation* a few times: the first time, drivers prepare and look up what they keep."""
        for client in _able(clients, tasks).values():
            await run_burst(functools.partial(operation, client), operations=3 * tasks, tasks=tasks)


@dataclass(frozen=True, slots=True)
class Question:
    """
    Something to be measured.

    Attributes:
        name: For `--only`.
        ask: Measures it.
        loops: On which event loops, by name, it makes sense.
    """

    name: str
    ask: Callable[[Lab], Awaitable[list[Heat]]]
    loops: Sequence[str] = ("asyncio", "uvloop")


def _able(clients: Mapping[Contender, Client], tasks: int) -> dict[Contender, Client]:
    return {one: client for one, client in clients.items() if one.max_tasks is None or tasks <= one.max_tasks}


def application_name(contender: Contender) -> str:
    """What the server knows the sessions of *contender* by."""
    return f"bench {CONTENDERS.index(contender)}"


def bursts_of(
    title: str, bursts: Mapping[Contender, Sequence[Burst]], *, goals: Sequence[Goal] = (), note: str = ""
) -> Heat:
    """Take the figures out of bursts."""
    rounds = {
        contender.name: [
            {
                SPEED: burst.per_second,
                CPU: burst.cpu_us,
                FAULTS: burst.faults_each,
                P50: burst.p50_ms,
                P99: burst.p99_ms,
            }
            for burst in several
        ]
        for contender, several in bursts.items()
    }
    overall = {
        contender.name: {P999: percentile([one for burst in several for one in burst.latencies], 99.9) * 1e3}
        for contender, several in bursts.items()
    }
    return Heat(title, rounds, overall, goals, note)


def with_overall(heat: Heat, figure: str, values: Mapping[str, float]) -> Heat:
    """Add a figure of all rounds together."""
    return replace(
        heat, overall={name: {**heat.overall.get(name, {}), figure: value} for name, value in values.items()}
    )


def label(tasks: int) -> str:
    """Say how many tasks."""
    return f"{tasks} task{'s' if tasks > 1 else ''}"
