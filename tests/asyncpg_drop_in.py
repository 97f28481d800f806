"""Words for what a program does with asyncpg's pool and with ours."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["ONE", "close_cancelled", "only_ours"]

ONE = {"min_size": 1, "max_size": 1}


def only_ours(create_pool: Callable[..., Any], session_reset: str) -> dict[str, str]:
    """An option that asyncpg's own pool has not; it is "awaited"."""
    return {} if create_pool is asyncpg.create_pool else {"session_reset": session_reset}


async def close_cancelled(pool: asyncpg.Pool, con: object) -> None:
    """Close a pool whose connection is lent, and give up waiting for it."""
    closing = asyncio.ensure_future(pool.close())
    await asyncio.sleep(0.01)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
