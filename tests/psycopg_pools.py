"""Pools of psycopg connections, theirs and ours, for tests."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus

from running import DEADLINE_SECONDS, eventually_async

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HELD_UP", "IS_PSYCOPG_3_2", "busy", "held_up", "make_pool"]

IS_PSYCOPG_3_2 = psycopg.__version__.startswith("3.2.")

# A query that the server does not answer before a block of `held_up` has ended.
HELD_UP = "SELECT pg_advisory_xact_lock(4711)"

_numbers = itertools.count(1)


def make_pool(cls: type[Any], dsn: str, **options: Any) -> Any:
    """A pool that is not open, whose name is the application name of its sessions, and whose connections autocommit."""
    name = f"psycopg-{os.getpid()}-{next(_numbers)}"
    kwargs = {"autocommit": True, "application_name": name} | options.pop("kwargs", {})
    return cls(dsn, **{"name": name, "open": False, "timeout": DEADLINE_SECONDS, "kwargs": kwargs} | options)


@contextmanager
def held_up(dsn: str) -> Iterator[None]:
    """Have `HELD_UP`, run on other connections, last until the block ends."""
    with psycopg.connect(dsn, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(4711)")
        yield


async def busy(connection: psycopg.AsyncConnection[Any]) -> None:
    """Wait until a query runs on *connection*: a long one, as the end of a short one may come before the next look."""
    await eventually_async(
        lambda: connection.pgconn.transaction_status == TransactionStatus.ACTIVE, "a query that runs"
    )
