"""Engines of SQLAlchemy on our pool, and words for what a program does with one."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

import helpers
import loopaware_pool.psycopg  # noqa: F401 - not in the middle of a test
from loopaware_pool.sqlalchemy import create_async_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["Engines", "ask", "ask_all", "hold", "pid"]

_numbers = itertools.count(1)


class Engines:
    """
    Makes engines whose sessions the server can tell from others.

    Attributes:
        name: The application name of the sessions.
        named: The driver's arguments, which give them that name.
    """

    def __init__(self, dsn: str, driver: str) -> None:
        self.dsn = dsn
        self.driver = driver
        self.url = dsn.replace("postgresql://", f"postgresql+{driver}://")
        self.name = f"engine-{os.getpid()}-{next(_numbers)}"
        named = {"application_name": self.name}
        self.named: dict[str, Any] = {"server_settings": named} if driver == "asyncpg" else named

    def make(self, create: Callable[..., AsyncEngine] = create_async_engine, **options: Any) -> AsyncEngine:
        """An engine with at most two connections, unless told otherwise."""
        sizes = {"pool_size": 2, "max_overflow": 0}
        return create(self.url, connect_args=self.named, **{**sizes, **options})

    def sessions(self) -> int:
        """How many sessions the server has."""
        return helpers.server_sessions(self.dsn, self.name)

    def kill(self) -> int:
        """End the sessions at the server; how many that were."""
        return helpers.kill_sessions(self.dsn, self.name)


async def ask(engine: AsyncEngine, query: str = "SELECT 42") -> Any:
    """Run a query on a connection of its own."""
    async with engine.connect() as connection:
        return (await connection.execute(text(query))).scalar()


async def ask_all(engine: AsyncEngine, callers: int) -> list[Any]:
    """Run as many queries at once."""
    return await asyncio.gather(*(ask(engine) for _ in range(callers)), return_exceptions=True)


async def pid(connection: Any) -> int:
    """Ask a connection for its server process."""
    return (await connection.execute(text("SELECT pg_backend_pid()"))).scalar()


async def hold(engine: AsyncEngine, number: int) -> list[int]:
    """Hold as many connections at once, and tell their server processes."""
    connections = [await engine.connect() for _ in range(number)]
    pids = [await pid(connection) for connection in connections]
    for connection in connections:
        await connection.close()
    return pids
