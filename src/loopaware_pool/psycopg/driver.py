"""How connections are made with psycopg, and the errors that callers of its pool catch."""

from __future__ import annotations

import asyncio
import itertools
import logging
import weakref
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import psycopg
import psycopg_pool

from loopaware_pool import errors
from loopaware_pool._core.asking import Asking
from loopaware_pool._core.reporter import logger
from loopaware_pool._core.sqlstate import RESET_REFUSED
from loopaware_pool._core.timeouts import within
from loopaware_pool._platform.conninfo import may_be_misread, may_hold_password, redact
from loopaware_pool._platform.event_loops import INTERRUPTIONS, with_stray_cancellation_as
from loopaware_pool._platform.frames import let_go_of_frames
from loopaware_pool._platform.log_fields import error_type, fields
from loopaware_pool.driver import PROGRAMMING_ERRORS, HookFailed
from loopaware_pool.psycopg.connection import LoopAwareConnection
from loopaware_pool.psycopg.session import RESET_SECONDS, PsycopgSession

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from psycopg import AsyncConnection
    from psycopg_pool.abc import AsyncConnectionCB, AsyncConninfoParam, AsyncKwargsParam

    from loopaware_pool.psycopg.options import Options
    from loopaware_pool.stats import LeaseInfo, PoolStats

__all__ = [
    "Overloaded",
    "PoolClosed",
    "PoolTimeout",
    "PsycopgDriver",
    "TooManyRequests",
    "UnsupportedLoop",
]

# Characters that end a password for libpq.
ENDS_PASSWORD: Final = "/?@"


class PoolClosed(errors.PoolClosed, psycopg_pool.PoolClosed):
    """The pool is closed, or not open yet."""

    def __init__(self, message: str, *, pool: str) -> None:
        psycopg_pool.PoolClosed.__init__(self, message)
        self.pool = pool


class PoolTimeout(errors.PoolTimeout, psycopg_pool.PoolTimeout):
    """No connection came in time."""

    complaint = "couldn't get a connection after {:.2f} sec"

    def __init__(
        self,
        *,
        timeout: float,
        stats: PoolStats,
        holders: tuple[LeaseInfo, ...],
        during: str = "",
        cause: BaseException | None = None,
    ) -> None:
        psycopg_pool.PoolTimeout.__init__(self)
        super().__init__(timeout=timeout, stats=stats, holders=holders, during=during, cause=cause)


class InitTimeout(PoolTimeout):
    """`min_size` connections were not open in time."""

    complaint = "pool initialization incomplete after {} sec"


class TooManyRequests(errors.TooManyWaiting, psycopg_pool.TooManyRequests):
    """As many callers are waiting already as `max_waiting` allows."""

    def __init__(self, *, pool: str, max_waiting: int) -> None:
        psycopg_pool.TooManyRequests.__init__(self, f"the pool {pool!r} has already {max_waiting} requests waiting")
        self.pool = pool
        self.max_waiting = max_waiting


class Overloaded(errors.Overloaded, TooManyRequests):
    """Load shedding: the queue is backed up, and the caller has waited longer than `shed_after`."""


class UnsupportedLoop(errors.UnsupportedLoop, psycopg.InterfaceError):
    """No event loop is running, or one that cannot watch sockets."""

    def __init__(self, message: str, *, pool: str) -> None:
        psycopg.InterfaceError.__init__(self, message)
        self.pool = pool


