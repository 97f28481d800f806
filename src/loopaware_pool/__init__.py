"""
A PostgreSQL connection pool for asyncio that knows which event loop each connection's socket belongs to.

    from loopaware_pool import create_pool      # in place of asyncpg's

Or without changing an import, for all pools of a program:

    loopaware_pool.install()

Importing this package imports no driver; naming `create_pool` imports asyncpg.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopaware_pool.asyncpg import create_pool as create_pool
    from loopaware_pool.swapping import install as install
    from loopaware_pool.swapping import uninstall as uninstall

__all__ = ["__version__", "create_pool", "install", "uninstall"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "create_pool":
        from loopaware_pool.asyncpg import create_pool

        return create_pool
    if name in ("install", "uninstall"):
        from loopaware_pool import swapping

        return getattr(swapping, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
