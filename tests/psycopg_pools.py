"""Pools of psycopg connections, theirs and ours, for tests."""

from __future__ import annotations

import itertools
import os
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from running import DEADLINE_SECONDS, eventually_async

__all__ = ["IS_PSYCOPG_3_2", "busy", "make_pool"]

IS_PSYCOPG_3_2 = psycopg.__version__.startswith("3.2.")

_numbers = itertools.count(1)


def make_pool(cls: type[Any], dsn: str, **options: Any) -> Any:
    """A pool that is not open, whose name is the application name of its sessions, and whose connections autocommit."""
    name = f"psycopg-{os.getpid()}-{next(_numbers)}"
    kwargs = {"autocommit": True, "application_name": name} | options.pop("kwargs", {})
    return cls(dsn, **{"name": name, "open": False, "timeout": DEADLINE_SECONDS, "kwargs": kwargs} | options)


async def busy(connection: psycopg.AsyncConnection[Any]) -> None:
    """Wait until a query runs on *connection*."""
    await eventually_async(
        lambda: connection.pgconn.transaction_status == TransactionStatus.ACTIVE, "a query that runs"
    )
