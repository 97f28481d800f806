"""How many `SELECT 1` come through a pool, each with a connection of its own: acquire, query, release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.lab import Question, Target, label, speed_and_cost

if TYPE_CHECKING:
    from benchmarks.lab import Finding, Lab

OPERATIONS = 3000
# Number of tasks -> queries per second relative to asyncpg's.
SPEED_TARGETS = {
    1: Target(2.0, is_floor=True),
    10: Target(1.4, is_floor=True),
    50: Target(1.4, is_floor=True),
}
P99_TARGET = Target(0.35, is_floor=False)
CPU_TARGET = Target(0.65, is_floor=False)
WHEN_DIRTY_SPEED_TARGETS = {10: Target(2.3, is_floor=True), 50: Target(2.5, is_floor=True)}
WHEN_DIRTY_CPU_TARGET = Target(0.42, is_floor=False)


async def ask(lab: Lab) -> list[Finding]:
    """With the session reset at each release, as both pools do by default."""
    findings = []
    async with lab.asyncpg_contenders() as contenders:
        for tasks, speed_target in SPEED_TARGETS.items():
            duel = await contenders.burst(_query, operations=OPERATIONS, tasks=tasks)
            findings += speed_and_cost(duel, label(tasks), speed_target, CPU_TARGET)
            if tasks == 50:
                findings.append(
                    duel.compare(f"p99, {label(tasks)}", "ms", lambda burst: burst.p99_ms, target=P99_TARGET)
                )
    return findings


async def ask_when_dirty(lab: Lab) -> list[Finding]:
    """With a reset at each release of asyncpg's, and with none of ours, as `SELECT 1` leaves nothing to reset."""
    findings = []
    async with lab.asyncpg_contenders("when_dirty") as contenders:
        for tasks, speed_target in WHEN_DIRTY_SPEED_TARGETS.items():
            duel = await contenders.burst(_query, operations=OPERATIONS, tasks=tasks)
            findings += speed_and_cost(duel, f"{label(tasks)}, when_dirty", speed_target, WHEN_DIRTY_CPU_TARGET)
    return findings


async def ask_without_reset(lab: Lab) -> list[Finding]:
    """With no reset query on either side: what is left is the pools' own cost."""
    findings = []
    async with lab.asyncpg_contenders("never") as contenders:
        for tasks in SPEED_TARGETS:
            duel = await contenders.burst(_query, operations=OPERATIONS, tasks=tasks)
            findings += speed_and_cost(duel, f"{label(tasks)}, no reset")
    return findings


async def _query(pool: Any) -> None:
    async with pool.acquire() as connection:
        await connection.fetchval("SELECT 1")


QUESTION = Question("queries", len(SPEED_TARGETS), ask)
WHEN_DIRTY = Question("when-dirty", len(WHEN_DIRTY_SPEED_TARGETS), ask_when_dirty)
WITHOUT_RESET = Question("no-reset", len(SPEED_TARGETS), ask_without_reset)
