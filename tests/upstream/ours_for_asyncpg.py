"""A pytest plugin for asyncpg's own tests: the pools they make are ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg import _testbase

from loopaware_pool.asyncpg import create_pool

if TYPE_CHECKING:
    from loopaware_pool.asyncpg import Pool


def create_test_pool(dsn: str | None = None, *, pool_class: object = None, **options: Any) -> Pool:
    """As `asyncpg._testbase.create_pool`, but for the class."""
    return create_pool(dsn, **{"max_inactive_connection_lifetime": 60.0, **options})


_testbase.create_pool = create_test_pool
asyncpg.create_pool = asyncpg.pool.create_pool = create_pool
