"""
What it costs to take a connection and to give it back, with nothing in between.

A session that nobody asked anything stays as clean as its last reset made it. So ours sends one reset where asyncpg's
pool sends one a cycle, and what is measured of ours is the pool alone, with the reset or without.
"""

from __future__ import annotations

from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.lab import Question

if TYPE_CHECKING:
    from benchmarks.lab import Finding, Lab
    from loopaware_pool.asyncpg import SessionReset

CYCLES = 3000
RESETS: tuple[SessionReset, ...] = ("pipelined", "never")


class Cost(NamedTuple):
    """Of one cycle, in microseconds."""

    wall_us: float
    cpu_us: float


async def ask(lab: Lab) -> list[Finding]:
    """With one task, with the reset of both pools and without."""
    findings = []
    for session_reset in RESETS:

        async def measure(pool: Any) -> Cost:
            return await _cycle(pool, lab.scaled(CYCLES))

        async with lab.asyncpg_contenders(session_reset) as contenders:
            duel = await contenders.duel(measure)
        suffix = "" if session_reset == "pipelined" else ", no reset"
        findings += [
            duel.compare(f"acquire+release{suffix}", "us", lambda cost: cost.wall_us),
            duel.compare(f"acquire+release CPU{suffix}", "us", lambda cost: cost.cpu_us),
        ]
    return findings


async def _cycle(pool: Any, cycles: int) -> Cost:
    cpu, began = process_time(), perf_counter()
    for _ in range(cycles):
        connection = await pool.acquire()
        await pool.release(connection)
    await _settle(pool)
    return Cost((perf_counter() - began) / cycles * 1e6, (process_time() - cpu) / cycles * 1e6)


async def _settle(pool: Any) -> None:
    """Wait for what a release of ours puts off; asyncpg's has done everything by the time it returns."""
    if hasattr(pool, "settled"):
        await pool.settled()


QUESTION = Question("checkout", 2, ask)
