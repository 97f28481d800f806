"""
The drop-in for the pool of SQLAlchemy's async engine.

SQLAlchemy's part stays SQLAlchemy's: records, events, `reset_on_return`, `pool_recycle`, `pool_pre_ping`,
`invalidate()`. Which connection a caller gets, when one is opened and what becomes of it is decided by the core.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from greenlet import getcurrent
from sqlalchemy import exc
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool
from sqlalchemy.pool.base import _ConnectionFairy, _finalize_fairy
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from loopaware_pool._core.options import documented
from loopaware_pool._core.pool import PoolCore
from loopaware_pool._core.slot import SlotState, is_library
from loopaware_pool._core.state import PoolState
from loopaware_pool._core.surface import PoolSurface
from loopaware_pool._platform.event_loops import is_idle, label, post, running
from loopaware_pool._platform.frames import has_interrupted_a_decision
from loopaware_pool._platform.log_fields import fields
from loopaware_pool.driver import ReturnCheck
from loopaware_pool.sqlalchemy.driver import (
    Overloaded,
    PoolClosed,
    PoolTimeout,
    SqlalchemyDriver,
    TooManyWaiting,
    UnsupportedLoop,
)
from loopaware_pool.sqlalchemy.first_connect import FirstConnectGate
from loopaware_pool.sqlalchemy.links import cut, loop_of
from loopaware_pool.sqlalchemy.options import Options
from loopaware_pool.sqlalchemy.views import QueueView

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from loopaware_pool._core.runner import SessionListener
    from loopaware_pool._core.slot import Slot
    from loopaware_pool.sqlalchemy.session import RecordSession
    from loopaware_pool.stats import EventHook, PoolStats

__all__ = [
    "LoopAwareQueuePool",
    "Overloaded",
    "PoolClosed",
    "PoolTimeout",
    "TooManyWaiting",
    "UnsupportedLoop",
]

# Bound once: see shard.py.
_OPEN: Final = PoolState.OPEN
_LENT: Final = SlotState.LENT
_READY: Final = ReturnCheck.READY
_DRIVERS: Final = ("asyncpg", "psycopg", "psycopg_async")
# Functions known to be of a library: to ask each time for the modules of all that lie between would take 3 us.
_library_codes: set[CodeType] = set()
# How long `dispose()` waits for other loops, and for connections that are being opened or closed.
DISPOSE_SECONDS: Final = 5.0


@documented(Options)
class LoopAwareQueuePool(PoolSurface, AsyncAdaptedQueuePool):
    """
    A pool for `create_async_engine(url, poolclass=LoopAwareQueuePool)` that any number of loops, threads and
    `asyncio.run` calls share.

    Its options are given to `create_async_engine`, like those of `AsyncAdaptedQueuePool`, which it replaces.
    Connections are opened when they are needed, each on the loop of the caller that needs it. The sizes limit all loops
    together.

    Args:
        creator: Opens a connection; `create_async_engine` passes it.
        {options}
        **kw: As for `sqlalchemy.pool.Pool`, such as *recycle*, *pre_ping* and *reset_on_return*.

    Raises:
        ValueError, TypeError: An option makes no sense; the message names it.
        sqlalchemy.exc.ArgumentError: The engine is not async, or not one of PostgreSQL's with asyncpg or psycopg.
    """

    def __init__(  # noqa: PLR0917 - an engine passes only options that are not keyword-only
        self,
        creator: Any,
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float | None = 30.0,
        use_lifo: bool = False,
        name: str | None = None,
        max_waiting: int = 0,
        max_idle: float = 0.0,
        keepalive: float = 0.0,
        shed_after: float | None = None,
        max_connecting: int | None = None,
        leak_threshold: float | None = None,
        fd_check: float | None = None,
        on_event: EventHook | None = None,
        **kw: Any,
    ) -> None:
        self._options = options = Options.of(locals())
        _prepare_dialect(kw.get("dialect"))
        self._config = options.config(kw.get("logging_name"))
        self._tells_lines = leak_threshold is not None  # to find the line of an acquire costs 5 us
        self._timeout = timeout  # type: ignore[assignment]
        self._max_overflow = -1 if pool_size == 0 else max_overflow
        self._abandoned: dict[int, Any] = {}
        self._is_disposed_of = self._is_replaced = False
        self._start_anew()
        Pool.__init__(self, creator, **kw)
        FirstConnectGate.guard(self)

    def _start_anew(self) -> None:
        self._driver = SqlalchemyDriver(self)
        self._core: PoolCore[RecordSession] = PoolCore(self._config, self._driver, self)

    # ---- lending ----

    def connect(self) -> PoolProxiedConnection:
        """
        Lend a connection of the running loop, in one of SQLAlchemy's greenlets.

        Raises:
            PoolTimeout: No connection came free within *timeout*.
            TooManyWaiting: As many callers wait already as *max_waiting* allows.
            Overloaded: The queue is backed up, and the caller has waited for longer than *shed_after*.
            PoolClosed: The pool was disposed of meanwhile, or the loop ends.
            UnsupportedLoop: No loop is running, or one that cannot watch sockets.
            Exception: What connecting failed with.

        Cancellation: loses nothing. A connection handed over at that moment goes to the next waiter; one that is being
            opened joins the pool.
        """
        fairy: Any = _ConnectionFairy._checkout(self)
        session = fairy._connection_record.loopaware_session
        if fairy.dbapi_connection is not session.connection:
            session.follow()
        return fairy  # type: ignore[no-any-return]

    def _do_get(self) -> ConnectionPoolEntry:
        core = self._core
        runner = core.runner()
        if core.state is not _OPEN:
            core.start()
        slot = runner.shard.take(monotonic())
        if runner.decided:
            runner.act()
        if slot is None:
            slot = self._wait()
        code, instruction = _acquiring_line() if self._tells_lines else (None, 0)
        slot.lent_to(asyncio.current_task(runner.loop), code, instruction)
        session = slot.session
        link = session.link
        if link is not None and link.is_parked:
            link.lend()
        return session.record  # type: ignore[no-any-return]

    def _wait(self) -> Slot[RecordSession]:
        """Wait for a connection. Disposing of the pool ends no wait, as in SQLAlchemy's own."""
        timeout = self._timeout
        began = monotonic()
        while True:
            core = self._core
            try:
                return await_only(core.queue.wait(core.runner(), timeout))
            except PoolClosed:
                if core is self._core:
                    raise
            self._core.start()
            if timeout is not None:
                timeout = max(0.0, timeout - (monotonic() - began))

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        """Take a record back: from its caller, after `detach()`, or from the garbage collector."""
        session: RecordSession = record.loopaware_session  # type: ignore[attr-defined]
        listener = session.owner
        if listener is None or listener.slot.state is not _LENT:  # the parent process has it; or its loop has ended
            return
        connection = record.dbapi_connection
        if connection is None and _is_for_the_collector(sys._getframe()):
            self._abandoned[id(session.connection)] = session.connection
            session.reclaim_soon()
            return
        runner = listener.runner
        if connection is None and has_interrupted_a_decision():  # the collector may return an invalidated one, too
            runner.errands.add_for_later(functools.partial(self._take_back_at_home, record, listener))
            return
        if runner.loop is not running():
            runner.errands.add(functools.partial(self._take_back_at_home, record, listener))
            return
        is_to_be_seen = session.needs_care or connection is None or connection is not session.connection
        check = ReturnCheck.BROKEN if is_to_be_seen else _READY
        try:
            if is_to_be_seen:
                check = session.take_back()
        finally:
            runner.shard.returned(listener.slot, check, monotonic())
            if runner.decided:
                runner.act()

    def _take_back_at_home(self, record: ConnectionPoolEntry, listener: SessionListener[RecordSession]) -> None:
        """Take a connection back on its own loop, or for that loop if it is not running."""
        if not listener.slot.is_lent():  # the record may have another connection, which another caller has
            return
        if listener.runner.is_here():
            self._do_return_conn(record)
        else:
            listener.runner.shard.returned(listener.slot, ReturnCheck.STRANDED, monotonic())
            listener.runner.act()

    # ---- closing ----

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        """
        Close one of SQLAlchemy's connections: by its dialect, if that can wait for it here; else without a goodbye, on
        its own loop.
        """
        if id(connection) in self._abandoned:  # the garbage collector may have come in the middle of anything
            return
        loop, here = loop_of(connection), running()
        if loop is None or (loop is here and in_greenlet()):
            super()._close_connection(connection, terminate=terminate)
            return
        told = fields("hard_close", self._config.name, loop=label(loop))
        self.logger.debug("Hard-closing connection %r", connection, extra=told)
        if loop is here or is_idle(loop) or not post(loop, cut, connection, loop):
            cut(connection, loop)

    def gone(self, connection: Any) -> None:
        """Note that a connection that a caller had dropped has been closed."""
        self._abandoned.pop(id(connection), None)

    def dispose(self) -> None:
        """
        Close the idle connections of all loops, and the lent ones when they come back. The pool can be used again.

        Called in one of SQLAlchemy's greenlets, as by `await engine.dispose()`, it waits until the connections of this
        loop are closed, and other loops have begun to close theirs, for 5 seconds at most.

        Cancellation: ends the waiting.
        """
        core = self._core
        self._start_anew()
        self._is_disposed_of = True
        self._core.count_on_from(core.stats().totals)
        if running() is not None and in_greenlet():
            await_only(core.close_unused(DISPOSE_SECONDS))
        else:
            core.shut_unused()
        told = fields("disposed", self._config.name, **core.counts())
        self.logger.info("Pool disposed. %s", self.status(), extra=told)

    def recreate(self) -> LoopAwareQueuePool:
        """
        Make another pool with the same options and listeners.

        If this one has been disposed of, the other takes its place. Callers that still wait here are served, with
        connections that are not kept.
        """
        self.logger.info("Pool recreating", extra=fields("recreating", self._config.name))
        if self._is_disposed_of:
            self._is_replaced = True
            self._core.reconfigure(max_idle_size=0)
        options = {name: getattr(self._options, name) for name in Options.names()}
        return self.__class__(
            self._creator,
            **options,
            pre_ping=self._pre_ping,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def keep_record(self, record: ConnectionPoolEntry) -> None:
        """Use a record that has no connection any more for the next connect."""
        spare = self._driver.spare_records
        if len(spare) < self._config.max_idle_size:
            spare.append(record)

    # ---- counts ----

    def stats(self) -> PoolStats:
        """
        Count everything, for the pool and for each loop. From any thread.

        What was counted before `dispose()` is included. An engine that is disposed of has another pool then, which
        begins to count anew, and this one is "closed".
        """
        stats = super().stats()
        return replace(stats, state=PoolState.CLOSED.value) if self._is_replaced else stats

    @property
    def pool_name(self) -> str:
        """Name of the pool, in errors."""
        return self._config.name

    def size(self) -> int:
        """Most connections kept idle; 0 for no limit."""
        return self._options.pool_size

    def checkedin(self) -> int:
        """Connections that are idle, and records that wait for a new connection; as many as may be idle at most."""
        idle = self._core.idle_size()
        waiting = len(self._driver.spare_records) + len(self._abandoned)
        return max(idle, min(idle + waiting, self._config.max_idle_size))

    def checkedout(self) -> int:
        """Connections that callers have, or that are being opened for callers that still wait."""
        core = self._core
        opening = sum(min(len(runner.shard.connecting), len(runner.shard.waiters)) for runner in core.runners())
        return core.live_size() - core.idle_size() - len(self._abandoned) + opening

    def overflow(self) -> int:
        """Connections above `pool_size`; negative while there are fewer. 0 if *pool_size* is 0."""
        return self._overflow if self._options.pool_size else 0

    @property
    def _overflow(self) -> int:  # type: ignore[override]
        return self.checkedin() + self.checkedout() - self._options.pool_size

    @property
    def _pool(self) -> QueueView:  # type: ignore[override]
        return QueueView(self._options, self.idle_records)

    def idle_records(self) -> list[Any]:
        """List SQLAlchemy's records of idle connections, on all loops."""
        return [slot.session.record for runner in self._core.runners() for slot in runner.shard.idle]


def _is_for_the_collector(frame: FrameType) -> bool:
    """
    Whether a record is returned because the garbage collector has come for what its caller had.

    SQLAlchemy calls `detach` then, as a caller may: only from another function. In a greenlet that may be the first.
    """
    detach = frame.f_back
    caller = None if detach is None else detach.f_back
    return caller is not None and caller.f_code is _finalize_fairy.__code__


def _acquiring_line() -> tuple[CodeType | None, int]:
    """Find the line that called SQLAlchemy. Its greenlets let it wait for coroutines, so the line is in the parent."""
    parent: Any = getcurrent().parent
    frame: FrameType | None = parent.gr_frame if parent is not None else sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code not in _library_codes:
            if not is_library(frame):
                return code, frame.f_lasti
            _library_codes.add(code)
        frame = frame.f_back
    return None, 0


def _prepare_dialect(dialect: Any) -> None:
    """
    Refuse an engine that cannot be served.

    SQLAlchemy takes psycopg for a driver whose connections cannot be closed outside of a coroutine. So it would leave
    those that are detached, or dropped, to the garbage collector.

    Raises:
        sqlalchemy.exc.ArgumentError: It is not async, or its driver is neither asyncpg nor psycopg.
    """
    driver = getattr(dialect, "driver", None)
    if driver is None:  # a pool without an engine
        return
    if not dialect.is_async or driver not in _DRIVERS:
        raise exc.ArgumentError(
            f"LoopAwareQueuePool is for create_async_engine() with postgresql+asyncpg or postgresql+psycopg, "
            f"not for {'' if dialect.is_async else 'a sync engine with '}{dialect.name}+{driver}"
        )
    dialect.has_terminate = True
