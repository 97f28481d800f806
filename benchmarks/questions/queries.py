"""How many `SELECT 1` come through a pool, each with a connection of its own: acquire, query, release."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from benchmarks.lab import Question, Target
from loopaware_pool.cli.measure import run_burst

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.lab import Contenders, Finding, Lab
    from loopaware_pool.cli.measure import Burst

OPERATIONS = 3000
# Number of tasks -> queries per second relative to asyncpg's.
SPEED_TARGETS = {
    1: Target(2.0, is_floor=True),
    10: Target(1.4, is_floor=True),
    50: Target(1.4, is_floor=True),
}
P99_TARGET = Target(0.35, is_floor=False)
CPU_TARGET = Target(0.65, is_floor=False)


async def ask(lab: Lab) -> list[Finding]:
    """With the session reset at each release, as both pools do by default."""
    findings = []
    async with lab.contenders() as contenders:
        for tasks, speed_target in SPEED_TARGETS.items():
            duel = await contenders.duel(await _warmed_up(contenders, lab, tasks))
            label = _label(tasks)
            findings += [
                duel.compare(f"queries, {label}", "/s", lambda burst: burst.per_second, target=speed_target),
                duel.compare(f"CPU/query, {label}", "us", lambda burst: burst.cpu_us, target=CPU_TARGET),
            ]
            if tasks == 50:
                findings.append(duel.compare(f"p99, {label}", "ms", lambda burst: burst.p99_ms, target=P99_TARGET))
    return findings


async def ask_without_reset(lab: Lab) -> list[Finding]:
    """With no reset query on either side: what is left is the pools' own cost."""
    findings = []
    async with lab.contenders(with_reset=False) as contenders:
        for tasks in SPEED_TARGETS:
            duel = await contenders.duel(await _warmed_up(contenders, lab, tasks))
            label = f"{_label(tasks)}, no reset"
            findings += [
                duel.compare(f"queries, {label}", "/s", lambda burst: burst.per_second),
                duel.compare(f"CPU/query, {label}", "us", lambda burst: burst.cpu_us),
            ]
    return findings


async def _warmed_up(contenders: Contenders, lab: Lab, tasks: int) -> Callable[[Any], Awaitable[Burst]]:
    """Run a short burst on both pools, and return what runs the full ones."""
    for pool in (contenders.theirs, contenders.ours):
        await _burst(pool, operations=lab.scaled(OPERATIONS) // 10, tasks=tasks)
    return functools.partial(_burst, operations=lab.scaled(OPERATIONS), tasks=tasks)


async def _burst(pool: Any, *, operations: int, tasks: int) -> Burst:
    async def query() -> None:
        async with pool.acquire() as connection:
            await connection.fetchval("SELECT 1")

    return await run_burst(query, operations=operations, tasks=tasks)


def _label(tasks: int) -> str:
    return f"{tasks} task{'s' if tasks > 1 else ''}"


QUESTION = Question("queries", len(SPEED_TARGETS), ask)
WITHOUT_RESET = Question("no-reset", len(SPEED_TARGETS), ask_without_reset)
