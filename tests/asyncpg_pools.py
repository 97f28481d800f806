"""Pools of asyncpg's connections, and the sessions that they have."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from loopaware_pool.asyncpg import create_pool
from running import NOWHERE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from loopaware_pool.asyncpg import Pool

__all__ = ["AMPLE", "kill", "own_pids", "refusing", "some_pool"]

# Long enough that it is never reached where it must not be, and never waited for.
AMPLE = 30.0


@asynccontextmanager
async def some_pool(dsn: str, size: int = 1, **options: Any) -> AsyncIterator[Pool]:
    """A pool that keeps nothing open unasked, for a minute at most."""
    async with asyncio.timeout(60), create_pool(dsn, min_size=0, max_size=size, **options) as pool:
        yield pool


def own_pids(pool: Pool) -> list[int]:
    """The backends of a pool's connections."""
    return [session._con.get_server_pid() for session in pool._holders if session._con is not None]


def kill(dsn: str, *pids: int) -> None:
    """End these sessions, and return when the server has."""
    with psycopg.connect(dsn, autocommit=True) as admin:
        for pid in pids:
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])


def refusing(pool: Pool) -> None:
    """Have the pool connect to where nobody listens from now on."""
    pool.set_connect_args(NOWHERE)
