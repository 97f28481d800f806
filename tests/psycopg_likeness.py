"""Words for what psycopg_pool's async pools do, and ours as they."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
import pytest
from psycopg.rows import Row

from loopaware_pool.psycopg import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
)

__all__ = ["BOTH", "OwnConnection", "both", "kill", "pid_of", "words"]

BOTH = [AsyncConnectionPool, AsyncNullConnectionPool]
both = pytest.mark.parametrize("cls", BOTH)


async def pid_of(pool: AsyncConnectionPool[Any], **options: Any) -> int:
    """The backend of the connection that is lent next."""
    async with pool.connection(**options) as connection:
        pid: int = connection.info.backend_pid
        return pid


async def kill(dsn: str, *pids: int) -> None:
    """End these sessions, and return when the server has."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for pid in pids:
            await connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def words(caplog: pytest.LogCaptureFixture, logger: str = "psycopg.pool", level: int = logging.WARNING) -> list[str]:
    """What a logger has been told, of that level or a higher one."""
    return [record.message for record in caplog.records if record.name == logger and record.levelno >= level]


class OwnConnection(psycopg.AsyncConnection[Row]):
    """A generic class of a user's."""
