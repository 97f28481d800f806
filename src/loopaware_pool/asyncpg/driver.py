"""How connections are made with asyncpg, and the errors that callers of its pool catch."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg.connection import Connection

from loopaware_pool import errors
from loopaware_pool._core.asking import AskedPassword, Asking
from loopaware_pool._core.reporter import logger
from loopaware_pool._core.sqlstate import RESET_REFUSED, ROLE_REFUSED, is_not_understood
from loopaware_pool._platform.conninfo import SCHEMES, may_be_misread, redact
from loopaware_pool._platform.event_loops import with_stray_cancellation_as
from loopaware_pool._platform.frames import let_go_of_frames
from loopaware_pool._platform.log_fields import error_type, fields
from loopaware_pool.asyncpg.backends import Backends
from loopaware_pool.asyncpg.connect_arguments import ConnectArguments
from loopaware_pool.asyncpg.hosts import HostOrder
from loopaware_pool.asyncpg.internals import cut
from loopaware_pool.asyncpg.reset_messages import SessionUser
from loopaware_pool.asyncpg.session import RESET_SECONDS, AsyncpgSession, without_query_loggers
from loopaware_pool.driver import PROGRAMMING_ERRORS, HookFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from loopaware_pool.asyncpg.options import Options

__all__ = ["AsyncpgDriver", "Overloaded", "PoolClosed", "PoolTimeout", "TooManyWaiting"]

_WHO: Final = "SELECT pg_catalog.current_setting('role'), session_user::pg_catalog.text"
_PROGRAMMING_ERRORS: Final = (*PROGRAMMING_ERRORS, asyncpg.exceptions.ClientConfigurationError)
_ERRORS_OF_CALLBACKS: Final = (ValueError, LookupError, AttributeError, AssertionError, ArithmeticError)
# Characters that end a password for asyncpg, which parses URIs like urllib.
ENDS_PASSWORD: Final = "/?#[]"


class PoolClosed(errors.PoolClosed, asyncpg.InterfaceError):
    """The pool is closed or closing."""

    def __init__(self, message: str, *, pool: str) -> None:
        asyncpg.InterfaceError.__init__(self, message)
        self.pool = pool


class PoolTimeout(errors.PoolTimeout):
    """No connection came in time. A `TimeoutError`, as in asyncpg's pool."""


class TooManyWaiting(errors.TooManyWaiting, asyncpg.InterfaceError):
    """As many callers are waiting already as `max_waiting` allows."""

    def __init__(self, *, pool: str, max_waiting: int) -> None:
        message = f"pool {pool!r} has {max_waiting} callers waiting already, the limit that max_waiting sets"
        asyncpg.InterfaceError.__init__(self, message)
        self.pool = pool
        self.max_waiting = max_waiting


class Overloaded(errors.Overloaded, TooManyWaiting):
    """Load shedding: the queue is backed up, and the caller has waited longer than `shed_after`."""


