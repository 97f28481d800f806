"""The drop-in for the pool of SQLAlchemy's async engine."""

from __future__ import annotations

from loopaware_pool.sqlalchemy.engine import create_async_engine
from loopaware_pool.sqlalchemy.pool import (
    LoopAwareQueuePool,
    Overloaded,
    PoolClosed,
    PoolTimeout,
    TooManyWaiting,
    UnsupportedLoop,
)

__all__ = [
    "LoopAwareQueuePool",
    "Overloaded",
    "PoolClosed",
    "PoolTimeout",
    "TooManyWaiting",
    "UnsupportedLoop",
    "create_async_engine",
]

for _name in __all__:
    _object = globals()[_name]
    if getattr(_object, "__module__", "").startswith(__name__):
        _object.__module__ = __name__
