"""What no clock tells: memory blocks allocated and iterations of the loop for each query."""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import (
    ASYNCPG,
    BARE_ASYNCPG,
    BARE_PSYCOPG,
    CONNECTIONS,
    OURS,
    OURS_NEVER,
    OURS_PSYCOPG,
    OURS_WHEN_DIRTY,
    PSYCOPG_POOL,
    SQLALCHEMY,
)
from benchmarks.lab import Heat, Question, label

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.contenders import Client
    from benchmarks.lab import Lab

CONTENDERS = (
    ASYNCPG,
    SQLALCHEMY,
    BARE_ASYNCPG,
    OURS,
    OURS_WHEN_DIRTY,
    OURS_NEVER,
    PSYCOPG_POOL,
    BARE_PSYCOPG,
    OURS_PSYCOPG,
)
QUERIES = 500
TASKS = (1, CONNECTIONS, 50)
ALLOCATIONS, ITERATIONS = "allocations/query", "loop iterations/query"


async def ask(lab: Lab) -> list[Heat]:
    """On asyncio: uvloop's iterations cannot be seen from here."""
    heats = []
    queries = max(lab.scaled(QUERIES), TASKS[-1])
    async with lab.open(CONTENDERS) as clients:
        for tasks in TASKS:
            able = {one: client for one, client in clients.items() if one.max_tasks is None or tasks <= one.max_tasks}
            await lab.warm_up(able, _fetch, tasks=tasks)
            rounds = {one.name: [await _count(client, tasks, queries)] for one, client in able.items()}
            heats.append(Heat(f"counted, {label(tasks)}", rounds))
    return heats


async def _count(client: Client, tasks: int, queries: int) -> dict[str, float]:
    figures = {}
    if importlib.util.find_spec("memray") is not None:
        figures[ALLOCATIONS] = await _allocations(lambda: _run(client, tasks, queries)) / queries
    figures[ITERATIONS] = await _iterations(lambda: _run(client, tasks, queries)) / queries
    return figures


async def _run(client: Client, tasks: int, queries: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(_work(client, queries // tasks))


async def _work(client: Client, queries: int) -> None:
    for _ in range(queries):
        await client.fetch("SELECT 1")


async def _fetch(client: Client) -> None:
    await client.fetch("SELECT 1")


async def _allocations(run: Callable[[], Awaitable[None]]) -> int:
    import memray

    with tempfile.TemporaryDirectory() as folder:
        capture = Path(folder, "capture.bin")
        with memray.Tracker(capture, trace_python_allocators=True):
            await run()
        with memray.FileReader(capture) as reader:
            allocations: int = reader.metadata.total_allocations
            return allocations


async def _iterations(run: Callable[[], Awaitable[None]]) -> int:
    loop: Any = asyncio.get_running_loop()
    iterate, iterations = loop._run_once, 0

    def counted() -> None:
        nonlocal iterations
        iterations += 1
        iterate()

    loop._run_once = counted
    try:
        await run()
    finally:
        del loop._run_once
    return iterations


QUESTION = Question("counts", ask, loops=("asyncio",))