class PsycopgDriver:
    """
    Makes connections with psycopg.

    Args:
        outlasted: Called when connecting has failed for `reconnect_timeout` seconds. A bound method, held weakly.
        connecting: Called before each connect, if the log level is INFO or lower. Likewise.

    Attributes:
        name: The pool's name.
        conninfo, kwargs, connection_class: What to connect with; resolved at each connect.
        configure, reset_hook, ping: The user's callbacks; the last makes a round trip.
        session_reset: "never" or "awaited".
        reset_query: What the user has sent as a reset; None for the pool's own.
        has_reset: Whether the reset of a session has succeeded.
        tells_errors: Whether a waiting caller gets a connect's error at once, instead of a timeout at its deadline.
        reconnect_seconds: How long connecting may fail before the user is told; infinity for ever.
        fault: The error of the last connect, if the program caused it and another connect would fail, too.
    """

    logger: logging.Logger = logging.getLogger("psycopg.pool")
    errors: errors.ErrorFamily = errors.ErrorFamily(
        PoolClosed,
        PoolTimeout,
        TooManyRequests,
        UnsupportedLoop,
        overloaded=Overloaded,
        closing_text="the pool {!r} is closed",
        closed_text="the pool {!r} is closed",
    )

    def __init__(
        self,
        options: Options,
        *,
        name: str,
        connection_class: type[AsyncConnection[Any]],
        ping: Callable[[Any], Awaitable[None]],
        tells_errors: bool,
        outlasted: Callable[[], None],
        connecting: Callable[[], None],
    ) -> None:
        self.name = name
        self.asking: Asking = Asking(psycopg.OperationalError)
        self.conninfo: AsyncConninfoParam = options.conninfo
        self.kwargs: AsyncKwargsParam | None = options.kwargs
        self.connection_class = connection_class
        self.configure: AsyncConnectionCB[Any] | None = options.configure
        self.reset_hook: AsyncConnectionCB[Any] | None = options.reset
        self.ping = ping
        self.session_reset: str = options.session_reset
        self.reset_query: str | None = options.reset_query
        self.has_reset = False
        self._has_warned = False
        self.tells_errors = tells_errors
        self.reconnect_seconds: float = options.reconnect_timeout
        self._outlasted = weakref.WeakMethod(outlasted)
        self._connecting = weakref.WeakMethod(connecting)
        self.fault: BaseException | None = None
        self._failing_since: float | None = None
        self._failures = itertools.count(1)  # of all loops: `+= 1` is not one step for their threads
        self._unready: set[PsycopgSession] = set()

    @property
    def resets(self) -> bool:
        """Whether a connection that comes back idle must still be reset."""
        return self.reset_hook is not None or self.session_reset == "awaited"

    @property
    def has_own_connect(self) -> bool:
        """Whether the connection class connects in its own way, and so may set another user than the login."""
        known = (psycopg.AsyncConnection, LoopAwareConnection)
        return _connect_of(self.connection_class) not in map(_connect_of, known)

    async def connect(self) -> PsycopgSession:
        """Open and configure a connection on the running loop."""
        is_told = self.logger.isEnabledFor(logging.INFO)
        if is_told and (tell := self._connecting()) is not None:
            tell()
        try:
            session = await with_stray_cancellation_as(psycopg.OperationalError, self._connect())
        except INTERRUPTIONS:
            raise
        except BaseException as error:
            self._failed(error)
            if self.tells_errors or self.fault is not None:
                raise HookFailed from (self.fault or error)
            raise
        if is_told and not self.tells_errors:  # a null pool does not log that
            self.logger.info("adding new connection to the pool", extra=fields("connection_added", self.name))
        self._failing_since = self.fault = None
        self._failures = itertools.count(1)
        return session

    async def _connect(self) -> PsycopgSession:
        try:
            connection = await self._open()
        except BaseException as error:
            let_go_of_frames(error)
            if type(error) is psycopg.ProgrammingError:  # libpq's, for its arguments; a server's has a SQLSTATE
                raise HookFailed from error
            raise
        connection._pool = None  # also keeps the connection from warning if the program ends before it is closed
        session = PsycopgSession(self, connection, asyncio.get_running_loop())
        self._unready.add(session)
        try:
            if self.configure is not None:
                await session.show_to(self.configure, "configure")
            if self.session_reset == "awaited":
                await within(RESET_SECONDS, session.remember_configured, session.abort)
            session.begin()
        except BaseException:
            session.abort()
            raise
        finally:
            self._unready.discard(session)
        return session

    async def _open(self) -> Any:
        """Connect. Only this frame holds the arguments, because it is cleared if connecting fails."""
        ask = self.asking.ask
        conninfo, kwargs = self.conninfo or "", self.kwargs or {}
        if is_asked := callable(conninfo):
            conninfo = await ask("conninfo", conninfo, str, "a string")
        if callable(kwargs):
            kwargs = await ask("kwargs", kwargs, Mapping, "a dict")
        password = kwargs.get("password")
        if callable(password):
            kwargs = {**kwargs, "password": await ask('kwargs["password"]', password, str, "a string")}
        try:
            return await self.connection_class.connect(conninfo, **kwargs)
        except psycopg.Error as error:
            if _is_misread(conninfo, is_secret=is_asked):
                redact(error)
            raise

    @property
    def asked(self) -> list[str]:
        """The arguments whose functions have not answered yet."""
        return self.asking.unanswered

    def _failed(self, failure: BaseException) -> None:
        error = failure.__cause__ if isinstance(failure, HookFailed) else failure
        may_pass = error is failure and isinstance(error, Exception) and not isinstance(error, PROGRAMMING_ERRORS)
        self.fault = None if may_pass else error
        failures = next(self._failures)
        if failures.bit_count() == 1:  # the first, second, fourth ...: an outage must not fill the log
            told = fields("connect_failed", self.name, pool_error=error_type(error), pool_failures=failures)
            self.logger.warning("error connecting in %r: %s", self.name, error, extra=told)
        if self._failing_since is None:
            self._failing_since = since = monotonic()
            if self.reconnect_seconds != float("inf"):
                loop = asyncio.get_running_loop()
                loop.call_later(self.reconnect_seconds, _outlasted, weakref.ref(self), since)

    def new_fault(self, old: BaseException | None) -> BaseException | None:
        """Return the `fault`, unless it is still *old*."""
        return None if self.fault is old else self.fault

    def outlasted(self, since: float) -> None:
        """Tell the pool, if connecting has always failed *since* then (monotonic seconds)."""
        if self._failing_since != since:
            return
        self._failing_since = None  # the next failure begins another period
        outlasted = self._outlasted()
        if outlasted is not None:
            self.logger.warning(
                "reconnection attempt in pool %r failed after %s sec",
                *(self.name, self.reconnect_seconds),
                extra=fields("reconnect_given_up", self.name, pool_reconnect_timeout=self.reconnect_seconds),
            )
            outlasted()

    def pool(self) -> Any:
        """Return the pool; None if it has been dropped."""
        return getattr(self._outlasted(), "__self__", None)

    def reset_refused(self, error: Exception) -> None:
        """Log, once per pool, that no reset of a session has succeeded."""
        if not self._has_warned:
            self._has_warned = True
            told = fields("session_reset_refused", self.name, pool_session_reset=self.session_reset)
            logger.warning("%s", RESET_REFUSED.format(error), extra=told)

    def floor_not_restored(self, error: BaseException) -> None:
        """Do nothing: each failed connect has been logged."""

    def forked(self) -> None:
        """Forget, in a child process, the connections `configure` is working on, and the functions that were asked."""
        self.asking.forked()
        self._failing_since = None
        while self._unready:
            self._unready.pop().discard(forked=True)


def _connect_of(kind: Any) -> object:
    """Return the function that a connection class connects with, whichever class it was inherited from."""
    return getattr(kind.connect, "__func__", kind.connect)


def _outlasted(dead_or_alive: weakref.ref[PsycopgDriver], since: float) -> None:
    driver = dead_or_alive()
    if driver is not None:
        driver.outlasted(since)


def _is_misread(conninfo: str, *, is_secret: bool) -> bool:
    """
    Whether libpq's error about *conninfo*, which it cannot parse or misreads, may repeat a password.

    Args:
        conninfo: What it connects with.
        is_secret: Whether it is a function's answer, of which nothing is shown: it may be a password alone.
    """
    if may_be_misread(conninfo, ENDS_PASSWORD):
        return True
    try:
        psycopg.conninfo.conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        return is_secret or may_hold_password(conninfo)
    return False
