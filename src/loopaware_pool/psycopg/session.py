"""One psycopg connection, as the core uses it: checking, parking, rolling back, closing."""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import psycopg
from psycopg import AsyncConnection, pq
from psycopg.adapt import AdaptersMap

from loopaware_pool._core.sqlstate import (
    IS_READ_ONLY_QUERY,
    ROLE_REFUSED,
    ServerState,
    classify,
    is_not_understood,
    may_pass,
)
from loopaware_pool._core.timeouts import within
from loopaware_pool._platform.event_loops import label, post
from loopaware_pool._platform.log_fields import error_type, fields
from loopaware_pool.driver import HookFailed, ReturnCheck
from loopaware_pool.psycopg.connection import LoopAwareConnection
from loopaware_pool.psycopg.link import PsycopgLink
from loopaware_pool.psycopg.socket_waiter import ConnectionUse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from loopaware_pool._core.runner import SessionListener

__all__ = ["PsycopgSession", "SessionSettings", "check_connection"]

logger: logging.Logger = logging.getLogger("psycopg.pool")

# A rollback, a session reset and the user's `reset` together fail after this.
RESET_SECONDS: Final = 30.0
# How long an abandoned generator, as of `notifies()`, may take to release the connection.
_LET_GO_SECONDS: Final = 1.0

# What asyncpg's pool resets, and the role, which `RESET ALL` leaves. The reset begins in the last lease's kind of
# transaction: a serializable, read-only, deferrable one would wait for others. Literals in prepared statements were
# read by the lease's settings. `DISCARD PLANS` has them read again.
_RESET_QUERY: Final = (
    b"SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "
    b"SELECT pg_catalog.pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL; "
    b"RESET SESSION AUTHORIZATION; RESET ROLE; DISCARD PLANS"
)
# What the server reports of itself, from version 14 on, unless a proxy hides it.
_READ_ONLY_SETTINGS: Final = (b"in_hot_standby", b"default_transaction_read_only")
# What a caller may change on the client's side: by a coroutine each, or by assignment.
_SETTINGS: Final = ("autocommit", "isolation_level", "read_only", "deferrable")
_ATTRIBUTES: Final = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max")

# Bound once: see shard.py.
_READY, _RESET = ReturnCheck.READY, ReturnCheck.RESET
_USED, _UNUSED = ConnectionUse.USED, ConnectionUse.IDLE
_IDLE: Final = pq.TransactionStatus.IDLE
_NO_TRANSACTION: Final = (_IDLE,)
_IN_TRANSACTION: Final = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)
_ACTIVE: Final = pq.TransactionStatus.ACTIVE
_UNKNOWN: Final = pq.TransactionStatus.UNKNOWN
_BAD: Final = pq.ConnStatus.BAD
_NO_PIPELINE: Final = pq.PipelineStatus.OFF


class _Configured(NamedTuple):
    """
    What a session reset restores: the client's side as `configure` left it, and the user that the session acts as.

    The user is given as settings and their values, in the order in which they are to be set.
    """

    settings: list[Any]
    attributes: list[Any]
    notice_handlers: list[Any]
    notify_handlers: list[Any]
    adapters: AdaptersMap | None
    user: list[tuple[bytes, str]]


class SessionSettings(Protocol):
    """
    The settings of a session. The driver that made it has them.

    Attributes:
        name: The pool's name.
        reset_query: What the user has sent as a reset; None for the pool's own.
        resets: Whether a connection that comes back idle must still be reset.
        has_reset: Whether the reset of a session has succeeded.
        configure, reset_hook, ping: The user's callbacks; the last makes a round trip.
        has_own_connect: Whether the connection class connects in its own way, and so may set another user.
    """

    name: str
    reset_query: str | None
    has_reset: bool
    configure: Callable[[Any], Awaitable[None]] | None
    reset_hook: Callable[[Any], Awaitable[None]] | None
    ping: Callable[[Any], Awaitable[None]]

    @property
    def resets(self) -> bool: ...

    @property
    def has_own_connect(self) -> bool: ...

    def pool(self) -> Any:
        """The pool."""

    def reset_refused(self, error: Exception) -> None:
        """Log, once per pool, that no reset of a session has succeeded."""


