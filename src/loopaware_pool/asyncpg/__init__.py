"""The drop-in for asyncpg's pool."""

from __future__ import annotations

from loopaware_pool.asyncpg.pool import (
    Overloaded,
    Pool,
    PoolClosed,
    PoolConnectionProxy,
    PoolTimeout,
    SessionReset,
    TooManyWaiting,
    create_pool,
)

__all__ = [
    "Overloaded",
    "Pool",
    "PoolClosed",
    "PoolConnectionProxy",
    "PoolTimeout",
    "SessionReset",
    "TooManyWaiting",
    "create_pool",
]

for _name in __all__:
    _object = globals()[_name]
    if getattr(_object, "__module__", "").startswith(__name__):
        _object.__module__ = __name__
