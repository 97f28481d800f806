"""What the demo does; `demo` shows it."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import socket
import threading
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from psycopg.waiting import Wait

from loopaware_pool.cli.demo.entrants import CONNECTIONS, QUERY, STUCK_SECONDS, Entrant, Playground
from loopaware_pool.cli.measure import Burst, run_burst

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import psycopg
    from psycopg.abc import PQGen

__all__ = [
    "MESSAGES",
    "PSYCOPG_QUERIES",
    "QUERIES",
    "QUERIES_PER_LOOP",
    "ROUNDS",
    "TASKS",
    "Deadlock",
    "Leftovers",
    "Reuse",
    "Step",
    "collect_what_is_left",
    "count_sockets",
    "find_leftovers",
    "give_back_under_query",
    "outcome_of",
    "run_article_design",
    "run_in_threads",
    "run_rounds",
    "settled_sessions",
    "use_from_five_loops",
]

TASKS: Final = 50
QUERIES: Final = 10_000
PSYCOPG_QUERIES: Final = 4_000
ROUNDS: Final = 5
QUERIES_PER_LOOP: Final = 200
STEP_SECONDS: Final = 8.0
LOOP_SECONDS: Final = 10.0
MESSAGES: Final = 3
# Twice as long as psycopg's own wait sleeps.
MESSAGE_SECONDS: Final = 0.2


# ---- the burst ----


async def run_rounds(theirs: Entrant, ours: Entrant, queries: int, report: Callable[[int, Burst, Burst], None]) -> None:
    """Let both pools take turns at a burst of *queries*; *report* gets the round, their burst and ours."""
    async with theirs.make() as their_pool, ours.make() as our_pool:
        entrants = [(theirs, their_pool), (ours, our_pool)]
        for entrant, pool in entrants:
            await entrant.open(pool)
            await run_burst(_query_with(entrant, pool), operations=queries // 10, tasks=TASKS)
        for number in range(ROUNDS):
            bursts = {}
            # Who goes first changes, so that neither always runs on the warmer machine.
            for entrant, pool in entrants if number % 2 == 0 else reversed(entrants):
                bursts[pool] = await run_burst(_query_with(entrant, pool), operations=queries, tasks=TASKS)
            report(number + 1, bursts[their_pool], bursts[our_pool])


def _query_with(entrant: Entrant, pool: Any) -> Callable[[], Awaitable[object]]:
    return functools.partial(entrant.fetch, pool, QUERY)


@dataclass(frozen=True, slots=True)
class Leftovers:
    """
    What a pool leaves lying about.

    Attributes:
        watched: Entries that its idle connections have in the loop's selector, as the selector's own map tells.
        fds: File descriptors more than before, once it is closed.
    """

    watched: int
    fds: int


async def find_leftovers(entrant: Entrant) -> Leftovers:
    """Use a pool for a moment, look at the selector while all its connections are idle, and close it."""
    fds_before, watched_before = _count_fds(), _count_watched()
    async with entrant.make() as pool:
        await entrant.open(pool)
        await run_burst(_query_with(entrant, pool), operations=QUERIES // 20, tasks=TASKS)
        await asyncio.sleep(0.1)
        watched = _count_watched() - watched_before
    await asyncio.sleep(0.1)
    return Leftovers(watched, _count_fds() - fds_before)


def _count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def _count_watched() -> int:
    """Count the entries of the running loop's selector; of asyncio's own loop, which the demo runs on."""
    selector = getattr(asyncio.get_running_loop(), "_selector", None)
    return 0 if selector is None else len(selector.get_map())


# ---- the article's design ----


class ArticleDesign:
    """An illustration of a mistake: `acquire` waits for a connection while it holds the lock `release` needs."""

    def __init__(self, connections: list[Any]) -> None:
        self._free = connections
        self._lock = asyncio.Lock()

    async def acquire(self) -> Any:
        """Take a connection; if there is none, no other task will ever get past the lock to bring one."""
        async with self._lock:
            while not self._free:  # noqa: ASYNC110 - the mistake that is shown here
                await asyncio.sleep(0.01)
            return self._free.pop()

    async def release(self, connection: Any) -> None:
        """Bring a connection back."""
        async with self._lock:
            self._free.append(connection)


@dataclass(frozen=True, slots=True)
class Deadlock:
    """
    How far the article's design got.

    Attributes:
        answered: Queries that were answered.
        last_answer_seconds: When the last of them was, from the start.
        is_stuck: Whether it got stuck; if not, all tasks finished.
    """

    answered: int
    last_answer_seconds: float
    is_stuck: bool


async def run_article_design(playground: Playground) -> Deadlock:
    """Run the burst through `ArticleDesign`, and stop it after `STUCK_SECONDS`."""
    connections = [
        await asyncpg.connect(playground.dsn, server_settings=playground.settings) for _ in range(CONNECTIONS)
    ]
    pool = ArticleDesign(list(connections))
    began = time.perf_counter()
    answers: list[float] = []

    async def query() -> None:
        connection = await pool.acquire()
        try:
            await connection.fetchval(QUERY)
            answers.append(time.perf_counter() - began)
        finally:
            await pool.release(connection)

    try:
        async with asyncio.timeout(STUCK_SECONDS):
            await run_burst(query, operations=QUERIES, tasks=TASKS)
    except TimeoutError:
        return Deadlock(len(answers), max(answers, default=0.0), is_stuck=True)
    finally:
        for connection in connections:
            await connection.close()
    return Deadlock(len(answers), max(answers), is_stuck=False)


# ---- one pool, five loops ----


@dataclass(frozen=True, slots=True)
class Step:
    """
    What one step of the program came to.

    Attributes:
        name: What was done.
        asked: Queries run.
        answered: Queries answered.
        errors: Each error as Python prints it, and how often it came.
        sockets: Sockets of this process more than before the program.
        sessions: Sessions of the pool that the server counts.
    """

    name: str
    asked: int
    answered: int
    errors: Counter[str]
    sockets: int
    sessions: int


def use_from_five_loops(playground: Playground, entrant: Entrant, report: Callable[[Step], None]) -> None:
    """Use one pool in three `asyncio.run` calls and two threads, and close it in a sixth loop."""
    sockets_before = count_sockets()
    pools: list[Any] = []

    async def work() -> Counter[str]:
        if not pools:
            pools.append(entrant.make())
        pool = pools[0]
        await entrant.open(pool)
        async with asyncio.timeout(STEP_SECONDS):
            return Counter(
                await asyncio.gather(
                    *(outcome_of(entrant.fetch(pool, "SELECT 'answer'")) for _ in range(QUERIES_PER_LOOP))
                )
            )

    async def close() -> Counter[str]:
        async with asyncio.timeout(STEP_SECONDS):
            await pools[0].close()
        return Counter()

    def finish(name: str, asked: int, outcomes: Counter[str]) -> None:
        answered = outcomes.pop("answer", 0)
        sockets = count_sockets() - sockets_before
        report(Step(name, asked, answered, outcomes, sockets, settled_sessions(playground, sockets)))

    for number in ("first", "second", "third"):
        finish(f"{number} asyncio.run()", QUERIES_PER_LOOP, run_in_threads(work, 1))
    finish("two threads at once", 2 * QUERIES_PER_LOOP, run_in_threads(work, 2))
    finish("asyncio.run(pool.close())", 0, run_in_threads(close, 1))
    pools.clear()
    collect_what_is_left()


def _run(work: Callable[[], Any]) -> Counter[str]:
    """Run *work* on a loop of its own; an error that ends it is its outcome."""
    try:
        outcomes: Counter[str] = asyncio.run(work())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is shown
        return Counter([_as_printed(error)])
    return outcomes


def run_in_threads(work: Callable[[], Any], count: int, seconds: float = LOOP_SECONDS) -> Counter[str]:
    """
    Run *work* on loops of their own, and give up those that do not end.

    An `asyncio.run` on psycopg_pool's pool may wait for ever for a task that has swallowed its cancellation.
    """
    outcomes: list[Counter[str]] = []
    threads = [threading.Thread(target=lambda: outcomes.append(_run(work)), daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            outcomes.append(Counter([f"asyncio.run() did not return within {seconds:.0f} s"]))
    return sum(outcomes, Counter())


async def outcome_of(query: Awaitable[str]) -> str:
    """Await a query; what it answers, or its error as Python prints it."""
    try:
        return await query
    except Exception as error:  # noqa: BLE001 - as above
        return _as_printed(error)


def _as_printed(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def count_sockets() -> int:
    """Count the sockets of this process."""
    folder = "/proc/self/fd"
    return sum(_is_socket(f"{folder}/{fd}") for fd in os.listdir(folder))


def _is_socket(link: str) -> bool:
    try:
        return os.readlink(link).startswith("socket:")
    except FileNotFoundError:  # it was listdir's own
        return False


def settled_sessions(playground: Playground, expected: int, seconds: float = 2.0) -> int:
    """Count the pool's sessions; a server that was told goodbye may take a moment to say so."""
    deadline = time.monotonic() + seconds
    while True:
        sessions = asyncio.run(_count_sessions(playground))
        if sessions <= expected or time.monotonic() > deadline:
            return sessions
        time.sleep(0.02)


