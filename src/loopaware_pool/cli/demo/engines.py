"""What the demo does with an engine of SQLAlchemy's, where SQLAlchemy is installed."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import warnings
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from loopaware_pool.cli.demo.scenes import (
    Step,
    collect_what_is_left,
    count_sockets,
    outcome_of,
    run_in_threads,
    settled_sessions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loopaware_pool.cli.demo.entrants import Entrant, Playground

__all__ = ["INSTALL", "KILLED", "TASKS", "TESTS", "use_engines"]

INSTALL: Final = "pip install 'loopaware-pool[sqlalchemy]'"
KILLED: Final = 15
TASKS: Final = 10
TESTS: Final = 20
LOOP_SECONDS: Final = 3.0
HEARD_SECONDS: Final = 0.1
QUERY: Final = "SELECT 'answer'"


def use_engines(playground: Playground, entrant: Entrant, report: Callable[[Step], None]) -> None:
    """Run four programs, each on an engine of its own; *report* gets what each came to when that is disposed of."""
    programs = (
        ("three asyncio.run()", 3 * TASKS, _three_runs),
        ("two threads, cold engine", 2 * TASKS, _two_threads),
        ("a loop for each test", TESTS, _loop_per_test),
        (f"{KILLED} killed while idle", KILLED, _killed_while_idle),
    )
    for name, asked, program in programs:
        with _quietly():
            report(_step(playground, entrant, name, asked, program))


def _step(
    playground: Playground, entrant: Entrant, name: str, asked: int, program: Callable[..., Counter[str]]
) -> Step:
    sockets_before, sessions_before = count_sockets(), settled_sessions(playground, 0, seconds=0.2)
    engine = entrant.make()
    outcomes = program(playground, entrant, engine)
    outcomes += run_in_threads(lambda: _dispose(engine), 1, LOOP_SECONDS)
    sockets = count_sockets() - sockets_before
    sessions = max(0, settled_sessions(playground, sessions_before + sockets) - sessions_before)
    collect_what_is_left()
    answered = outcomes.pop("answer", 0)
    return Step(name, asked, answered, _in_brief(outcomes), sockets, sessions)


def _in_brief(errors: Counter[str]) -> Counter[str]:
    """Leave out what tells errors of one kind apart: addresses, the names of tasks, the lines after the first."""
    brief: Counter[str] = Counter()
    for error, count in errors.items():
        line, found = error.partition("\n")[0], 1
        while found:
            line, found = re.subn(r"<[^<>]*>", "...", line)
        brief[line] += count
    return brief


async def _dispose(engine: Any) -> Counter[str]:
    await engine.dispose()
    return Counter()


def _three_runs(_: Playground, entrant: Entrant, engine: Any) -> Counter[str]:
    runs = (run_in_threads(lambda: _ask_at_once(entrant, engine, TASKS), 1, LOOP_SECONDS) for _ in range(3))
    return sum(runs, Counter())


def _two_threads(_: Playground, entrant: Entrant, engine: Any) -> Counter[str]:
    both_run = threading.Barrier(2)

    async def work() -> Counter[str]:
        both_run.wait(LOOP_SECONDS)
        return await _ask_at_once(entrant, engine, TASKS)

    return run_in_threads(work, 2, LOOP_SECONDS)


def _loop_per_test(_: Playground, entrant: Entrant, engine: Any) -> Counter[str]:
    """Use an engine that is made once, as by a fixture of a session, in tests that each have a loop of their own."""
    tests = (run_in_threads(lambda: _ask_at_once(entrant, engine, 1), 1, LOOP_SECONDS) for _ in range(TESTS))
    return sum(tests, Counter())


def _killed_while_idle(playground: Playground, entrant: Entrant, engine: Any) -> Counter[str]:
    async def work() -> Counter[str]:
        await _open_connections(engine, KILLED)
        await _kill_sessions(playground)
        outcomes = await _ask_at_once(entrant, engine, KILLED)
        await engine.dispose()
        return outcomes

    return run_in_threads(work, 1, LOOP_SECONDS)


async def _ask_at_once(entrant: Entrant, engine: Any, queries: int) -> Counter[str]:
    return Counter(await asyncio.gather(*(outcome_of(entrant.fetch(engine, QUERY)) for _ in range(queries))))


async def _open_connections(engine: Any, number: int) -> None:
    """Open so many, and give them back."""
    connections = [await engine.connect() for _ in range(number)]
    for connection in connections:
        await connection.close()


async def _kill_sessions(playground: Playground) -> None:
    """End all sessions of the engine, and give its loop the time to read the servers' farewells."""
    connection = await asyncpg.connect(playground.dsn)
    try:
        await connection.fetch(
            "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE application_name = $1",
            playground.schema,
        )
    finally:
        await connection.close()
    await asyncio.sleep(HEARD_SECONDS)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what libraries log and warn of to themselves: the errors are counted."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
