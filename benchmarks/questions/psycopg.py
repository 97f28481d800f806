"""The psycopg flavour beside psycopg_pool: `SELECT 1` with an acquire and a release of its own, and these two alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.lab import Question, Target, label, speed_and_cost

if TYPE_CHECKING:
    from benchmarks.lab import Finding, Lab

QUERIES = 2000
CYCLES = 5000
CROWD = 50
# Number of tasks -> queries per second relative to psycopg_pool's.
SPEED_TARGETS = {
    1: Target(1.3, is_floor=True),
    10: Target(1.6, is_floor=True),
    CROWD: Target(1.8, is_floor=True),
}
CPU_TARGET = Target(0.68, is_floor=False)
CYCLE_CPU_TARGET = Target(0.25, is_floor=False)


async def ask(lab: Lab) -> list[Finding]:
    """In autocommit mode: a transaction's two more round trips are no pool's business."""
    findings = []
    async with lab.psycopg_contenders() as contenders:
        for tasks, speed_target in SPEED_TARGETS.items():
            duel = await contenders.burst(_query, operations=QUERIES, tasks=tasks)
            findings += speed_and_cost(duel, label(tasks), speed_target, CPU_TARGET)
            if tasks == CROWD:
                findings.append(duel.compare(f"p99, {label(tasks)}", "ms", lambda burst: burst.p99_ms))
        duel = await contenders.burst(_cycle, operations=CYCLES, tasks=CROWD)
    name = f"acquire+release CPU, {label(CROWD)}"
    return [*findings, duel.compare(name, "us", lambda burst: burst.cpu_us, target=CYCLE_CPU_TARGET)]


async def _query(pool: Any) -> None:
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT 1")
        await cursor.fetchone()


async def _cycle(pool: Any) -> None:
    async with pool.connection():
        pass


QUESTION = Question("psycopg", len(SPEED_TARGETS) + 1, ask)
