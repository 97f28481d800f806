"""
`python -m torture.soak --minutes 30`: one pool of each flavour under load for long, with faults, and what grows.

Every few seconds the process is looked at: memory, fds, tasks, timers, objects that the collector knows. What is told
is how each moves per hour, by linear regression over all looks but those of the first third, when caches fill.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import statistics
import sys
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import psutil
import psycopg
import psycopg_pool
import uvloop

import helpers
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.cli.server import EmbeddedServer
from loopaware_pool.psycopg import AsyncConnectionPool

CONNECTIONS = 8
TASKS = 24  # of each flavour
PAUSE_SECONDS = 0.1
FAULT_SECONDS = 1.0
LOOK_SECONDS = 5.0
NAME = "soak"
# What a fault may make of a caller's query or acquire.
EXPLAINED = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    psycopg.Error,
    psycopg_pool.PoolTimeout,
    OSError,
)


class Soak:
    """Both pools, those who use them, and what was seen."""

    def __init__(self, dsn: str, seed: int) -> None:
        self.dsn = dsn
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.looks: list[dict[str, float]] = []
        self.began = monotonic()

    async def run(self, seconds: float) -> None:
        """Soak for so long, and close."""
        settings = {"application_name": NAME}
        sizes: dict[str, Any] = {"min_size": 2, "max_size": CONNECTIONS, "max_lifetime": 60, "keepalive": 5}
        of_psycopg = {"autocommit": True, "application_name": NAME}
        async with (
            create_pool(self.dsn, **sizes, server_settings=settings, acquire_timeout=10) as first,
            AsyncConnectionPool(self.dsn, open=False, **sizes, kwargs=of_psycopg, discard_dead="always") as second,
        ):
            end = monotonic() + seconds
            async with asyncio.TaskGroup() as group:
                for number in range(TASKS):
                    group.create_task(self._use(end, number, self._fetch, first))
                    group.create_task(self._use(end, number, self._execute, second))
                group.create_task(self._harm(end, first, second))
                group.create_task(self._look(end))

    async def _use(self, end: float, number: int, ask: Any, pool: Any) -> None:
        asked = 0
        while monotonic() < end:
            asked += 1
            question = number * 1_000_000 + asked % 1_000_000
            work = asyncio.create_task(ask(pool, question))
            if self.random.random() < 0.05:
                await asyncio.sleep(self.random.random() * 0.005)
                work.cancel()
                self.counts["cancellations"] += 1
            try:
                answer = await work
                self.counts["wrong answers"] += answer != question
            except asyncio.CancelledError:
                self.counts["cancelled"] += 1
            except EXPLAINED as error:
                self.counts[f"error {type(error).__name__}"] += 1
            self.counts["leases"] += 1
            await asyncio.sleep(self.random.random() * PAUSE_SECONDS)

    async def _fetch(self, pool: Any, question: int) -> int:
        async with pool.acquire() as connection, connection.transaction():
            return await connection.fetchval("SELECT $1::int FROM pg_sleep(0.001)", question)

    async def _execute(self, pool: Any, question: int) -> int:
        async with pool.connection(timeout=10) as connection:
            cursor = await connection.execute("SELECT %s::int FROM pg_sleep(0.001)", [question])
            return (await cursor.fetchone())[0]

    async def _harm(self, end: float, first: Any, second: Any) -> None:
        """Kill a session, or all; or have all replaced."""
        killer = await asyncpg.connect(self.dsn)
        while monotonic() < end:
            await asyncio.sleep(FAULT_SECONDS)
            how_many = CONNECTIONS * 2 if self.random.random() < 0.05 else 1
            await killer.execute(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE application_name = $1 "
                "ORDER BY random() LIMIT $2) AS victims",
                NAME,
                how_many,
            )
            self.counts["faults"] += 1
            if self.random.random() < 0.02:
                await first.expire_connections()
                await second.drain()
        await killer.close()

    async def _look(self, end: float) -> None:
        process = psutil.Process()
        loop: Any = asyncio.get_running_loop()
        while monotonic() < end:
            await asyncio.sleep(LOOK_SECONDS)
            gc.collect()
            self.looks.append(
                {
                    "minutes": (monotonic() - self.began) / 60,
                    "memory, MB": process.memory_info().rss / 1e6,
                    "fds": len(os.listdir("/proc/self/fd")),
                    "tasks": len(asyncio.all_tasks()),
                    "timers": len(getattr(loop, "_scheduled", ())),
                    "objects": len(gc.get_objects()),
                    "leases": self.counts["leases"],
                }
            )


def slopes_per_hour(looks: list[dict[str, float]]) -> dict[str, float]:
    """How each figure moves, the first third of the looks left out."""
    settled = looks[len(looks) // 3 :]
    hours = [look["minutes"] / 60 for look in settled]
    names = [name for name in settled[0] if name not in ("minutes", "leases")]
    return {name: statistics.linear_regression(hours, [look[name] for look in settled]).slope for name in names}


def draw(report: dict[str, Any], file: str) -> None:
    """Plot what was seen over time."""
    from matplotlib.figure import Figure

    names = list(report["slopes_per_hour"])
    canvas = Figure(figsize=(8, 1.6 * len(names)), layout="constrained")
    for place, name in zip(canvas.subplots(len(names), 1, sharex=True), names, strict=True):
        place.plot([look["minutes"] for look in report["looks"]], [look[name] for look in report["looks"]], linewidth=1)
        place.set_ylabel(name, fontsize=8)
        place.set_ylim(bottom=0)
        place.set_title(f"{report['slopes_per_hour'][name]:+,.1f} an hour", fontsize=8, loc="right")
        place.tick_params(labelsize=8)
    place.set_xlabel("minutes")
    canvas.savefig(file, dpi=90)


def main() -> int:
    """Soak, print, and return 1 if an answer was wrong or a socket is left."""
    parser = argparse.ArgumentParser(prog="python -m torture.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--json", metavar="FILE", help="write everything to FILE")
    parser.add_argument("--plot", metavar="FILE", help="draw a plot; needs matplotlib")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # connections are broken on purpose
    before = helpers.open_sockets()
    with EmbeddedServer() as server:
        soak = Soak(server.dsn, options.seed)
        factory = uvloop.new_event_loop if options.loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(soak.run(options.minutes * 60))
    left = len(helpers.open_sockets().keys() - before.keys())
    report = {
        "minutes": options.minutes,
        "loop": options.loop,
        "counts": dict(soak.counts),
        "sockets left": left,
        "slopes_per_hour": slopes_per_hour(soak.looks),
        "looks": soak.looks,
    }
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        draw(report, options.plot)
    sys.stdout.write(json.dumps({name: value for name, value in report.items() if name != "looks"}, indent=1) + "\n")
    return 1 if left or soak.counts["wrong answers"] else 0


if __name__ == "__main__":
    sys.exit(main())
