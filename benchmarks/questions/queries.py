"""How many `SELECT 1` come through a pool, each with a connection of its own: acquire, query, release."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from benchmarks.contenders import (
    ARTICLE,
    ASYNCPG,
    ASYNCPG_NO_RESET,
    BARE_ASYNCPG,
    BARE_ASYNCPG_64_KIB,
    BARE_PSYCOPG,
    OURS,
    OURS_AWAITED,
    OURS_CONFIRMED,
    OURS_NEVER,
    OURS_PSYCOPG,
    OURS_WHEN_DIRTY,
    PSQLPY,
    PSYCOPG_POOL,
    SQLALCHEMY,
)
from benchmarks.lab import CPU, FAULTS, P99, SPEED, Goal, Question, application_name, bursts_of, label, with_overall
from benchmarks.server_cpu import server_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.contenders import Client, Contender
    from benchmarks.lab import Heat, Lab

QUERIES = 600
TASKS = (1, 10, 20, 50, 500)
SERVER_CPU = "server CPU us"
ASYNCPG_CONTENDERS = (
    ASYNCPG,
    ASYNCPG_NO_RESET,
    SQLALCHEMY,
    ARTICLE,
    BARE_ASYNCPG,
    BARE_ASYNCPG_64_KIB,
    PSQLPY,
    OURS,
    OURS_AWAITED,
    OURS_CONFIRMED,
    OURS_WHEN_DIRTY,
    OURS_NEVER,
)
PSYCOPG_CONTENDERS = (PSYCOPG_POOL, BARE_PSYCOPG, OURS_PSYCOPG)


def _floor(ours: Contender, peer: Contender, factor: float) -> Goal:
    return Goal(ours.name, SPEED, factor, is_floor=True, peer=peer.name)


def _ceiling(ours: Contender, peer: Contender, figure: str, factor: float) -> Goal:
    return Goal(ours.name, figure, factor, is_floor=False, peer=peer.name)


class _Bars(NamedTuple):
    """
    What is hoped for with so many tasks in one kind of heap.

    Attributes:
        speed, cpu: Of ours, as factors of asyncpg's.
        dirty_speed, dirty_cpu: The same with `session_reset="when_dirty"`.
        bare_cpu: The same as a factor of bare connections'; None where these cannot take part.
        psycopg_speed, psycopg_cpu: Of ours for psycopg, as factors of psycopg_pool's.
        p99: Of ours, as a factor of asyncpg's.
    """

    speed: float
    cpu: float
    dirty_speed: float
    dirty_cpu: float
    bare_cpu: float | None
    psycopg_speed: float
    psycopg_cpu: float
    p99: float | None = None

    def goals(self) -> tuple[Goal, ...]:
        """Make a goal of each, and one of the page faults of each of ours: there should be none."""
        return (
            _floor(OURS, ASYNCPG, self.speed),
            _ceiling(OURS, ASYNCPG, CPU, self.cpu),
            _floor(OURS_WHEN_DIRTY, ASYNCPG, self.dirty_speed),
            _ceiling(OURS_WHEN_DIRTY, ASYNCPG, CPU, self.dirty_cpu),
            *([] if self.bare_cpu is None else [_ceiling(OURS_WHEN_DIRTY, BARE_ASYNCPG, CPU, self.bare_cpu)]),
            *([] if self.p99 is None else [_ceiling(OURS, ASYNCPG, P99, self.p99)]),
            _floor(OURS_PSYCOPG, PSYCOPG_POOL, self.psycopg_speed),
            _ceiling(OURS_PSYCOPG, PSYCOPG_POOL, CPU, self.psycopg_cpu),
            *(Goal(ours.name, FAULTS, 0.0, is_floor=False) for ours in (OURS, OURS_WHEN_DIRTY, OURS_PSYCOPG)),
        )


BARS: dict[tuple[str, int], _Bars] = {
    ("steady", 1): _Bars(2.6, 0.42, 2.7, 0.38, 1.15, 1.25, 0.65),
    ("mapped", 1): _Bars(2.6, 0.42, 2.7, 0.38, 1.15, 1.25, 0.65),
    ("steady", 10): _Bars(1.8, 0.52, 2.7, 0.37, 1.25, 1.9, 0.5),
    ("mapped", 10): _Bars(2.4, 0.38, 3.5, 0.28, 0.75, 1.9, 0.5),
    ("steady", 50): _Bars(1.6, 0.55, 2.5, 0.4, None, 1.8, 0.52, p99=0.15),
    ("mapped", 50): _Bars(1.9, 0.43, 3.4, 0.29, None, 1.8, 0.52, p99=0.15),
}


async def ask(lab: Lab) -> list[Heat]:
    """Of asyncpg, with each way to reset a session, and without a pool."""
    return await _ask(lab, ASYNCPG_CONTENDERS, "asyncpg")


async def ask_psycopg(lab: Lab) -> list[Heat]:
    """Of psycopg, in autocommit mode."""
    return await _ask(lab, PSYCOPG_CONTENDERS, "psycopg")


async def _ask(lab: Lab, contenders: Sequence[Contender], driver: str) -> list[Heat]:
    heats = []
    async with lab.open(contenders) as clients:
        for tasks in TASKS:
            await lab.warm_up(clients, _fetch, tasks=tasks)
            before = await _server_seconds(lab, clients)
            bursts = await lab.burst(clients, _fetch, operations=QUERIES, tasks=tasks)
            after = await _server_seconds(lab, clients)
            bars = BARS.get((lab.heap or "steady", tasks))
            goals = [goal for goal in bars.goals() if goal.ours in {one.name for one in bursts}] if bars else []
            heat = bursts_of(f"SELECT 1 through {driver}, {label(tasks)}", bursts, goals=goals)
            if before is not None and after is not None:
                spent = {
                    contender.name: (after[contender] - before[contender])
                    / sum(len(burst.latencies) for burst in several)
                    * 1e6
                    for contender, several in bursts.items()
                }
                heat = with_overall(heat, SERVER_CPU, spent)
            heats.append(heat)
    return heats


async def _server_seconds(lab: Lab, clients: Mapping[Contender, Client]) -> dict[Contender, float] | None:
    names = {application_name(contender): contender for contender in clients}
    seconds = await server_seconds(lab.setting.dsn, names)
    return None if seconds is None else {contender: seconds[name] for name, contender in names.items()}


async def _fetch(client: Client) -> None:
    await client.fetch("SELECT 1")


QUESTION = Question("queries", ask)
PSYCOPG = Question("psycopg", ask_psycopg)
