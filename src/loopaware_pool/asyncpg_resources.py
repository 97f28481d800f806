"""
Transactions and prepared statements that end with their lease.

asyncpg looks whether the lease has ended when a method of theirs is called. The call only makes a coroutine. A task
made of it may take its first step when the connection is lent again already, and would begin a transaction in the
middle of the next lease. So the look is taken once more at the first step.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from asyncpg.connresource import ConnectionResource
from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bound_to_lease"]

_LOOK: Final = "_check_conn_validity"


def bound_to_lease(resource: Any) -> Any:
    """Have *resource*, as asyncpg has just made it, refuse a first step after its lease."""
    bound = _BOUND.get(type(resource))
    if bound is not None:
        resource.__class__ = bound
    return resource


def _subclass(kind: type) -> type:
    methods = {
        name: _looks_twice(name, method)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and inspect.iscoroutinefunction(inspect.unwrap(method))
    }
    return type(kind.__name__, (kind,), {"__slots__": (), "__module__": kind.__module__, **methods})


def _looks_twice(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        getattr(self, _LOOK)(name)
        return _call(method, self, args, kwargs)

    return call


async def _call(method: Callable[..., Any], resource: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return await method(resource, *args, **kwargs)  # which looks itself


_BOUND: Final[dict[type, type]] = (
    {kind: _subclass(kind) for kind in (Transaction, PreparedStatement)} if hasattr(ConnectionResource, _LOOK) else {}
)
