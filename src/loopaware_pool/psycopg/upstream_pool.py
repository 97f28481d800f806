"""What can be read and set on a psycopg pool, in psycopg_pool's way and in ours. Lending is in `pool.py`."""

from __future__ import annotations

import functools
import logging
import sys
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn, cast

import psycopg_pool
from psycopg_pool.abc import ACT

from loopaware_pool._core.surface import PoolSurface
from loopaware_pool._platform.log_fields import fields
from loopaware_pool.psycopg.likeness import (
    as_given,
    check_seconds,
    check_sizes,
    check_span,
    checked_class,
    checked_name,
    counted,
    span,
    waiting_limit,
)
from loopaware_pool.psycopg.options import check_conninfo, check_kwargs, lends_expired
from loopaware_pool.psycopg.session import check_connection

if TYPE_CHECKING:
    from psycopg_pool.abc import AsyncConninfoParam, AsyncKwargsParam

    from loopaware_pool._core.pool import PoolCore
    from loopaware_pool.psycopg.driver import PsycopgDriver
    from loopaware_pool.psycopg.session import PsycopgSession

__all__ = ["UpstreamPool"]

logger: logging.Logger = logging.getLogger("psycopg.pool")


def _refuse_size(which: str, _: object, value: object) -> NoReturn:
    raise AttributeError(f"{which}={value!r}: cannot be assigned; use `await pool.resize(min_size, max_size)`")


