"""An async engine of SQLAlchemy's on the loop-aware pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url
from sqlalchemy.ext import asyncio as upstream

from loopaware_pool._core.checks import check_secret
from loopaware_pool.sqlalchemy.asked_arguments import with_functions
from loopaware_pool.sqlalchemy.pool import LoopAwareQueuePool

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["create_async_engine"]


def create_async_engine(url: str | URL, **kw: Any) -> AsyncEngine:
    """
    Create an async engine that any number of loops, threads and `asyncio.run` calls share.

    With psycopg, its connections are `loopaware_pool.psycopg.LoopAwareConnection`, unless the caller says how they are
    made.

    Args:
        url: `postgresql+asyncpg://...` or `postgresql+psycopg://...`.
        **kw: As for SQLAlchemy's function, and the options of `LoopAwareQueuePool`. *connect_args* may be a function,
            plain or async, that returns the driver's own arguments, and so may be its *password*. It is called without
            arguments before each connect.

    Raises:
        ValueError, TypeError: An option makes no sense; the message names it.
        sqlalchemy.exc.ArgumentError: The URL is of another driver, or SQLAlchemy refuses it.
    """
    kw.setdefault("poolclass", LoopAwareQueuePool)
    is_made_by_caller = kw.get("async_creator") or kw.get("creator")
    connect_args = kw.get("connect_args") or {}
    check_secret("connect_args", connect_args, (Mapping,), "a dict, or a function that returns one")
    if is_made_by_caller:
        if callable(connect_args):
            raise TypeError(
                "connect_args: a function is not asked where creator or async_creator makes the connections"
            )
    else:
        kw["connect_args"] = with_functions(connect_args, driver=make_url(url).get_driver_name())
    return upstream.create_async_engine(url, **kw)