class PsycopgSession(PsycopgLink):
    """
    One psycopg connection.

    While it is lent, only the caller refers to psycopg's object, so that a dropped connection can be noticed.

    A tracer may have wrapped the connection when it was made (`wrapt.ObjectProxy`). The wrapper is lent, and passed to
    the user's functions. The session uses psycopg's own object, and watches whether that one is dropped: a cursor
    refers to it and not to the wrapper.

    Attributes:
        owner: Listens to what happens to the session.
        connection: psycopg's connection, or a tracer's wrapper; None while it is lent.
        loop: The loop it belongs to.
        says_goodbye: Whether its class has its own `close`, which must be called.
        leaves_plainly: Whether its class leaves `async with` like psycopg's.
    """

    __slots__ = (
        "__weakref__",
        "_began_as",
        "_configured",
        "_is_rollback_expected",
        "_made",
        "_server_state",
        "_settings",
        "_was_writable",
        "connection",
        "leaves_plainly",
        "owner",
        "says_goodbye",
    )

    is_settled = True

    def __init__(
        self, settings: SessionSettings, connection: AsyncConnection[Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        layers = list(_layers(connection))
        bare = layers[-1]
        super().__init__(bare, loop, settings.name, self._dropped)
        self.owner: SessionListener[PsycopgSession] | None = None
        self.connection: AsyncConnection[Any] | None = connection
        self._settings = settings
        pgconn = self._pgconn
        self._server_state: ServerState | None = None
        self._is_rollback_expected = False
        self._began_as = pgconn.parameter_status(b"session_authorization")
        self._was_writable = all(pgconn.parameter_status(name) == b"off" for name in _READ_ONLY_SETTINGS)
        self._made = weakref.ref(connection)
        self._configured: _Configured | None = None
        bare._loopaware_session = self
        self.says_goodbye: bool = _method(layers, "close") not in (AsyncConnection.close, LoopAwareConnection.close)
        self.leaves_plainly: bool = all(
            _method(layers, name) in (getattr(AsyncConnection, name), getattr(LoopAwareConnection, name))
            for name in ("__aenter__", "__aexit__", "commit", "rollback")
        )

    # ---- what the core asks ----

    def is_dropped(self) -> bool:
        """Whether the caller has dropped the connection. If the loop runs, a weakref callback reports it earlier."""
        return self.connection is None and self._reference() is None and self._pgconn.status != _BAD

    def take_back(self) -> ReturnCheck:
        """Check what the caller has left. A query that still runs is ended, and its connection closed."""
        pgconn = self._pgconn
        status = pgconn.transaction_status
        if status == _UNKNOWN or self._server_state is ServerState.GOODBYE:
            return self._discard()
        if status == _ACTIVE or self._watch.is_waited_for() or pgconn.pipeline_status != _NO_PIPELINE:
            self._warn("returned_in_use", "closing returned connection: %s")
            return self._close_used()
        self._watch.detach_others()
        self._watch.use = _UNUSED
        if status != _IDLE:
            if not self._is_rollback_expected:
                self._warn("returned_in_transaction", "rolling back returned connection: %s")
            self._is_rollback_expected = False
            return _RESET
        return (
            _RESET if self._settings.resets or self._server_state is not None or self._kept().lock.locked() else _READY
        )

    def dismiss(self) -> ReturnCheck:
        """Decide how to close a connection that comes back and is no longer wanted, in whatever state it is."""
        return ReturnCheck.BROKEN if self._pgconn.status == _BAD else ReturnCheck.WORN_OUT

    def _close_used(self) -> ReturnCheck:
        if self.says_goodbye:
            self._watch.fail(psycopg.OperationalError("the connection was returned while a query was running"))
            return ReturnCheck.WORN_OUT
        self._finish("returned to its pool")
        return self._discard()

    def _discard(self) -> ReturnCheck:
        self._warn("returned_closed", "discarding closed connection: %s")
        return ReturnCheck.BROKEN

    def _warn(self, event: str, text: str) -> None:
        logger.warning(text, self.connection, extra=fields(event, self._settings.name, loop=label(self.loop)))

    async def reset(self) -> None:
        """Roll back, reset the session and call the user's `reset`, as far as each is needed."""
        self._watch.use = _USED
        try:
            await within(RESET_SECONDS, self._make_clean, self.abort)
        except Exception:
            self._finish("closed")
            self._discard()
            raise
        finally:
            self._watch.use = _UNUSED

    async def _make_clean(self) -> None:
        await self._let_go()
        if self._configured is not None:
            self._restore_client_side(self._configured)
        await self._roll_back()
        await self._reset()
        if self._server_state is not None:
            self._server_state = None
            if await self._is_read_only() and self._was_writable and self.owner is not None:
                self.owner.demoted()

    async def _is_read_only(self) -> bool:
        connection = self._bare()
        was_autocommit = connection.autocommit
        await connection.set_autocommit(True)
        query = IS_READ_ONLY_QUERY if self._was_writable else "SELECT 1"  # other servers refuse the former
        is_read_only = await _first_value(connection, query.encode())
        await connection.set_autocommit(was_autocommit)
        return is_read_only == b"t"

    def _bare(self) -> AsyncConnection[Any]:
        """Return the connection without a tracer's wrapper, for the pool's own queries."""
        connection: AsyncConnection[Any] | None = self._reference()
        assert connection is not None, "dropped"
        return connection

    def _kept(self) -> AsyncConnection[Any]:
        assert self.connection is not None, "in use by a caller"
        return self.connection

    async def _let_go(self) -> None:
        """Wait until a generator that still holds the connection is closed: Python does that an iteration later."""
        lock = self._kept().lock
        if lock.locked():
            async with asyncio.timeout(_LET_GO_SECONDS):
                await lock.acquire()
            lock.release()

    async def _roll_back(self) -> None:
        connection = self._kept()
        if connection.pgconn.transaction_status == _IDLE:
            return
        try:
            await connection.rollback()
        except Exception as error:
            logger.warning(
                "rollback failed: %s: %s. Discarding connection %s",
                *(type(error).__name__, error, connection),
                extra=fields("rollback_failed", self._settings.name, pool_error=error_type(error)),
            )
            raise

    async def _reset(self) -> None:
        try:
            if self._configured is not None:
                await self._reset_and_note(self._configured)
            if self._settings.reset_hook is not None:
                await self.show_to(self._settings.reset_hook, "reset")
        except Exception as error:
            told = fields("reset_failed", self._settings.name, pool_error=error_type(error))
            logger.warning("error resetting connection: %s", error, extra=told)
            raise

    async def _reset_and_note(self, configured: _Configured) -> None:
        try:
            await self._reset_session(configured)
        except psycopg.Error as error:
            is_lost = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
            if not (self._settings.has_reset or is_lost or may_pass(str(error.sqlstate))):
                self._settings.reset_refused(error)
            raise
        self._settings.has_reset = True

    def _restore_client_side(self, configured: _Configured) -> None:
        """Make psycopg forget what it remembers of the lease. This comes first, because the other steps use it."""
        connection = self._bare()
        if connection._num_transactions:  # it ends when its holder is collected, perhaps in the middle of another lease
            raise psycopg.ProgrammingError("connection left inside a transaction() block: discarded")
        for name, value in zip(_ATTRIBUTES, configured.attributes, strict=True):
            setattr(connection, name, value)
        connection._notice_handlers[:] = configured.notice_handlers
        connection._notify_handlers[:] = configured.notify_handlers
        connection._adapters = None if configured.adapters is None else AdaptersMap(configured.adapters)
        connection._tpc = None

    async def _reset_session(self, configured: _Configured) -> None:
        connection = self._bare()
        await connection.set_autocommit(True)  # a reset in a transaction would have to be committed
        query = self._settings.reset_query
        if query is None:
            await _first_value(connection, _RESET_QUERY)
        elif query:
            await _first_value(connection, query.encode(connection.info.encoding))
        for setting, user in configured.user:
            literal = pq.Escaping(connection.pgconn).escape_literal(user.encode(connection.info.encoding))
            await _first_value(connection, b"SELECT pg_catalog.set_config('%s', %s, false)" % (setting, bytes(literal)))
        for name, value in zip(_SETTINGS, configured.settings, strict=True):
            await getattr(connection, f"set_{name}")(value)
        if (backlog := getattr(connection, "_notifies_backlog", None)) is not None:
            backlog.clear()  # last, as notifications may have come with the answers

    async def remember_configured(self) -> None:
        """
        Note the state that an awaited session reset restores.

        Raises:
            HookFailed: The server knows no roles.
        """
        connection = self._bare()
        user: list[tuple[bytes, str]] = []
        has_own_connect, configure = self._settings.has_own_connect, self._settings.configure
        if (has_own_connect or configure is not None) and self._settings.reset_query is None:
            was_autocommit = connection.autocommit
            await connection.set_autocommit(True)
            try:
                name = await _first_value(connection, b"SELECT session_user::pg_catalog.text") or b""
                role = await _first_value(connection, b"SELECT pg_catalog.current_setting('role')") or b"none"
            except psycopg.DatabaseError as error:
                if not is_not_understood(error):
                    raise
                setter = "connection_class" if configure is None else "configure"
                raise HookFailed from psycopg.ProgrammingError(ROLE_REFUSED.format(setter, error))
            # The session user comes first: setting it ends the role. A reset would bring back the role that the
            # connection began with. It is not known who has logged in where a class has its own way to connect.
            is_login = name == self._began_as and not has_own_connect
            found = [] if is_login else [(b"session_authorization", name)]
            user = [(what, who.decode(connection.info.encoding)) for what, who in [*found, (b"role", role)]]
            await connection.set_autocommit(was_autocommit)
        self._configured = _Configured(
            settings=[getattr(connection, name) for name in _SETTINGS],
            attributes=[getattr(connection, name) for name in _ATTRIBUTES],
            notice_handlers=list(connection._notice_handlers),
            notify_handlers=list(connection._notify_handlers),
            adapters=None if connection._adapters is None else AdaptersMap(connection._adapters),
            user=user,
        )

    async def show_to(self, function: Callable[[Any], Awaitable[None]], what: str) -> None:
        """
        Call one of the user's functions, named *what*, with the connection.

        Meanwhile the connection belongs to its pool, as if lent: otherwise leaving it as a block would close it.

        Raises:
            psycopg.ProgrammingError: It has been left in a transaction.
            Exception: What the function raises.
        """
        connection = self._kept()
        connection._pool = self._settings.pool()
        try:
            await function(connection)
        finally:
            connection._pool = None
        check_idle(connection, what, function)

    async def ping(self) -> None:
        """Make a round trip."""
        self._watch.use = _USED
        try:
            await self._settings.ping(self._kept())
        except Exception:
            self._warn("ping_failed", "discarding broken connection: %s")
            raise
        finally:
            self._watch.use = _UNUSED

    async def close(self) -> None:
        """Call the connection's own `close`."""
        self._watch.use = _USED
        connection = self.connection or self._reference()
        if connection is not None:
            connection._pool = None
            await connection.close()

    # ---- the caller's side ----

    def begin(self) -> None:
        """Join the pool: from now on the connection may be used only while it is lent."""
        self._watch.use = _UNUSED

    def rename(self, pool_name: str) -> None:
        """Use another name for the pool from now on."""
        self._watch.pool_name = pool_name

    def lend(self, pool: Any) -> AsyncConnection[Any]:
        """Begin a lease."""
        connection, self.connection = self._kept(), None
        self._watch.use = _USED
        connection._pool = pool
        return connection

    def heard(self, error: BaseException) -> None:
        """Remember what an error of this connection says about its server."""
        server_state = classify(error)
        if server_state is ServerState.GOODBYE or (server_state is ServerState.READ_ONLY and self._was_writable):
            self._server_state = server_state

    def is_not_answered(self) -> None:
        """Look at the other connections: the server has not ended a cancelled query in time."""
        if self.owner is not None:
            self.owner.silent()

    def suspect(self, error: BaseException) -> None:
        """
        Check the server later if *error*, which has ended the caller's block, says something about a server.

        It may have come from another server. Only our connection class reports this server's own errors, in `wait()`.
        """
        server_state = classify(error)
        if self._server_state is None and (
            server_state is ServerState.GOODBYE or (server_state is ServerState.READ_ONLY and self._was_writable)
        ):
            self._server_state = ServerState.HEARSAY

    def end_lease(self, connection: AsyncConnection[Any]) -> None:
        """
        Take the caller's connection back. Keeps the object that was lent, even if the caller returns it unwrapped or
        wrapped again.
        """
        connection._pool = None
        self.connection = self._made() or self._reference()

    def has_nothing_to_end(self, connection: AsyncConnection[Any], states: tuple[int, ...] = _NO_TRANSACTION) -> bool:
        """
        Whether a commit, or a rollback, would have nothing to do, so that neither need be called.

        Args:
            connection: The caller's.
            states: The transaction states for which that holds.
        """
        return (
            self.leaves_plainly
            and self._pgconn.transaction_status in states
            and not connection.lock.locked()
            and connection._pipeline is None
            and not connection._num_transactions
            and connection._tpc is None
        )

    def has_only_to_roll_back(self, connection: AsyncConnection[Any]) -> bool:
        """Whether a transaction is open and nothing else, so that the pool can roll back instead of the caller."""
        self._is_rollback_expected = self.has_nothing_to_end(connection, _IN_TRANSACTION)
        return self._is_rollback_expected

    def _dropped(self, _: object) -> None:
        """Called by the garbage collector, in any thread, when nothing refers to the connection any more."""
        if self.connection is None and self._pgconn.status != _BAD:
            post(self.loop, self._reclaim)

    def _reclaim(self) -> None:
        if self.owner is not None and self._pgconn.status != _BAD:
            self.owner.dropped()


async def _first_value(connection: AsyncConnection[Any], query: bytes) -> bytes | None:
    """
    Execute a query of the pool's own, without the user's cursors, rows and adapters.

    Returns:
        The first value of its first result, as the server has sent it; None for none.
    """
    cursor = psycopg.AsyncCursor(connection, row_factory=psycopg.rows.tuple_row)
    await cursor.execute(query, prepare=False)
    result = cursor.pgresult
    return result.get_value(0, 0) if result is not None and result.ntuples else None


def _layers(connection: Any) -> Iterator[Any]:
    """Yield a connection's wrappers, as tracers make, and at last the connection."""
    while connection is not None:
        yield connection
        connection = getattr(connection, "__wrapped__", None)


def _method(layers: list[Any], name: str) -> object:
    """Return a method of the outermost of *layers* whose class has it."""
    return next(getattr(type(layer), name) for layer in layers if hasattr(type(layer), name))


async def check_connection(connection: AsyncConnection[Any]) -> None:
    """
    Make a round trip, and leave the connection as it was.

    Raises:
        Exception: The connection has become useless.
    """
    if connection.autocommit:
        await connection.execute("")
        return
    await connection.set_autocommit(True)  # or the round trip would begin a transaction
    try:
        await connection.execute("")
    finally:
        if connection.pgconn.transaction_status == _IDLE:  # else the error of the round trip says more
            await connection.set_autocommit(False)


def check_idle(connection: AsyncConnection[Any], what: str, function: object) -> None:
    """
    Refuse a connection that one of the user's functions has left in a transaction.

    Raises:
        psycopg.ProgrammingError: It has.
    """
    status = connection.pgconn.transaction_status
    if status != _IDLE:
        name = pq.TransactionStatus(status).name
        culprit = getattr(function, "__qualname__", type(function).__name__)  # a repr may tell what it is bound to
        raise psycopg.ProgrammingError(f"connection left in status {name} by {what} function {culprit}: discarded")