class AsyncpgDriver:
    """
    Makes connections with asyncpg.

    Attributes:
        name: The pool's name.
        arguments: What is passed to `connect`; replaced by `Pool.set_connect_args`.
        connect_hook, init, reset_hook: The user's callbacks.
        session_reset: One of "auto", "pipelined", "when_dirty", "confirmed", "awaited", "never".
        reset_query: What the user has sent as a reset; None for the pool's own.
        resets_always: Whether a session is reset whatever its lease has done.
        clean_answers: What the server answers to each reset when there was nothing to reset.
        has_reset: Whether a reset has succeeded.
        backends: The server processes of the pool's sessions.
    """

    logger: logging.Logger = logging.getLogger("asyncpg.pool")
    errors: errors.ErrorFamily = errors.ErrorFamily(PoolClosed, PoolTimeout, TooManyWaiting, overloaded=Overloaded)

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any], options: Options, *, name: str) -> None:
        self.name: str = name
        self.asking: Asking = Asking(asyncpg.InterfaceError)
        self.arguments: ConnectArguments = ConnectArguments(args, kwargs, options.credentials)
        self.connection_class: type[Any] = options.connection_class
        self.record_class: type[Any] = options.record_class
        self.connect_hook: Callable[..., Awaitable[Any]] | None = options.connect
        self.init: Callable[[Any], Awaitable[Any]] | None = options.init
        self.reset_hook: Callable[[Any], Awaitable[Any]] | None = options.reset
        self.max_queries: int = options.max_queries
        self.session_reset: str = options.session_reset
        self.reset_query: str | None = options.reset_query
        self.resets_always: bool = self.session_reset != "when_dirty"
        self.clean_answers: dict[bytes, bytes] = {}
        self.backends: Backends = Backends()
        self._unready: set[AsyncpgSession] = set()
        self.has_reset = False
        self._warned: set[str] = set()
        self._hosts = HostOrder()

    async def connect(self) -> AsyncpgSession:
        """Open and initialise a connection on the running loop."""
        loop = asyncio.get_running_loop()
        try:
            con = await with_stray_cancellation_as(asyncpg.InterfaceError, self._open(loop))
        except BaseException as error:
            let_go_of_frames(error)
            if isinstance(error, Exception) and self._is_programming_error(error):
                raise HookFailed from error
            raise
        if not isinstance(con, self.connection_class):
            raise HookFailed from asyncpg.InterfaceError(
                "expected pool connect callback to return an instance of "
                f"'{_full_name(self.connection_class)}', got '{_full_name(type(con))}'"
            )
        try:
            return await self._make_ready(AsyncpgSession(self, con, loop), con)
        except BaseException:
            cut(con, loop)
            raise

    async def _open(self, loop: asyncio.AbstractEventLoop) -> Any:
        """Connect. Only this frame, and those it calls, hold the arguments: they are cleared if connecting fails."""
        has_hook = self.connect_hook is not None
        args, kwargs = await self.arguments.now(self.asking, has_hook=has_hook)
        connect = self.connect_hook or self._hosts.connect
        try:
            return await connect(
                *args,
                loop=loop,
                connection_class=self.connection_class,
                record_class=self.record_class,
                **kwargs,
            )
        except ValueError as error:
            dsn = args[0] if args else kwargs.get("dsn")
            if type(error) is ValueError and isinstance(dsn, str) and may_be_misread(dsn, ENDS_PASSWORD):
                redact(error)
            elif self.arguments.have_functions() and isinstance(dsn, str) and not dsn.startswith(SCHEMES):
                redact(error)  # it may be a function's answer, and a password alone
            raise
        except asyncpg.PostgresError as error:
            if isinstance(password := kwargs.get("password"), AskedPassword):
                password.explain(error)
            raise

    @property
    def asked(self) -> list[str]:
        """The arguments whose functions have not answered yet."""
        return self.asking.unanswered

    def _is_programming_error(self, error: Exception) -> bool:
        """
        Whether a connect failed because of the program and not of the server, so that another connect would fail, too.

        asyncpg itself may fail in more ways over what a server, or something that is none, has sent.
        """
        if isinstance(error, OSError):  # a rejected certificate is a `ValueError`, too
            return False
        has_callback = self.connect_hook is not None or self.arguments.have_functions()
        if has_callback and isinstance(error, _ERRORS_OF_CALLBACKS):
            return True
        return type(error) in (ValueError, OverflowError) or isinstance(error, _PROGRAMMING_ERRORS)

    async def _make_ready(self, session: AsyncpgSession, con: Connection) -> AsyncpgSession:
        self._unready.add(session)
        try:
            await session.detect_pooler()
            began_as = getattr(con.get_settings(), "session_authorization", None)
            await self._initialise(con)
            session.prepare_reset(await self._read_user(con, began_as) if session.resets_user else None)
        finally:
            self._unready.discard(session)
        return session

    def forked(self) -> None:
        """Forget, in a child process, the connections that `init` is working on, and the functions that were asked."""
        self.asking.forked()
        while self._unready:
            self._unready.pop().discard(forked=True)

    def floor_not_restored(self, error: BaseException) -> None:
        """Log it in asyncpg's words."""
        self.logger.warning(
            "Failed to restore the pool connection floor; retrying",
            exc_info=error if error.__traceback__ else None,
            extra=fields("min_size_not_restored", self.name, pool_error=error_type(error)),
        )

    async def _initialise(self, con: Connection) -> None:
        """Run the user's `init`."""
        if self.init is not None:
            try:
                await with_stray_cancellation_as(asyncpg.InterfaceError, self.init(con))
            except Exception as error:
                await _close_bounded(con)
                raise HookFailed from error
        if con.is_closed():
            raise asyncpg.ConnectionDoesNotExistError("connection was closed during pool initialization")

    async def _read_user(self, con: Connection, began_as: str | None) -> SessionUser | None:
        """
        Ask for the user that `connect` and `init` left the session to act as; None if there are none.

        Args:
            con: The connection.
            began_as: The session user before `init`.

        Raises:
            HookFailed: The server knows no roles.
            TimeoutError: There was no answer for `RESET_SECONDS`.
        """
        if self.init is None and self.connect_hook is None:
            return None
        try:
            with without_query_loggers(con):
                role, user = await Connection.fetchrow(con, _WHO, timeout=RESET_SECONDS, record_class=asyncpg.Record)
        except asyncpg.PostgresError as error:
            if not is_not_understood(error):
                raise
            setter = "connect" if self.init is None else "init"
            raise HookFailed from asyncpg.InterfaceError(ROLE_REFUSED.format(setter, error))
        # It is not known who has logged in on a connection that `connect` has made.
        is_unchanged = self.connect_hook is None and user == began_as
        return SessionUser(authorization=None if is_unchanged else str(user), role=str(role))

    def warn_once(self, warning: str) -> None:
        """Log why resets are not made as requested, each reason once per pool."""
        told = fields("session_reset_replaced", self.name, pool_session_reset=self.session_reset)
        self._log_once(warning, warning, told)

    def reset_refused(self, reason: str) -> None:
        """Log, once per pool, that no reset has succeeded."""
        told = fields("session_reset_refused", self.name, pool_session_reset=self.session_reset)
        self._log_once(RESET_REFUSED, RESET_REFUSED.format(reason), told)

    def _log_once(self, what: str, warning: str, told: dict[str, Any]) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("%s", warning, extra=told)


def _full_name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


async def _close_bounded(con: Connection) -> None:
    try:
        await con.close(timeout=RESET_SECONDS)
    except Exception:  # noqa: BLE001 - it is closed either way
        con.terminate()
