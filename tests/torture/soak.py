"""
`python -m torture.soak --minutes 30`: one pool of each flavour under load for long, with faults, and what grows.

Every few seconds the load pauses, and when the pools have settled the process is looked at: memory, fds, tasks,
handles, timers, objects that the collector knows. What is told is how each moves per hour (`slopes.py`), and whether
that is flat.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import importlib.util
import json
import logging
import os
import random
import sys
from array import array
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import asyncpg
import psutil
import psycopg
import psycopg_pool
import uvloop

import helpers
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.testing.embedded_server import EmbeddedServer
from torture.slopes import WARM_UP_PART, Slope, slope_per_hour

CONNECTIONS = 8
TASKS = 24  # of each flavour
PAUSE_SECONDS = 0.1
FAULT_SECONDS = 1.0
LOOKS = 360
SHORTEST_LOOK_SECONDS = 1.0
NAME = "soak"
# What is looked at, and how much more an hour of it would not matter.
BOUNDS = {
    "memory, MB": 2.0,
    "fds beside connections": 1.0,
    "tasks": 1.0,
    "handles": 1.0,
    "timers": 1.0,
    "objects": 500.0,
}
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
        # Bare numbers: the soak must not grow itself.
        self.looks: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self.began = monotonic()
        self._at_work = 0
        self._may_work = asyncio.Event()
        self._may_work.set()

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
                group.create_task(self._look(end, max(seconds / LOOKS, SHORTEST_LOOK_SECONDS), (first, second)))

    async def _use(self, end: float, number: int, ask: Any, pool: Any) -> None:
        asked = 0
        while monotonic() < end:
            asked += 1
            await self._may_work.wait()
            self._at_work += 1
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
            self._at_work -= 1

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
            await self._may_work.wait()
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

    async def _look(self, end: float, every_seconds: float, pools: tuple[Any, ...]) -> None:
        while monotonic() + every_seconds < end:
            await asyncio.sleep(every_seconds)
            self._may_work.clear()
            while self._at_work:
                await asyncio.sleep(0.01)
            for pool in pools:
                await pool.settled()
            self.looks["minutes"].append((monotonic() - self.began) / 60)
            for name, value in _seen(sum(pool.stats().size for pool in pools)).items():
                self.looks[name].append(value)
            self._may_work.set()


def _seen(connections: int) -> dict[str, float]:
    loop: Any = asyncio.get_running_loop()
    gc.collect()
    _give_back_free_memory()
    seen = {
        "memory, MB": psutil.Process().memory_info().rss / 1e6,
        "fds beside connections": len(os.listdir("/proc/self/fd")) - connections,
        "tasks": len(asyncio.all_tasks()),
        "objects": len(gc.get_objects()),
    }
    if hasattr(loop, "_scheduled"):  # uvloop shows neither
        seen |= {"handles": len(loop._ready), "timers": len(loop._scheduled)}
    return seen


def _give_back_free_memory() -> None:
    """Have the allocator keep no holes: with each burst of connects there are more of them, in use or not."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if malloc_trim is not None:
        malloc_trim(0)


def draw(looks: dict[str, list[float]], slopes: dict[str, Slope], path: Path) -> None:
    """Plot what was seen over time, as PNG and SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": path.name, "svg.fonttype": "none"}  # the same figures give the same small file
    canvas = Figure(figsize=(8, 1.6 * len(slopes)), layout="constrained")
    minutes = looks["minutes"]
    for place, (name, slope) in zip(canvas.subplots(len(slopes), 1, sharex=True), slopes.items(), strict=True):
        place.plot(minutes, looks[name], linewidth=1)
        place.axvspan(0, minutes[int(len(minutes) * WARM_UP_PART)], color="#eeeeee")
        place.set_ylabel(name, fontsize=8)
        place.set_ylim(0, max(looks[name]) * 1.1 or 1)
        place.set_title(slope.text, fontsize=8, loc="right")
        place.tick_params(labelsize=8)
    place.set_xlabel("minutes; the warm-up, in grey, is left out of the slopes")
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        canvas.savefig(path.with_suffix(suffix), dpi=90, metadata=metadata)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"torture.soak: {message} (see --help)\n")


def _arguments() -> Any:
    parser = _Parser(prog="python -m torture.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="1 at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="a folder; made if it is not there")
    options = parser.parse_args()
    if not 1 <= options.minutes < float("inf"):
        parser.error(f"--minutes {options.minutes:g}: expected 1 or more, to have enough to look at")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("matplotlib is not installed; `make soak` installs it")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out}: is not a folder")
    return options


def main() -> int:
    """Soak, print, and return 1 if anything grows, an answer was wrong or a socket is left."""
    options = _arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.CRITICAL)  # connections are broken on purpose
    before = helpers.open_sockets()
    with EmbeddedServer() as server:
        soak = Soak(server.dsn, options.seed)
        factory = uvloop.new_event_loop if options.loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(soak.run(options.minutes * 60))
    looks = {name: list(values) for name, values in soak.looks.items()}
    slopes = {
        name: slope_per_hour(looks["minutes"], looks[name], bound) for name, bound in BOUNDS.items() if name in looks
    }
    left = len(helpers.open_sockets().keys() - before.keys())
    report = {
        "minutes": options.minutes,
        "loop": options.loop,
        "seed": options.seed,
        "counts": dict(soak.counts),
        "sockets left": left,
        "slopes_per_hour": {name: asdict(slope) | {"is_flat": slope.is_flat} for name, slope in slopes.items()},
        "looks": looks,
    }
    (options.out / "soak.json").write_text(json.dumps(report) + "\n")
    draw(looks, slopes, options.out / "soak")
    sys.stdout.writelines(f"{count:>10,}  {what}\n" for what, count in {**soak.counts, "sockets left": left}.items())
    sys.stdout.writelines(f"{name:>22}  {slope.text}\n" for name, slope in slopes.items())
    sys.stdout.write(f"Written to {options.out}: soak.json soak.png soak.svg\n")
    is_well = not left and not soak.counts["wrong answers"] and all(slope.is_flat for slope in slopes.values())
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
