"""Words for the stories of docs/reliability.md."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from flavours import both

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flavours import Client

__all__ = ["SCHEDULING_SECONDS", "both_flavours", "connect", "pids", "within"]
both_flavours = pytest.mark.parametrize("open_pool", both.values(), ids=both)
# What a busy machine may add to any wait, connects included. What these tests are about lasts longer if it goes wrong.
SCHEDULING_SECONDS = 4.0


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer, by more than a busy machine explains."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds + SCHEDULING_SECONDS


def connect(dsn: str) -> psycopg.Connection[Any]:
    """A connection beside the pool."""
    return psycopg.connect(dsn, autocommit=True)


async def pids(client: Client, size: int) -> set[int]:
    """The backends of so many connections that are lent at the same time."""
    lent = [client.lend() for _ in range(size)]
    try:
        connections = [await lease.__aenter__() for lease in lent]
        return {await client.ask(connection, "SELECT pg_backend_pid()") for connection in connections}
    finally:
        for lease in lent:
            await lease.__aexit__(None, None, None)
