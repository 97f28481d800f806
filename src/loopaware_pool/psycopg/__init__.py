"""The drop-in for psycopg_pool's async pools. Without psycopg_pool, it has the connection class alone."""

from __future__ import annotations

from typing import Any

from loopaware_pool.psycopg.connection import LoopAwareConnection
from loopaware_pool.psycopg.socket_waiter import WrongLoop

try:
    from loopaware_pool.psycopg.pool import (
        AsyncConnectionPool,
        AsyncNullConnectionPool,
        Overloaded,
        PoolClosed,
        PoolTimeout,
        TooManyRequests,
    )
except ModuleNotFoundError as _missing:
    if _missing.name != "psycopg_pool":
        raise

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
    _object = globals().get(_name)
    if getattr(_object, "__module__", "").startswith(__name__):
        _object.__module__ = __name__


def __getattr__(name: str) -> Any:
    """Say what is missing."""
    if name in __all__:
        raise ModuleNotFoundError(f"{__name__}.{name} needs psycopg_pool: install psycopg[pool]", name="psycopg_pool")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
