"""The drop-in for psycopg_pool's async pools."""

from __future__ import annotations

from loopaware_pool.psycopg.pool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    LoopAwareConnection,
    Overloaded,
    PoolClosed,
    PoolTimeout,
    TooManyRequests,
    WrongLoop,
)

__all__ = [
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
    "LoopAwareConnection",
    "Overloaded",
    "PoolClosed",
    "PoolTimeout",
    "TooManyRequests",
    "WrongLoop",
]

for _name in __all__:
    _object = globals()[_name]
    if getattr(_object, "__module__", "").startswith(__name__):
        _object.__module__ = __name__
