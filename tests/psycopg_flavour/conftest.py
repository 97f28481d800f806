"""Pools of psycopg's connections, by the one class or the other."""

from __future__ import annotations

import pytest

from loopaware_pool.psycopg import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
)
from loopaware_pool.testing import FaultProxy
from psycopg_pools import make_pool


@pytest.fixture
def pool_of(dsn):
    """Makes a pool that is not opened; in a transaction unless told otherwise, as psycopg's connections are."""

    def make(cls=AsyncConnectionPool, dsn=dsn, **options):
        options["kwargs"] = {"autocommit": False} | options.get("kwargs", {})
        if cls is AsyncNullConnectionPool:
            options = {"max_size": 2} | options | {"min_size": 0}
        return make_pool(cls, dsn, **options)

    return make


@pytest.fixture
def way(dsn):
    """A way to the server, which refuses connections until it is healed."""
    with FaultProxy(dsn) as proxy:
        proxy.refuse()
        yield proxy
