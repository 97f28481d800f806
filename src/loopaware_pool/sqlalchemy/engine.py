"""An async engine of SQLAlchemy's on the loop-aware pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import make_url
from sqlalchemy.ext import asyncio as upstream

from loopaware_pool.sqlalchemy.pool import LoopAwareQueuePool

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["create_async_engine"]

_PSYCOPG: Final = ("psycopg", "psycopg_async")


def create_async_engine(url: str | URL, **kw: Any) -> AsyncEngine:
    """
    Create an async engine that any number of loops, threads and `asyncio.run` calls share.

    With psycopg, its connections are `loopaware_pool.psycopg.LoopAwareConnection`, unless the caller says how they are
    made.

    Args:
        url: `postgresql+asyncpg://...` or `postgresql+psycopg://...`.
        **kw: As for SQLAlchemy's function, and the options of `LoopAwareQueuePool`.

    Raises:
        ValueError, TypeError: An option makes no sense; the message names it.
        sqlalchemy.exc.ArgumentError: The URL is of another driver, or SQLAlchemy refuses it.
    """
    kw.setdefault("poolclass", LoopAwareQueuePool)
    is_made_by_caller = kw.get("async_creator") or kw.get("creator")
    if not is_made_by_caller:
        kw["connect_args"] = {**_maker(make_url(url).get_driver_name()), **(kw.get("connect_args") or {})}
    return upstream.create_async_engine(url, **kw)


def _maker(driver: str) -> dict[str, Any]:
    """Tell SQLAlchemy how the connections of a driver are made."""
    if driver in _PSYCOPG:
        from loopaware_pool.psycopg import LoopAwareConnection

        return {"async_creator_fn": LoopAwareConnection.connect}
    if driver == "asyncpg":
        from loopaware_pool.asyncpg.hosts import HostOrder

        return {"async_creator_fn": HostOrder().connect}
    return {}
