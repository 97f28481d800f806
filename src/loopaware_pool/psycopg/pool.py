"""
The drop-in for psycopg_pool's async pools.

`AsyncConnectionPool` and `AsyncNullConnectionPool` take the arguments of psycopg_pool 3.3's, with its defaults, and
behave like them, whichever supported version of it is installed. Additions are described where they are. Where
psycopg_pool's behaviour is less safe it is still our default; options change it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg_pool
from psycopg_pool.abc import ACT

from loopaware_pool._core.checks import check_number
from loopaware_pool._core.options import documented
from loopaware_pool._core.pool import PoolCore
from loopaware_pool._core.slot import SlotState, acquiring_line
from loopaware_pool._core.state import PoolState
from loopaware_pool._core.timeouts import patience_after
from loopaware_pool._platform.event_loops import running
from loopaware_pool._platform.log_fields import error_type, fields
from loopaware_pool.driver import ReturnCheck
from loopaware_pool.psycopg.connection import LoopAwareConnection
from loopaware_pool.psycopg.driver import (
    InitTimeout,
    Overloaded,
    PoolClosed,
    PoolTimeout,
    PsycopgDriver,
    TooManyRequests,
    UnsupportedLoop,
)
from loopaware_pool.psycopg.lending import Checkup, Lease
from loopaware_pool.psycopg.likeness import checked_class, checked_name, warn_of_open
from loopaware_pool.psycopg.options import DiscardDead, DiscardExpired, Options, Order, SessionReset
from loopaware_pool.psycopg.socket_waiter import WrongLoop
from loopaware_pool.psycopg.upstream_pool import UpstreamPool

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from psycopg_pool.abc import AsyncConnectFailedCB, AsyncConnectionCB, AsyncConninfoParam, AsyncKwargsParam

    from loopaware_pool._core.runner import SessionListener, ShardRunner
    from loopaware_pool._core.slot import Slot
    from loopaware_pool.psycopg.session import PsycopgSession
    from loopaware_pool.stats import EventHook

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

logger: logging.Logger = logging.getLogger("psycopg.pool")

_DEFAULT_CLASS: Final[Any] = LoopAwareConnection
_OPEN: Final = PoolState.OPEN  # bound once: see shard.py
_NOT_READY: Final = (SlotState.CONNECTING, SlotState.RESETTING, SlotState.CLOSING)
_IN_TRANSIT: Final = (SlotState.RESETTING, SlotState.CLOSING)
_SECONDS: Final = "a number of seconds"
# How often `wait()` checks what other loops have opened.
_FLOOR_LOOK_SECONDS: Final = 0.05
# How often a null pool's `wait()` tries to connect.
_RETRY_SECONDS: Final = 0.25


@documented(Options)
class AsyncConnectionPool(UpstreamPool[ACT]):
    """
    A connection pool that any number of loops, threads and `asyncio.run` calls share.

    It is opened once, on any loop. After that it serves every loop from that loop's first `connection()` on, with
    connections of its own; *max_size* limits them all together. It may be made without a loop, as at import time.

    Args:
        {options}

    Raises:
        ValueError, TypeError: An argument makes no sense; the message names it.
        RuntimeError: The pool is opened here, and no loop is running, or one that cannot watch sockets.
    """

    _keeps_idle: bool = True
    _rechecks = 0

    def __init__(
        self,
        conninfo: AsyncConninfoParam = "",
        *,
        connection_class: type[ACT] = _DEFAULT_CLASS,
        kwargs: AsyncKwargsParam | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool | None = None,  # noqa: A002 - psycopg_pool's name for it
        configure: AsyncConnectionCB[ACT] | None = None,
        check: AsyncConnectionCB[ACT] | None = None,
        reset: AsyncConnectionCB[ACT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: AsyncConnectFailedCB | None = None,
        num_workers: int = 3,
        session_reset: SessionReset = "never",
        reset_query: str | None = None,
        idle_order: Order = "fifo",
        discard_dead: DiscardDead = "on_check",
        discard_expired: DiscardExpired = "on_return",
        keepalive: float = 0,
        shed_after: float | None = None,
        max_connecting: int | None = None,
        leak_threshold: float | None = None,
        fd_check: float | None = None,
        on_event: EventHook | None = None,
    ) -> None:
        options = Options.of(locals())
        name = checked_name(name)
        config = options.config(name, keeps_idle=self._keeps_idle)
        self.timeout = timeout
        self.close_returns: bool = self._keeps_idle and close_returns
        self.num_workers: int = num_workers
        self._check, self._reconnect_failed, self._discard_expired = check, reconnect_failed, discard_expired
        self._driver = PsycopgDriver(
            options,
            name=name,
            connection_class=checked_class(connection_class, close_returns=self.close_returns),
            ping=self.check_connection,
            tells_errors=not self._keeps_idle,
            outlasted=self._connects_outlasted,
            connecting=self._log_growth,
        )
        self._core = PoolCore(config, self._driver, self)
        self._reconnect_tasks: set[asyncio.Task[None]] = set()
        self._popped: dict[str, int] = {}
        self._open_if(open)

    # ---- opening and closing ----

    async def open(self, wait: bool = False, timeout: float | None = 30.0) -> None:
        """
        Open the pool, or serve the running loop from now on, too. *min_size* connections are opened in the background.

        Args:
            wait: Whether to `wait()` for them.
            timeout: Seconds for that; None waits as long as it takes.

        Raises:
            PoolClosed: It has been closed.
            PoolTimeout: As `wait()`.
            RuntimeError: No loop is running, or one that cannot watch sockets.
        """
        self._open()
        if wait:
            await self.wait(timeout)

    def _open_if(self, asked: bool | None) -> None:
        self._is_to_warn = asked is None
        if asked:
            warn_of_open(type(self), stacklevel=4)
        if asked is not False:
            self._open()

    def _open(self) -> None:
        if self._core.state is PoolState.CLOSED:
            raise PoolClosed("pool has already been opened/closed and cannot be reused", pool=self.name)
        if running() is None:
            raise UnsupportedLoop(f"{type(self).__name__} open with no running loop", pool=self.name)
        self._core.start()

    async def wait(self, timeout: float | None = 30.0) -> None:
        """
        Wait until *min_size* connections are open, and those that came back are ready again.

        Lent connections count. A null pool opens one, to see whether that is possible.

        Args:
            timeout: Seconds, after which the pool is closed; None waits as long as it takes.

        Raises:
            PoolTimeout: They were not open in time; its cause is the last error of a connect.
            Exception: What connecting failed with, if another connect would fail, too, as after a `TypeError` in
                `configure`; the pool is closed, as after a timeout.
            PoolClosed: The pool is not open.

        Cancellation: ends the waiting.
        """
        seconds = _longest("timeout", timeout)
        self._check_open()
        runner = self._core.runner()
        if self._is_full():
            return
        logger.info("waiting for pool %r initialization", self.name, extra=fields("opening", self.name))
        runner.callers += 1
        driver, old_fault = self._driver, self._driver.fault
        try:
            is_ready = await self._is_ready_within(runner, seconds, old_fault)
        finally:
            runner.callers -= 1
        if is_ready:
            logger.info("pool %r is ready to use", self.name, extra=fields("ready", self.name))
            return
        error = driver.new_fault(old_fault) or self._init_timeout(runner, seconds)
        await self.close()
        raise error

    def _init_timeout(self, runner: ShardRunner[PsycopgSession], seconds: float) -> InitTimeout:
        cause = self._driver.fault or runner.shard.last_error
        return InitTimeout(timeout=seconds, stats=self.stats(), holders=tuple(runner.leases()), cause=cause)

    def _is_full(self) -> bool:
        return self._keeps_idle and len(self._core.slots(*_NOT_READY)) >= self._core.shared.config.min_size

    async def _is_ready_within(
        self, runner: ShardRunner[PsycopgSession], seconds: float, old_fault: BaseException | None
    ) -> bool:
        """Wait for the connections. False as soon as the time is up, or the program is found to be at fault."""
        core, deadline = self._core, monotonic() + seconds

        def is_over() -> bool:
            return self._is_full() or core.state is not _OPEN or self._driver.new_fault(old_fault) is not None

        # Connects of other loops wake nothing here, so check at intervals.
        while not await runner.changes.until(is_over, min(_FLOOR_LOOK_SECONDS, max(0.0, deadline - monotonic()))):
            if monotonic() >= deadline:
                return False
        self._check_open()
        return self._is_full()

    async def close(self, timeout: float | None = 5.0) -> None:
        """
        Close the pool on every loop: refuse waiting callers, close idle connections at once and others when they come
        back.

        Args:
            timeout: Seconds for connections that are being opened or rolled back, after which they are aborted; None
                waits as long as it takes.

        Cancellation: ends the waiting. The pool is closed.
        """
        if timeout is not None:
            check_number("timeout", timeout, _SECONDS)
        if self._core.state is not PoolState.NEW:
            await self._core.close_unused(timeout)

    @property
    def closed(self) -> bool:
        """Whether the pool is not open: not yet, or no longer."""
        return self._core.state is not _OPEN

    async def __aenter__(self) -> Self:
        self._is_to_warn = False
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    def _check_open(self) -> None:
        state = self._core.state
        if state is not _OPEN:
            what = "not open yet" if state is PoolState.NEW else "already closed"
            raise PoolClosed(f"the pool {self.name!r} is {what}", pool=self.name)
        if self._is_to_warn:
            self._is_to_warn = False
            warn_of_open(type(self), stacklevel=4)

    # ---- lending ----

    def connection(self, timeout: float | None = None) -> Lease[ACT]:  # type: ignore[override]
        """
        Lend a connection of the running loop for a block.

        Args:
            timeout: Seconds to wait for it; None takes the pool's.

        Returns:
            An object to enter with `async with`. At the end of the block the transaction is committed, or rolled back
            after an error, and the connection is returned.

        Raises:
            As `getconn()`. (When entered.)
        """
        return Lease(self, timeout)

    async def getconn(self, timeout: float | None = None) -> ACT:
        """
        Lend a connection of the running loop, to be given back with `putconn()`.

        Args:
            timeout: Seconds for everything: the queue, connecting, `check`. None takes the pool's. With 0 or less,
                unlike psycopg_pool, an idle connection is lent.

        Raises:
            TypeError: *timeout* is not a number.
            PoolTimeout: No connection came in time. It has the counts and the holders; its cause is the last error of a
                connect.
            PoolClosed: The pool is not open, or was closed meanwhile.
            TooManyRequests: As many callers wait already as *max_waiting* allows.
            Overloaded: The queue is backed up, and the caller has waited for longer than *shed_after*.
            UnsupportedLoop: No loop is running, or one that cannot watch sockets.

        Cancellation: loses nothing. A connection handed over at that moment goes to the next waiter; one that is being
        opened joins the pool.
        """
        if timeout is None:
            timeout = self.timeout
        else:
            check_number("timeout", timeout, _SECONDS)
        if is_logged := logger.isEnabledFor(logging.INFO):
            logger.info("connection requested from %r", self.name, extra=fields("connection_requested", self.name))
        core = self._core
        if core.state is not _OPEN or self._is_to_warn:
            self._check_open()
        runner = core.runner()
        began = monotonic()
        slot = runner.shard.take(began)
        if runner.decided:
            runner.act()
        if slot is None:
            slot = await core.queue.wait(runner, timeout)
        connection = self._lend(slot, runner)
        if self._check is not None:
            connection = await Checkup(self, runner, self._check, timeout, began).first_that_passes(connection)
        if is_logged:
            logger.info("connection given by %r", self.name, extra=fields("connection_given", self.name))
        return connection

    async def putconn(self, conn: ACT) -> None:
        """
        Give back a connection that `getconn()` lent. It may be called on any loop.

        Nothing is done with a connection that the end of its loop has closed, or that belongs to the parent process.

        An open transaction is rolled back, and this waits for it. A caller whose time is up, because it is handling a
        `TimeoutError` or a cancellation, waits for a tenth of a second at most. A connection on which a query is still
        running is closed, and that query ends with an error.

        Args:
            conn: The connection.

        Raises:
            ValueError: It is not lent, or not by this pool.

        Cancellation: ends the waiting; the pool still rolls back or closes the connection.
        """
        lender = getattr(conn, "_pool", None)
        if lender is not self:
            whose = f"it comes from pool {lender.name!r}" if lender else "it doesn't come from any pool"
            raise ValueError(f"can't return connection to pool {self.name!r}, {whose}: {conn}")
        if logger.isEnabledFor(logging.INFO):
            logger.info("returning connection to %r", self.name, extra=fields("connection_returned", self.name))
        lent: Any = conn  # with its session, which no class of connections declares
        session: PsycopgSession = lent._loopaware_session
        listener = session.owner
        if listener is None:  # not the pool's: the parent process has it, or `configure` during its connect
            conn._pool = None
            return
        if session.loop is not running():
            conn._pool = None
            listener.runner.errands.add(functools.partial(self._take_back_at_home, conn, listener))
            return
        pending = self._take_back(conn)
        if pending is not None and self._driver.reset_hook is None:
            await pending.runner.task_finished(pending.slot, patience_after(sys.exc_info()[1]))

    def _session_of(self, conn: Any) -> PsycopgSession:
        """Return the session of a lent connection."""
        session: PsycopgSession = conn._loopaware_session
        return session

    def _lend(self, slot: Slot[PsycopgSession], runner: ShardRunner[PsycopgSession]) -> ACT:
        """Begin a lease of a connection that has been taken; nothing may be awaited between here and the caller."""
        slot.lent_to(asyncio.current_task(runner.loop), *acquiring_line(sys._getframe(1)))
        return cast("ACT", slot.session.lend(self))

    def _take_back(self, conn: Any) -> SessionListener[PsycopgSession] | None:
        """Take a connection back. Returns its listener if a task still works on it; the caller may wait for that."""
        session: PsycopgSession = conn._loopaware_session
        session.end_lease(conn)
        listener = session.owner
        if listener is None or not listener.slot.is_lent():
            return None
        runner, shard = listener.runner, listener.runner.shard
        is_kept = self._core.state is _OPEN and (self._keeps_idle or shard.waiters)
        check = ReturnCheck.BROKEN
        try:
            check = session.take_back() if is_kept else session.dismiss()
        finally:
            shard.returned(listener.slot, check, monotonic())
            if runner.decided:
                runner.act()
        return listener if listener.slot.state in _IN_TRANSIT else None

    def _log_growth(self) -> None:
        size = self._core.size()
        if self._keeps_idle and size > self._core.shared.config.min_size:
            logger.info("growing pool %r to %s", self.name, size, extra=fields("growing", self.name, pool_size=size))

    def _take_back_at_home(self, conn: ACT, listener: SessionListener[PsycopgSession]) -> None:
        """Take a connection back on its own loop, or for that loop if it is not running."""
        if listener.runner.is_here():
            self._take_back(conn)
        elif listener.slot.is_lent():
            self._session_of(conn).end_lease(conn)
            listener.runner.shard.returned(listener.slot, ReturnCheck.STRANDED, monotonic())
            listener.runner.act()

    # ---- outages ----

    async def reconnect_failed(self) -> None:
        """Call the user's `reconnect_failed`, after connecting has failed for `reconnect_timeout` seconds."""
        if self._reconnect_failed is not None:
            result = self._reconnect_failed(self)
            if inspect.isawaitable(result):
                await result

    def _connects_outlasted(self) -> None:
        if self._core.state is _OPEN:
            task = asyncio.ensure_future(self.reconnect_failed())
            self._reconnect_tasks.add(task)
            task.add_done_callback(self._reconnect_task_done)

    def _reconnect_task_done(self, task: asyncio.Task[None]) -> None:
        self._reconnect_tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            told = fields("reconnect_callback_failed", self.name, pool_error=error_type(error))
            logger.error("%s: reconnect_failed raised", self.name, exc_info=error, extra=told)