async def _count_sessions(playground: Playground) -> int:
    connection = await asyncpg.connect(playground.dsn)
    try:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
        count: int = await connection.fetchval(query, playground.schema)
        return count
    finally:
        await connection.close()


def collect_what_is_left() -> None:
    """Have the garbage collector close what a pool left open; it would complain of each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


# ---- a number used again ----


@dataclass(frozen=True, slots=True)
class Reuse:
    """
    What came of a query whose connection was given back while it ran, and of the next socket of that number.

    Attributes:
        query: What the query ended with, as Python prints it; empty if it did not end.
        heard: How many of `MESSAGES` the next socket's owner was told of.
    """

    query: str
    heard: int


async def give_back_under_query(entrant: Entrant) -> Reuse:
    """Give a psycopg connection back while a task still queries with it; then give its number to another socket."""
    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())  # both warn of such a connection
    here, there = socket.socketpair()
    with here, there:
        async with entrant.make() as pool:
            await entrant.open(pool)
            connection = await pool.getconn()
            number = connection.pgconn.socket
            query = asyncio.create_task(_sleep_on(connection))
            await asyncio.sleep(MESSAGE_SECONDS)
            await pool.putconn(connection)
            os.dup2(here.fileno(), number)
            heard = await _count_heard(number, there)
            query.cancel()
            outcome = (await asyncio.gather(query, return_exceptions=True))[0]
    return Reuse(_as_printed(outcome) if isinstance(outcome, Exception) else "", heard)


async def _sleep_on(connection: psycopg.AsyncConnection[Any]) -> None:
    async with connection.lock:
        await connection.wait(_sleep(connection.pgconn))


def _sleep(pgconn: psycopg.pq.abc.PGconn) -> PQGen[None]:
    """
    Send a query and read its answer, as psycopg's generators do.

    Theirs in C keep a pointer to what libpq frees when the connection is closed. Resumed afterwards they may take the
    process down.
    """
    pgconn.send_query(b"SELECT pg_sleep(60)")
    pgconn.flush()
    while pgconn.is_busy():
        yield Wait.R
        pgconn.consume_input()


async def _count_heard(number: int, peer: socket.socket) -> int:
    """Send `MESSAGES` from *peer* to the socket of that *number*, and count those that its reader is called for."""
    loop = asyncio.get_running_loop()
    heard = 0

    def read() -> None:
        nonlocal heard
        heard += len(os.read(number, MESSAGES))

    try:
        loop.add_reader(number, read)
        for _ in range(MESSAGES):
            peer.send(b"!")
            await asyncio.sleep(MESSAGE_SECONDS)
        loop.remove_reader(number)
    finally:
        os.close(number)
    return heard
