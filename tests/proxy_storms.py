"""Pools of all flavours behind a proxy, many callers, and what must be true of them afterwards."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg_pool
import pytest
import sqlalchemy

import helpers
from engines import Engines
from flavours import DRIVER_ERRORS, Client, asyncpg_flavour, psycopg_flavour
from loopaware_pool import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["FOR_SHARED_SESSIONS", "SIZE", "Storm", "all_flavours", "as_good_as_new", "inside", "make_new", "opened"]

SIZE = 4
# What each flavour needs where a session is another one after each transaction.
FOR_SHARED_SESSIONS: dict[str, dict[str, Any]] = {
    "asyncpg": {"statement_cache_size": 0, "session_reset": "never"},
    "psycopg": {"kwargs": {"prepare_threshold": None}},
    "sqlalchemy": {
        "connect_args": {"statement_cache_size": 0, "prepared_statement_name_func": lambda: ""},
        "url": {"prepared_statement_cache_size": "0"},
    },
}
# A caller's own; nothing here is expected to take a tenth of it.
_LEASE_SECONDS = 15.0


@asynccontextmanager
async def sqlalchemy_flavour(dsn: str, **options: Any) -> AsyncIterator[Client]:
    """An engine of asyncpg connections; `url` has arguments of the URL, `connect_args` those of asyncpg."""
    engines = Engines(dsn, "asyncpg")
    engines.url = sqlalchemy.make_url(engines.url).update_query_dict(options.pop("url", {}))
    engines.named |= options.pop("connect_args", {})
    sizes = {"pool_size": options.pop("max_size", 2), "max_overflow": 0}
    # As the others: otherwise whoever has asked something holds a session of the proxy's until the lease ends.
    engine = engines.make(**sizes, isolation_level="AUTOCOMMIT", **options)

    async def ask(connection: Any, query: str) -> Any:
        return (await connection.execute(sqlalchemy.text(query.replace(":", "\\:")))).scalar()

    @asynccontextmanager
    async def lend(timeout: float | None = None) -> AsyncIterator[Any]:
        async with asyncio.timeout(timeout):
            connection = await engine.connect()
        try:
            yield connection
        finally:
            await connection.close()

    async def run(connection: Any, statement: str) -> None:
        await connection.execute(sqlalchemy.text(statement))

    try:
        yield Client(engine, lend, ask, run)
    finally:
        await engine.dispose()


FLAVOURS = {"asyncpg": asyncpg_flavour, "psycopg": psycopg_flavour, "sqlalchemy": sqlalchemy_flavour}
all_flavours = pytest.mark.parametrize("flavour", FLAVOURS)


@asynccontextmanager
async def opened(flavour: str, dsn: str, **options: Any) -> AsyncIterator[Client]:
    """A pool of that flavour with `SIZE` connections at most."""
    async with FLAVOURS[flavour](dsn, **{"max_size": SIZE} | options) as client:
        yield client


def inside(client: Client) -> Any:
    """What has the counts: an engine's pool, which another replaces when it is disposed of."""
    return getattr(client.pool, "pool", client.pool)


async def make_new(client: Client) -> None:
    """Have the pool replace its connections, each when nobody has it."""
    pool = client.pool
    move = getattr(pool, "expire_connections", None) or getattr(pool, "drain", None) or pool.dispose
    await move()


@dataclass
class Storm:
    """
    Callers who ask for numbers of their own, some of whom are cancelled.

    Attributes:
        client: The pool.
        answered, cancelled: How many callers were, or gave up.
        told: The errors that others were told, by their class.
    """

    client: Client
    answered: int = 0
    cancelled: int = 0
    told: Counter[str] = field(default_factory=Counter)
    _numbers: Any = field(default_factory=itertools.count)
    _holding: asyncio.Event = field(default_factory=asyncio.Event)

    async def blow(
        self, callers: int, *, meanwhile: Callable[[], Awaitable[Any]] | None = None, cancels: bool = True
    ) -> None:
        """
        Let so many callers loose.

        Fails if a caller gets the answer to another's question, or an error that is no driver's and no pool's, or waits
        for ever.

        Args:
            callers: How many.
            meanwhile: Is awaited when the first of them holds its connection for 0.05 s.
            cancels: Whether every fifth of them is cancelled at some moment.
        """
        self._holding.clear()
        tasks = [asyncio.create_task(self._call(next(self._numbers))) for _ in range(callers)]
        for number, task in enumerate(tasks[::5] if cancels else ()):
            asyncio.get_running_loop().call_later(number % 7 * 0.003, task.cancel)
        if meanwhile is not None:
            async with asyncio.timeout(_LEASE_SECONDS):
                await self._holding.wait()
            await meanwhile()
        done, waiting = await asyncio.wait(tasks, timeout=2 * _LEASE_SECONDS)
        for task in waiting:
            task.cancel()
        assert not waiting, f"{len(waiting)} callers wait for ever; {inside(self.client).stats().summary()}"
        for task in done:
            if task.cancelled():
                self.cancelled += 1
            else:
                task.result()

    async def _call(self, number: int) -> None:
        try:
            async with self.client.lend(timeout=_LEASE_SECONDS) as connection:
                for step in range(2):
                    asked = f"SELECT {number}::int + {step}::int"
                    assert await self.client.ask(connection, asked) == number + step
                if number % 10 == 3:  # holds on for so long that whatever happens meanwhile happens to it
                    self._holding.set()
                    await self.client.ask(connection, "SELECT 1 FROM pg_sleep(0.05)")
                elif number % 3 == 0:
                    await self.client.ask(connection, "SELECT 1 FROM pg_sleep(0.002)")
        except (*DRIVER_ERRORS, errors.PoolError, psycopg_pool.PoolTimeout, sqlalchemy.exc.DBAPIError) as error:
            self.told[type(error).__name__] += 1
        else:
            self.answered += 1


async def as_good_as_new(client: Client, size: int = SIZE) -> None:
    """Every connection can be had at once and answers; nobody waits, nothing is counted that is not there."""
    await helpers.eventually(lambda: _all_can_be_had(client, size), 20.0)
    pool = inside(client)
    await pool.settled()
    stats = pool.stats()
    assert (stats.lent, stats.waiting) == (0, 0), stats.summary()
    assert stats.size == pool._core.permits.in_use <= size, stats.summary()


async def _all_can_be_had(client: Client, size: int) -> bool:
    leases = [client.lend(timeout=_LEASE_SECONDS) for _ in range(size)]
    begun = await asyncio.gather(*(lease.__aenter__() for lease in leases), return_exceptions=True)
    asked = [client.ask(each, "SELECT 7") for each in begun if not isinstance(each, BaseException)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    for lease, connection in zip(leases, begun, strict=True):
        if not isinstance(connection, BaseException):
            await lease.__aexit__(None, None, None)
    assert len(asked) == size, begun  # a permit is lost
    return answers == [7] * size
