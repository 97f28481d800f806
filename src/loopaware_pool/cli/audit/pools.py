"""
The pools that `audit` can work on, each made by a callable that is named as `module:factory`.

What a factory must be, and what it makes, is told in docs/audit.md; the drivers' own pools and ours are such, too.
"""

from __future__ import annotations

import inspect
import os
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool._platform.conninfo import hide_passwords
from loopaware_pool.cli.command import Unusable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["OURS", "POOLS", "find_factory", "open_pool"]

POOLS: Final = {
    "ours": "loopaware_pool:create_pool",
    "ours-psycopg": "loopaware_pool.psycopg:AsyncConnectionPool",
    "asyncpg": "asyncpg:create_pool",
    "psycopg_pool": "psycopg_pool:AsyncConnectionPool",
}
OURS: Final = ("ours", "ours-psycopg")
_QUERY: Final = "SELECT 1"


def find_factory(pool: str) -> Callable[..., Any]:
    """
    Import what makes a pool.

    Args:
        pool: One of `POOLS`, or `module:factory`; modules in the current folder are found.

    Raises:
        Unusable: There is no such pool.
    """
    module, _, name = POOLS.get(pool, pool).partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise Unusable(hide_passwords(f"--pool {pool!r}: no such pool; give {', '.join(POOLS)}, or module:factory"))
    if pool not in POOLS and os.getcwd() not in sys.path:  # what the folder has is asked for by name alone
        sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(import_module(module), name, None)
    except Exception as error:  # noqa: BLE001 - a module may raise anything when it is imported
        reason = hide_passwords(f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise Unusable(f"--pool {pool}: {module} cannot be imported ({reason}); is it installed, or in here?") from None
    if not callable(factory):
        raise Unusable(f"--pool {pool}: {module} has no callable {name}; name one that takes a DSN and makes a pool")
    made: Callable[..., Any] = factory
    return made


@asynccontextmanager
async def open_pool(factory: Callable[..., Any], dsn: str, size: int) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """
    Make a pool, open it, and close it at the end of the block.

    Yields:
        A coroutine function that takes a connection, asks one query, and gives the connection back.

    Raises:
        Unusable: What was made is no pool.
    """
    made = factory(dsn, **_sizes(factory, size))
    pool = await made if inspect.isawaitable(made) else made
    async with AsyncExitStack() as stack:
        if hasattr(pool, "__aenter__"):
            pool = await stack.enter_async_context(pool)
        elif hasattr(pool, "close"):
            stack.push_async_callback(_finish, pool.close)
        else:
            raise Unusable(f"{_name(pool)}, which the factory made, cannot be closed; it needs close(), or async with")
        if not hasattr(pool, "connection") and not hasattr(pool, "acquire"):
            raise Unusable(f"{_name(pool)}, which the factory made, is no pool; it needs acquire() or connection()")

        async def query() -> None:
            async with _lease(pool) as connection:
                await _finish(getattr(connection, "fetchval", None) or connection.execute, _QUERY)

        yield query


def _sizes(factory: Callable[..., Any], size: int) -> dict[str, Any]:
    """Give the factory what it has a name for; psycopg_pool's, not to open itself in its constructor."""
    offered = {"size": size, "min_size": size, "max_size": size, "open": False}
    try:
        names = inspect.signature(factory).parameters
    except ValueError:  # a callable made in C may not tell
        return {}
    return {name: value for name, value in offered.items() if name in names}


@asynccontextmanager
async def _lease(pool: Any) -> AsyncIterator[Any]:
    lease = pool.connection() if hasattr(pool, "connection") else pool.acquire()
    if hasattr(lease, "__aenter__"):
        async with lease as connection:
            yield connection
        return
    connection = await lease
    try:
        yield connection
    finally:
        await _finish(pool.release, connection)


async def _finish(function: Callable[..., Any], *arguments: Any) -> None:
    outcome = function(*arguments)
    if inspect.isawaitable(outcome):
        await outcome


def _name(made: object) -> str:
    return f"{type(made).__module__}.{type(made).__qualname__}"