class AsyncNullConnectionPool(AsyncConnectionPool[ACT], psycopg_pool.AsyncNullConnectionPool[ACT]):
    """
    A pool that keeps no idle connection. It limits the number of connections, and hands them on to waiting callers.

    The arguments are those of `AsyncConnectionPool`, but *min_size* is 0, *max_size* may be 0 for any number, and
    *close_returns* has no effect. A caller gets the error of a failed connect at once.
    """

    _keeps_idle = False

    if not TYPE_CHECKING:  # type checkers see the inherited signature

        def __init__(self, conninfo: AsyncConninfoParam = "", *, min_size: int = 0, **options: Any) -> None:
            super().__init__(conninfo, min_size=min_size, **options)

    async def check(self) -> None:
        """Do nothing, as no connection is idle."""

    async def _is_ready_within(
        self, runner: ShardRunner[PsycopgSession], seconds: float, old_fault: BaseException | None
    ) -> bool:
        """Try to connect until it succeeds, the time is up, or the program is found to be at fault."""
        deadline = monotonic() + seconds
        while (left := deadline - monotonic()) > 0:
            self._check_open()
            limit = asyncio.timeout(left)
            try:
                async with limit:
                    await runner.open_one()
                logger.info("adding new connection to the pool", extra=fields("connection_added", self.name))
                return True
            except Exception as error:  # noqa: BLE001 - it becomes the cause of the timeout
                if not limit.expired() or runner.shard.last_error is None:  # the limit says less than a refusal before
                    runner.shard.last_error = error
            if self._driver.new_fault(old_fault) is not None:
                break
            await asyncio.sleep(min(_RETRY_SECONDS, max(0.0, deadline - monotonic())))
        return False


def _longest(name: str, seconds: float | None) -> float:
    """Convert a limit to a number of seconds; None is no limit."""
    if seconds is None:
        return float("inf")
    check_number(name, seconds, _SECONDS)
    return seconds
