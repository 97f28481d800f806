"""
A pytest plugin for SQLAlchemy's own tests: where they mean its pool, they get the one that `POOL_UNDER_TEST` names.

That is `LoopAwareQueuePool`, or `AsyncAdaptedQueuePool` for comparison. Tests of the sync `QueuePool` get it, too. If
`--dburi` names an async driver, SQLAlchemy runs them in its greenlets on a running loop.
"""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import pool
from sqlalchemy.dialects.postgresql.psycopg import PsycopgAdaptDBAPI
from sqlalchemy.engine.default import DefaultDialect

from loopaware_pool.psycopg import LoopAwareConnection
from loopaware_pool.sqlalchemy import LoopAwareQueuePool

CHOICE = {"ours": LoopAwareQueuePool, "stock": pool.AsyncAdaptedQueuePool}[os.environ["POOL_UNDER_TEST"]]
SYNC = pool.QueuePool
connect = PsycopgAdaptDBAPI.connect


def get_pool_class(dialect: Any, url: Any) -> Any:
    """As `DefaultDialect.get_pool_class`: engines that are not async keep the sync pool."""
    return getattr(dialect, "poolclass", CHOICE if dialect.is_async else SYNC)


def connect_loop_aware(adapter: Any, *args: Any, **options: Any) -> Any:
    """As `PsycopgAdaptDBAPI.connect`, with the default of `loopaware_pool.sqlalchemy.create_async_engine`."""
    return connect(adapter, *args, **{"async_creator_fn": LoopAwareConnection.connect, **options})


DefaultDialect.get_pool_class = classmethod(get_pool_class)
pool.QueuePool = pool.AsyncAdaptedQueuePool = CHOICE
if CHOICE is LoopAwareQueuePool:
    PsycopgAdaptDBAPI.connect = connect_loop_aware
