"""What `LoopAwareQueuePool` takes besides SQLAlchemy's own options."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Final

from loopaware_pool._core.checks import check_name, check_whole, count, number, or_none, seconds
from loopaware_pool._core.config import IdleOrder, PoolConfig
from loopaware_pool._core.options import SharedOptions, option

__all__ = ["Options"]

_some_seconds: Final = number("a number of seconds, 0 or more; None for ever", lambda value: value >= 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(SharedOptions):
    """
    The sizes and times of the pool.

    Raises:
        ValueError, TypeError: One makes no sense.
    """

    pool_size: int = option(
        "Most connections kept idle, on all loops together; 0 for no limit, which makes *max_overflow* -1.",
        check=count(0),
        default=5,
    )
    max_overflow: int = option(
        "Connections there may be above *pool_size*, on all loops together; -1, or another negative number, for no "
        "limit. They are closed when they are returned, if no caller waits for one and *pool_size* others are idle.",
        check=check_whole,
        default=10,
    )
    timeout: float | None = option(
        "Seconds that a caller waits for others; None for ever. Opening a connection is not limited by it. To "
        "`create_async_engine` it is *pool_timeout*.",
        check=or_none(_some_seconds),
        default=30.0,
    )
    use_lifo: bool = option(
        "Whether the connection used last is lent next. To `create_async_engine` it is *pool_use_lifo*.", default=False
    )
    name: str | None = option(
        'In errors, logs, events and metrics; None for *pool_logging_name*, or else "pool-N".',
        check=or_none(check_name),
        default=None,
    )
    max_waiting: int = option(
        "Callers that may wait at once for others; more are refused with `TooManyWaiting`. 0 for no limit.",
        check=count(0),
        default=0,
    )
    max_idle: float = option(
        "Seconds after which an idle connection is closed; 0 never.", check=seconds("0 turns it off"), default=0.0
    )

    def config(self, name: str | None) -> PoolConfig:
        """Say the same in the core's terms. *name* stands in for one that is not given."""
        name = self.name or name
        named: dict[str, Any] = {} if name is None else {"name": name}
        is_limited = self.pool_size > 0 and self.max_overflow >= 0
        return PoolConfig(
            **self.shared(),
            **named,
            min_size=0,
            init_size=0,
            max_size=self.pool_size + self.max_overflow if is_limited else sys.maxsize,
            max_idle_size=self.pool_size or sys.maxsize,
            max_idle=self.max_idle,
            max_waiting=self.max_waiting,
            timeout_covers_connecting=False,
            parks_at_once=False,  # it returns connections in tasks of their own, which the caller waits for
            resets_in_passing=False,
            idle_order=IdleOrder.LIFO if self.use_lifo else IdleOrder.FIFO,
        )