class UpstreamPool(PoolSurface, psycopg_pool.AsyncConnectionPool[ACT]):
    """The part of a pool that does not lend."""

    close_returns: bool
    _discard_expired: str
    _keeps_idle: bool
    _core: PoolCore[PsycopgSession]
    _driver: PsycopgDriver
    _popped: dict[str, int]
    _rechecks: int
    _timeout: float

    async def resize(self, min_size: int, max_size: int | None = None) -> None:
        """
        Keep, and allow, another number of connections. None for *max_size* means *min_size*.

        Surplus connections close when they have not been needed for *max_idle* seconds.

        Raises:
            ValueError, TypeError: The sizes make no sense; nothing has changed.
        """
        max_size = check_sizes(min_size, max_size, keeps_idle=self._keeps_idle)
        told = fields("resizing", self.name, pool_min_size=min_size, pool_max_size=max_size)
        logger.info("resizing %r to min_size=%s max_size=%s", self.name, min_size, max_size, extra=told)
        self._core.resize(min_size, max_size or sys.maxsize)

    async def check(self) -> None:
        """
        Make a round trip on each idle connection. Those that fail are closed and replaced.

        Other loops check their own connections; this does not wait for them. A pool that is not open has no idle
        connection.

        Cancellation: ends the waiting, not the checks.
        """
        await self._core.check_idle()

    async def drain(self) -> None:
        """Replace every connection that is open: the idle ones now, the others when they come back."""
        self._core.drain()

    @staticmethod
    async def check_connection(conn: ACT) -> None:
        """
        Make a round trip, and leave the connection as it was. To be given as *check*.

        Raises:
            Exception: The connection has become useless.
        """
        await check_connection(conn)

    def get_stats(self) -> dict[str, int]:
        """Return the counts under psycopg_pool's names: times in milliseconds, and only counters that are not 0."""
        totals = counted(self.stats(), self._rechecks)
        rose = {key: total - self._popped.get(key, 0) for key, total in totals.items()}
        return {key: rise for key, rise in rose.items() if rise} | self._measured()

    def pop_stats(self) -> dict[str, int]:
        """Return `get_stats()`, and start counting anew."""
        stats = self.get_stats()
        self._popped = counted(self.stats(), self._rechecks)
        return stats

    def _measured(self) -> dict[str, int]:
        stats = self.stats()
        return {
            "pool_min": self.min_size,
            "pool_max": self.max_size,
            "pool_size": stats.size + stats.connecting,
            "pool_available": stats.idle,
            "requests_waiting": self._core.queue.waiting_in_line(),
        }

    @property
    def min_size(self) -> int:
        """Connections kept while idle."""
        return self._core.shared.config.min_size

    @property
    def max_size(self) -> int:
        """Most connections there may be, on all loops together. For a null pool, 0 means any number."""
        limit = self._core.shared.config.max_size
        return 0 if limit == sys.maxsize else limit

    # ---- what may be assigned ----

    @property
    def conninfo(self) -> AsyncConninfoParam:
        """Where to connect from now on."""
        return self._driver.conninfo

    @conninfo.setter
    def conninfo(self, conninfo: AsyncConninfoParam) -> None:
        check_conninfo("conninfo", conninfo)
        self._driver.conninfo = conninfo

    @property
    def kwargs(self) -> AsyncKwargsParam | None:
        """The arguments to connect with from now on."""
        return self._driver.kwargs

    @kwargs.setter
    def kwargs(self, kwargs: AsyncKwargsParam | None) -> None:
        check_kwargs("kwargs", kwargs)
        self._driver.kwargs = kwargs

    @property
    def connection_class(self) -> type[ACT]:
        """The class of connections made from now on."""
        return cast("type[ACT]", self._driver.connection_class)

    @connection_class.setter
    def connection_class(self, kind: type[ACT]) -> None:
        self._driver.connection_class = checked_class(kind, close_returns=self.close_returns)

    @property
    def name(self) -> str:
        """The pool's name in errors, logs, events and metrics from now on."""
        return self._core.shared.config.name

    @name.setter
    def name(self, name: str | None) -> None:
        name = checked_name(name)
        self._core.reconfigure(name=name)
        self._driver.name = name
        self._core.for_each_session(lambda session: session.rename(name))

    @property
    def max_waiting(self) -> int:
        """Callers that may wait at once, from now on; 0 for no limit."""
        return self._core.shared.config.max_waiting

    @max_waiting.setter
    def max_waiting(self, number: float | None) -> None:
        self._core.reconfigure(max_waiting=waiting_limit(number))

    @property
    def max_idle(self) -> float:
        """Seconds after which the pool closes, from now on, a connection above *min_size* that was not needed."""
        return as_given(self._core.shared.config.max_idle)

    @max_idle.setter
    def max_idle(self, seconds: float) -> None:
        check_span("max_idle", seconds)
        self._core.reconfigure(max_idle=span(seconds))

    @property
    def reconnect_timeout(self) -> float:
        """Seconds of failing connects after which `reconnect_failed` is called; from the next outage on."""
        return self._driver.reconnect_seconds

    @reconnect_timeout.setter
    def reconnect_timeout(self, value: float) -> None:
        check_seconds("reconnect_timeout", value)
        self._driver.reconnect_seconds = value

    @property
    def max_lifetime(self) -> float:
        """Seconds after which a connection opened from now on is replaced."""
        return as_given(self._core.shared.config.max_lifetime)

    @max_lifetime.setter
    def max_lifetime(self, seconds: float) -> None:
        check_span("max_lifetime", seconds)
        is_lent_expired = lends_expired(self._discard_expired, seconds)
        self._core.reconfigure(max_lifetime=span(seconds), lends_expired=is_lent_expired)

    def _set_timeout(self, value: float) -> None:
        check_seconds("timeout", value)
        self._timeout = value

    if not TYPE_CHECKING:  # type checkers see, as with psycopg_pool, an attribute, and sizes that cannot be assigned
        # Read at each lease, so the getter is a function in C.
        timeout = property(attrgetter("_timeout"), _set_timeout, doc="Seconds for callers that give no timeout.")
        min_size = min_size.setter(functools.partial(_refuse_size, "min_size"))
        max_size = max_size.setter(functools.partial(_refuse_size, "max_size"))

    @property
    def _pool(self) -> list[Any]:  # type: ignore[override]
        return [slot.session.connection for runner in self._core.runners() for slot in runner.shard.idle]

    @property
    def _nconns(self) -> int:  # type: ignore[override]
        return self._core.size()

    @property
    def _waiting(self) -> list[object]:  # type: ignore[override]
        return [waiter for runner in self._core.runners() for waiter in runner.shard.waiters]

    def run_task(self, task: object) -> NoReturn:
        """Refuse: there are none of psycopg_pool's workers."""
        raise NotImplementedError(f"{type(self).__name__} has no workers to run {task!r}")

    async def schedule_task(self, task: object, delay: float) -> NoReturn:
        """Refuse: there are none of psycopg_pool's workers."""
        raise NotImplementedError(f"{type(self).__name__} has no workers to run {task!r} after {delay} s")
