"""
One asyncpg connection, as the core uses it: checking, parking, resetting, closing.

Which private attributes of asyncpg are used
--------------------------------------------
All of them are in `internals.py` and `client_memory.py`, and are looked up when a connection is made. A missing
attribute
disables the feature that needs it: the reset is awaited, or no query travels behind it, or the fd stays in the
selector,
or a closed loop's socket is left to the garbage collector. That costs time, and is never wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

import asyncpg
from asyncpg import pool as upstream
from asyncpg.connection import Connection

from loopaware_pool._core.sqlstate import IS_READ_ONLY_QUERY, ServerState, classify, may_pass
from loopaware_pool._core.timeouts import LATE_SECONDS, patience_after
from loopaware_pool.asyncpg.client_memory import ClientMemory
from loopaware_pool.asyncpg.internals import has_own_methods, has_own_reset, is_refused_as_ended, raise_if_ended
from loopaware_pool.asyncpg.link import AsyncpgLink
from loopaware_pool.asyncpg.pipelined_reset import BackendPidCheck, ResetProtocol
from loopaware_pool.asyncpg.reset_messages import (
    ResetMessage,
    SessionUser,
    guarded,
    is_completed,
    of_user,
    plain,
    reset_statements,
)
from loopaware_pool.driver import ReturnCheck

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from loopaware_pool._core.runner import SessionListener
    from loopaware_pool.asyncpg.backends import Backends

__all__ = ["RESET_SECONDS", "AsyncpgSession", "SessionSettings", "without_query_loggers"]

# An awaited reset without a timeout fails after this.
RESET_SECONDS: Final = 30.0

_LENT_LATER: Final = (
    'each connection is lent again only after the answer to its reset, as with session_reset="confirmed"'
)
_PROXY_FOUND: Final = (
    f"a proxy, such as PgBouncer, is between the pool and the server: {_LENT_LATER}. If a session keeps its server "
    'connection until it ends (PgBouncer\'s session mode), set session_reset="pipelined". If each transaction may get '
    'another one (transaction mode), set session_reset="never"'
)

_SHARED: Final = (
    "a proxy between the pool and the server gives one server connection to several of the pool's connections in turn, "
    f'and may lose a query that is sent behind a reset: {_LENT_LATER}. Set session_reset="never"'
)

# What the server reports of itself, from version 14 on, unless a proxy hides it.
_READ_ONLY_SETTINGS: Final = ("in_hot_standby", "default_transaction_read_only")

# References to a lent proxy that asyncpg refers to: asyncpg's, and two while they are counted. Its connection has one
# more: the proxy's.
_REFERENCES: Final = 3
_IS_CPYTHON: Final = sys.implementation.name == "cpython"
# From CPython 3.14 on, a local variable may borrow its reference, which is not counted then.
_ARE_REFERENCES_COUNTED: Final = _IS_CPYTHON and sys.version_info < (3, 14)
# References to a connection whose proxy is gone: the session's, and the one that `getrefcount` is called with.
_REFERENCES_WITHOUT_PROXY: Final = 2

# Bound once: see shard.py.
_READY, _RESET_SENT, _RESET = ReturnCheck.READY, ReturnCheck.RESET_SENT, ReturnCheck.RESET
_RESET_PIPELINED = ReturnCheck.RESET_PIPELINED


@contextlib.contextmanager
def without_query_loggers(con: Connection) -> Iterator[None]:
    """Hide the pool's own queries from the users' query loggers."""
    loggers, con._query_loggers = con._query_loggers, set()
    try:
        yield
    finally:
        con._query_loggers = loggers


class SessionSettings(Protocol):
    """
    The settings of a session. The driver that made it has them.

    Attributes:
        session_reset: One of "auto", "pipelined", "when_dirty", "confirmed", "awaited", "never".
        reset_query: What the user has sent as a reset; None for the pool's own.
        resets_always: Whether a session is reset whatever its lease has done.
        init, connect_hook, reset_hook: The user's callbacks.
        max_queries: How many queries a connection may run.
        clean_answers: What the server answers to each reset when there was nothing to reset.
        has_reset: Whether a reset has succeeded.
        backends: The server processes of the pool's sessions.
    """

    session_reset: str
    reset_query: str | None
    resets_always: bool
    init: Callable[[Any], Awaitable[Any]] | None
    connect_hook: Callable[..., Awaitable[Any]] | None
    reset_hook: Callable[[Any], Awaitable[Any]] | None
    max_queries: int
    clean_answers: dict[bytes, bytes]
    has_reset: bool
    backends: Backends

    def warn_once(self, warning: str) -> None:
        """Log why resets are not made as requested, once per pool."""

    def reset_refused(self, reason: str) -> None:
        """Log, once per pool, that no reset has succeeded."""


class AsyncpgSession(AsyncpgLink):
    """
    One asyncpg connection. To asyncpg it is the holder of a pooled connection.

    Attributes:
        owner: Listens to what happens to the session.
        lease: A weak reference to the caller's proxy, while the connection is lent; it may be dead (see `is_dropped`).
        pool: The pool, while the connection is lent; nothing else keeps a pool alive.
        reset_timeout: Seconds the next reset may take; None for `RESET_SECONDS`.
        is_dirty: Whether the lease may have left something to reset, as far as its statements show.
        may_have_set_codecs: Whether the lease has called a method that changes type codecs, or an unknown one.
        calls: How many of the proxy's calls have begun and not ended.
        is_exposed: Whether the lease has more than calls that are over when they return: a prepared statement, a
            cursor, a transaction, a callback, the connection itself.
    """

    __slots__ = (
        "__weakref__",
        "_answer",
        "_backend_pid",
        "_can_be_followed",
        "_ending",
        "_guarded",
        "_has_reset",
        "_is_behind_reset",
        "_memory",
        "_plain",
        "_query",
        "_query_loggers",
        "_server_state",
        "_settings",
        "_starts_dirty",
        "_starts_exposed",
        "_termination_listeners",
        "_uncounted_queries",
        "_was_writable",
        "calls",
        "is_dirty",
        "is_exposed",
        "lease",
        "may_have_set_codecs",
        "owner",
        "pool",
        "reset_timeout",
    )

    is_dirty: bool
    is_exposed: bool

    def __init__(self, settings: SessionSettings, con: Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(con, loop)
        self.owner: SessionListener[AsyncpgSession] | None = None
        self.lease: weakref.ref[upstream.PoolConnectionProxy] | None = None
        self.pool: upstream.Pool | None = None
        self.reset_timeout: float | None = None
        self.is_dirty = self._starts_dirty = True
        self.may_have_set_codecs: bool = False
        self.calls: int = 0
        self.is_exposed = self._starts_exposed = type(con) is not Connection
        self._settings = settings
        self._uncounted_queries = 0  # asyncpg does not count these; less what it counted of the pool's own
        self._can_be_followed = False
        self._backend_pid = 0
        self._ending: upstream.PoolConnectionProxy | None = None  # the released proxy, until the reset or close is done
        self._server_state: ServerState | None = None
        self._was_writable = all(getattr(con.get_settings(), name, None) == "off" for name in _READ_ONLY_SETTINGS)
        self._query = ""
        self._plain = plain(())
        self._guarded: ResetMessage | None = None
        self._has_reset = False  # successfully
        self._is_behind_reset = False
        self._answer: ResetProtocol | None = None
        self._memory = ClientMemory(con)
        self._keep_callbacks(con)
        if hasattr(con, "_pool_holder"):  # asyncpg 0.32
            con._pool_holder = weakref.ref(self)

    async def detect_pooler(self) -> None:
        """
        Find out whether a query may travel behind a reset.

        It may not if the process at the other end is not the one that was connected to, as its process id shows: a
        PgBouncer in transaction mode gives a session to another client as soon as it has answered, whatever was sent
        behind. A query behind a reset would be lost, and its caller would wait for ever. The process id does not show
        the mode, which the user may know ("pipelined"). Nor may a query be sent behind a reset if the server refuses
        the guard (see `pipelined_reset.py`), or gets a reset that has none.

        Raises:
            TimeoutError: There was no answer for `RESET_SECONDS`.
            asyncpg.ConnectionDoesNotExistError: The connection was closed instead.
        """
        con, internals = self._con, self._internals
        if con is None or self._settings.session_reset not in ("auto", "pipelined"):
            return
        if not (self.resets_user and self._resets_in_passing(con)):
            return
        answered = self._loop.create_future()
        answer = BackendPidCheck(internals.transport, internals.protocol, answered)
        answer.ask()
        async with asyncio.timeout(RESET_SECONDS):
            await answered
        if not answer.row:
            self._settings.warn_once(f"the server refuses to say who answers, or to set exit_on_error: {_LENT_LATER}")
        elif self._settings.session_reset == "auto" and answer.pid != con.get_server_pid():
            self._settings.warn_once(_PROXY_FOUND)
        else:
            self._can_be_followed = True
            self._backend_pid = answer.pid
            self._settings.backends.note(answer.row, self)
            if not self._can_be_followed:
                self._settings.warn_once(_SHARED)

    def is_open_still(self) -> bool:
        """Whether the connection is open, at the other end, too."""
        return self.is_connected() and (self._probe is None or not self._probe.events()[0])

    def stop_sending_behind(self) -> None:
        """Send nothing behind a reset from now on: the session's server connection is shared."""
        self._can_be_followed = False
        self._guarded = None

    @property
    def resets_user(self) -> bool:
        """
        Whether a reset sets the user that the session acts as. Only the pool's own does, and only on PostgreSQL itself:
        others do not know a role, or refuse to be asked for it.
        """
        con, settings = self._con, self._settings
        if con is None or settings.session_reset == "never" or settings.reset_query is not None:
            return False
        return not self._is_custom(con) and is_completed(con)

    def prepare_reset(self, user: SessionUser | None) -> None:
        """
        Prepare to reset the session to its present state. *user* is the user it acts as; None for the one it began as.
        """
        con = self._con
        if con is None:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed during pool initialization")
        mode, query = self._settings.session_reset, self._settings.reset_query
        statements = () if mode == "never" else reset_statements(con, user)
        self._query = "\n".join(statements) if query is None else query
        self._plain = plain(statements) if query is None else of_user(query)
        self._guarded = guarded(statements) if self._can_be_followed else None
        if self._resets_in_passing(con):
            internals = self._internals
            self._answer = ResetProtocol(self, internals.transport, internals.protocol, self._settings.clean_answers)
        # The statements of a user's own class, or of a tracer's methods, are not seen.
        judges = mode == "when_dirty" or self._can_be_followed
        self._starts_dirty = not judges or type(con) is not Connection or not has_own_methods()
        self.is_dirty = self._starts_dirty or self._settings.init is not None or self._settings.connect_hook is not None
        if user is not None:
            self._uncounted_queries -= 1  # the query that asked for *user*
        self._memory.keep_codecs()
        self._keep_callbacks(con)

    def _keep_callbacks(self, con: Connection) -> None:
        """Note the callbacks that each lease must find: those that asyncpg's own reset does not remove."""
        self._query_loggers = frozenset(con._query_loggers)
        self._termination_listeners = frozenset(con._termination_listeners)

    def _resets_in_passing(self, con: Connection) -> bool:
        """Whether resets are pipelined and idle connections guarded. Otherwise a task awaits the resets."""
        if self._settings.session_reset == "awaited" or self._is_custom(con):
            return False
        if not self._internals.can_reset_in_passing:
            self._settings.warn_once("asyncpg's protocol or transport not found: resets are awaited")
            return False
        return True

    def _is_custom(self, con: Connection) -> bool:
        """Whether the user has replaced the reset by code."""
        return self._settings.reset_hook is not None or has_own_reset(type(con))

    # ---- what the core asks ----

    @property
    def is_settled(self) -> bool:
        """Whether no answer to a reset is due."""
        return self._answer is None or not self._answer.is_due

    def _found_unread(self) -> None:
        if self._answer is not None:
            self._answer.stand_guard()

    def is_dropped(self) -> bool:
        """
        Whether nothing refers to the caller's proxy, nor to what was made with it, such as a prepared statement.

        The session refers to the proxy weakly, and what is made with the proxy refers to it. For some leases, asyncpg
        has to refer to the proxy, too (see `PoolConnectionProxy.show_asyncpg`). Then references are counted, where
        Python counts all of them; where it does not, such a lease is never taken for dropped. A lease with listeners is
        not dropped: the connection is held for them.

        The garbage collector clears the reference to a proxy in a cycle before it calls finalizers. One of them may
        still use the proxy, as a suspended async generator does when it is closed. A proxy that lives has a reference
        to the connection.
        """
        con, lease = self._con, self.lease
        if con is None or lease is None:
            return False
        proxy = lease()
        if proxy is None:
            own = _REFERENCES_WITHOUT_PROXY + self._count_own_callbacks(con)
            del con  # no version counts it then
            return not _IS_CPYTHON or sys.getrefcount(self._con) <= own
        return (
            _ARE_REFERENCES_COUNTED
            and con._proxy is proxy
            and sys.getrefcount(proxy) <= _REFERENCES
            and sys.getrefcount(con) <= _REFERENCES + 1 + self._count_own_callbacks(con)
            and not (con._listeners or con._log_listeners)
            and con._termination_listeners == self._termination_listeners
        )

    def _count_own_callbacks(self, con: Connection) -> int:
        """Count the callbacks that are methods of the connection. Each of them refers to it."""
        callbacks = [*self._query_loggers, *self._termination_listeners]
        return sum(getattr(callback.cb, "__self__", None) is con for callback in callbacks)

    def take_back(self, *, is_wanted: bool = False) -> ReturnCheck:
        """
        Send the reset, unless it has to be awaited.

        If a caller waits for the connection (*is_wanted*), a query is about to be sent behind the reset. Both are then
        sent as one, which saves a system call here and a wake-up of the server. `flush_later` must be called next.
        """
        con = self._con
        internals = self._internals
        if con is None or not internals.is_connected() or self._server_state is ServerState.GOODBYE:
            return ReturnCheck.BROKEN
        protocol = internals.protocol
        is_worn_out = protocol.queries_count + self._uncounted_queries >= self._settings.max_queries
        if is_worn_out or (self.may_have_set_codecs and self._has_foreign_codecs()):
            return ReturnCheck.WORN_OUT
        answer = self._answer
        if (
            answer is None
            or self._server_state is not None
            or self.calls > 0
            or protocol._is_cancelling()
            or protocol.is_in_transaction()
            or (self.is_exposed and (con._top_xact is not None or self._is_busy()))
        ):
            return _RESET
        if self.is_exposed:
            self._restore_callbacks(con)
        if self.may_have_set_codecs:
            self._restore_codecs(con)
        self._ending = None
        # While an answer is due, the caller has had no answer of its own, so the session is unchanged.
        if answer.is_due or not self._query:
            return _READY
        return self._send_reset(con, answer, is_wanted=is_wanted)

    def flush_later(self) -> None:
        """Have a reset that is held back sent in the loop's next iteration, if the next caller has sent nothing."""
        if self._answer is not None and self._answer.is_held:
            self._loop.call_soon(self._answer.flush)

    def _send_reset(self, con: Connection, answer: ResetProtocol, *, is_wanted: bool) -> ReturnCheck:
        """Reset the session, unless the lease has left nothing and the settings allow to skip the reset then."""
        memory = self._memory
        is_dirty = self.is_dirty or memory.reported != memory.expected
        if is_dirty:
            memory.forget_statements(con)
        if not (is_dirty or self._settings.resets_always):
            return _READY
        self.is_dirty = self._starts_dirty
        self._uncounted_queries += 1
        # To follow a reset, but not in the same write, costs the server the guard and saves it nothing. The first reset
        # of a session is not followed: a server that refuses it would cost the next caller its query. Another session
        # may be of another server.
        may_be_followed = self._has_reset and (answer.can_hold or not is_wanted)
        to_be_followed = self._guarded  # once: another thread may learn that nothing may follow
        if is_dirty or to_be_followed is None or not may_be_followed:
            answer.send(self._plain)
            return _RESET_SENT
        answer.send(to_be_followed, is_held=is_wanted)
        return _RESET_PIPELINED

    def _is_busy(self) -> bool:
        """
        Whether asyncpg's protocol is in the middle of something, as far as it shows. To ask is expensive.

        While a COPY's sink is slow, asyncpg waits for no answer, but has stopped reading.
        """
        internals = self._internals
        return (internals.is_busy is not None and internals.is_busy()) or not internals.is_reading()

    def is_cancelling(self) -> bool:
        """Whether asyncpg is having the server cancel a query."""
        return self._internals.is_cancelling()

    def patience_after(self, error: BaseException | None) -> float | None:
        """
        Return how many seconds a release may wait for the reset while *error* is raised; None for as long as it takes.
        """
        is_every_reset_awaited = self._answer is None
        if not is_every_reset_awaited and self.is_cancelling():
            return LATE_SECONDS  # the query's time was up, whatever the caller has made of its error
        return patience_after(error)

    async def reset(self) -> None:
        """Reset the session by an awaited query."""
        timeout, self.reset_timeout = self.reset_timeout, None
        async with asyncio.timeout(RESET_SECONDS if timeout is None else timeout):
            try:
                await self._reset()
            except asyncpg.InternalClientError as error:
                raise_if_ended(error)
                raise

    async def _reset(self) -> None:
        con = self._con
        may_be_lost = False
        if con is not None and self.is_cancelling():
            may_be_lost = self._is_behind_reset and self._guarded is not None
            await self._wait_for_cancellation(con)
        if con is None or con.is_closed():
            raise asyncpg.ConnectionDoesNotExistError("connection was closed while it was being released")
        if self._is_busy():
            raise asyncpg.InterfaceError("cannot perform operation: another operation is in progress")
        self._restore_codecs(con)
        if self._settings.session_reset != "never":
            self._memory.forget_statements(con)
        if self._is_custom(con):
            await self._reset_by_user(con)
        else:
            # With "awaited", as in asyncpg's own pool, loggers hear of the reset's query.
            with contextlib.nullcontext() if self._settings.session_reset == "awaited" else without_query_loggers(con):
                await con._reset()
                if self._query:
                    await con.execute(self._query)
                    if self._settings.reset_query and con.is_in_transaction():
                        raise asyncpg.InterfaceError("reset_query leaves a transaction open")
            self._restore_callbacks(con)
        self.is_dirty = self._starts_dirty
        self._memory.expect_this()
        self._ending = None
        if may_be_lost:
            await self._find_sharing(con)
        await self._verify(con)

    async def _find_sharing(self, con: Connection) -> None:
        """
        Ask whether the same process still answers, after a call sent behind a reset got no answer in time.

        A proxy that shares its connections may have lost the call. The end of its cancellation looks the same then.
        """
        with without_query_loggers(con):
            pid = await Connection.fetchval(con, "SELECT pg_catalog.pg_backend_pid()")
        if pid != self._backend_pid:
            self._settings.backends.share()
            self.stop_sending_behind()
            self._settings.warn_once(_SHARED)

    async def _wait_for_cancellation(self, con: Connection) -> None:
        """
        Wait until the server has ended a cancelled query. The connection has its last proxy meanwhile: asyncpg 0.31
        reports the loss of a connection to that only.
        """
        ending = self._ending
        self._show_proxy(con)
        try:
            await self._internals.protocol._wait_for_cancellation()
        finally:
            if self._con is not None:
                self._ending = ending
                con._set_proxy(None)

    async def _reset_by_user(self, con: Connection) -> None:
        """
        Reset the session by the user's own code. Callbacks that it adds must stay, so the lease's are removed before.
        """
        listeners = set(con._termination_listeners)
        self._restore_callbacks(con)
        try:
            if self._settings.reset_hook is not None:
                await con._reset()
                await self._settings.reset_hook(con)
            else:
                await con.reset()
        except BaseException:
            con._termination_listeners |= listeners  # they must be called when the connection is closed for this
            raise

    async def _verify(self, con: Connection) -> None:
        """Ask the server what an error has put in doubt: whether it answers, and still takes writes."""
        if self._server_state is None:
            return
        self._server_state = None
        with without_query_loggers(con):
            query = IS_READ_ONLY_QUERY if self._was_writable else "SELECT 1"  # other servers refuse the former
            is_read_only = await Connection.fetchval(con, query)
        if is_read_only and self._was_writable and self.owner is not None:
            self.owner.demoted()

    def _restore_callbacks(self, con: Connection) -> None:
        """
        Remove the callbacks that the lease registered, and bring back those that it removed.

        Listeners for notifications and for log messages go with each reset, as in asyncpg. Query loggers and
        termination listeners, which asyncpg leaves to later leases, become again those that `init` left.
        """
        con._listeners.clear()
        con._log_listeners.clear()
        for callbacks, kept in (
            (con._query_loggers, self._query_loggers),
            (con._termination_listeners, self._termination_listeners),
        ):
            callbacks.clear()
            callbacks.update(kept)

    def _has_foreign_codecs(self) -> bool:
        """Whether the lease may have set codecs that cannot be restored."""
        return not self._memory.can_restore_codecs and self._settings.session_reset != "never"

    def _restore_codecs(self, con: Connection) -> None:
        """Remove the codecs that the lease has set, unless nothing is to be reset."""
        if self.may_have_set_codecs and self._settings.session_reset != "never":
            self._memory.restore_codecs(con)
        self.may_have_set_codecs = False

    async def ping(self) -> None:
        """Make a round trip."""
        if self._con is None:
            raise asyncpg.ConnectionDoesNotExistError("connection is closed")
        self._take_transport()
        with without_query_loggers(self._con):
            await self._con.execute("SELECT 1")

    async def close(self) -> None:
        """Close the connection politely."""
        if self._con is not None:
            self._take_transport()
            self._show_proxy(self._con)
            await self._con.close()

    def _show_proxy(self, con: Connection) -> None:
        """If the end of a lease has led to the close, have termination listeners called with that lease's proxy."""
        if self._ending is not None:
            con._set_proxy(self._ending)
            self._ending = None

    def _take_transport(self) -> None:
        """Give the transport back to asyncpg: at once, or when the reset's answer has come."""
        answer = self._answer
        if answer is not None:
            answer.is_wanted = True
            if answer.is_on_guard:
                answer.relieve()

    def abort(self) -> None:
        """Close the socket without a goodbye."""
        con = self._con
        if con is not None:
            if self._answer is not None:
                self._answer.give_back()
            self._terminate(con)

    def _terminate(self, con: Connection) -> None:
        """
        Terminate the connection without telling the owner. The lease ends afterwards: listeners are called with its
        proxy.
        """
        self._con = None
        self._show_proxy(con)
        try:
            con.terminate()
        finally:
            self._detach()

    # ---- what asyncpg asks ----

    @property
    def _pool(self) -> upstream.Pool | None:
        return self.pool

    @property
    def _in_use(self) -> upstream.PoolConnectionProxy | None:
        return None if self.lease is None else self.lease()

    @property
    def _holder(self) -> AsyncpgSession:
        return self

    _inactive_callback = None
    says_goodbye = True

    def is_idle(self) -> bool:
        """Whether no caller has it."""
        return self.lease is None

    def _release_on_close(self) -> None:
        """Called by asyncpg when the connection is closed by anything but `abort`."""
        was_open = self._con is not None
        if self.is_cancelling() and not self._loop.is_closed():
            self._loop.call_soon(self._internals.fail_abandoned_calls)  # after asyncpg has woken those it knows of
        self._detach()
        if was_open and self.owner is not None:
            self.owner.lost("closed")

    # ---- the caller's side ----

    def lend(self, proxy: upstream.PoolConnectionProxy, pool: upstream.Pool) -> Connection:
        """Begin a lease; nothing may be awaited between here and the caller."""
        con = self._con
        if con is None:
            raise asyncpg.ConnectionDoesNotExistError("connection is closed")
        if self.is_parked:
            self.unpark()
        answer = self._answer
        self._is_behind_reset = answer is not None and answer.is_due
        if answer is not None and (answer.is_due or answer.is_on_guard):
            self._take_transport()
        if con._proxy is not None:  # a `connect` of the user's has returned one connection twice
            raise asyncpg.InterfaceError("connection is lent already")
        self.lease = weakref.ref(proxy)
        self.pool = pool
        # The calls of a user's own class are not seen.
        self.may_have_set_codecs = self._starts_exposed
        self.is_exposed = self._starts_exposed or bool(con._listeners or con._log_listeners)
        con._proxy = proxy if self.is_exposed or self._termination_listeners else self
        return con

    def call_failed(self, error: BaseException, *, is_hearsay: bool) -> None:
        """
        Note the error of a call of the proxy's. *is_hearsay* if the call has run the caller's code, which may have
        raised it.

        A failed call leaves the session dirty: asyncpg looks types up, and turns a setting off and on for that. An
        operation that is closed in the middle, or failed in the client, may still run at the server, and asyncpg waits
        for its answer.
        """
        self.is_dirty = self.is_exposed = True
        if is_hearsay:
            self.suspect(error)
        elif isinstance(error, (asyncpg.PostgresError, asyncpg.InternalClientError)):
            self.heard(error)

    def heard(self, error: BaseException) -> None:
        """Remember what an error of this connection says about its server."""
        server_state = ServerState.GOODBYE if is_refused_as_ended(error) else classify(error)
        if server_state is ServerState.GOODBYE or (server_state is ServerState.READ_ONLY and self._was_writable):
            self._server_state = server_state

    def suspect(self, error: BaseException) -> None:
        """
        Check the server later if *error*, which has ended the caller's block, says something about a server.

        It may have come from another server. Calls of the proxy report this server's own errors. Not reported are those
        of calls that run the caller's code, of a connection class's own methods, and of a connection used without its
        proxy.
        """
        server_state = classify(error)
        if self._server_state is None and (
            server_state is ServerState.GOODBYE or (server_state is ServerState.READ_ONLY and self._was_writable)
        ):
            self._server_state = ServerState.HEARSAY

    def end_lease(self, proxy: upstream.PoolConnectionProxy | None = None) -> None:
        """
        Make the caller's proxy useless.

        Args:
            proxy: The proxy; None if only the session's reference to it is known (see `is_dropped`).
        """
        lease, self.lease = self.lease, None
        if proxy is None and lease is not None:
            proxy = lease()
        self._ending = proxy
        self.pool = None
        con = self._con
        if proxy is not None:
            con, proxy._connection = proxy._connection, None
        if lease is not None and con is not None:
            con._proxy = None

    def invalidate_derivatives(self) -> None:
        """
        Invalidate prepared statements, cursors and transactions of the lease; warn of listeners it left.

        asyncpg's `_on_release` does that, and looks for listeners at some length, although there mostly are none.
        """
        con = self._con
        if con is None:
            return
        if con._listeners or con._log_listeners:
            con._on_release()
        else:
            con._pool_release_ctr += 1

    def disown(self) -> None:
        """
        End a lease whose `setup` failed. The proxy keeps the connection, and the caller of this must see that it
        closes.
        """
        self._ending = self._in_use
        self.lease = self.pool = None
        if self._con is not None:
            self._con._set_proxy(None)

    def _detach(self) -> None:
        self.end_lease()
        self._con = self._ending = None

    def setting_reported(self) -> None:
        """Note a setting reported while no caller has the connection: by the reset, or after a server-wide change."""
        self._memory.expect_this()

    def answer_complete(self) -> None:
        """The reset is done. The settings reported by now are those of an unchanged session."""
        self._has_reset = self._settings.has_reset = True
        if self.lease is None:
            self._memory.expect_this()
        if self.owner is not None:
            self.owner.settled()

    def connection_gone(self, reason: str) -> None:
        """The connection was lost, or received an unsolicited message, while no caller had it."""
        if self.owner is not None:
            self.owner.lost(reason)

    def answer_failed(self, reason: str, sqlstate: str) -> None:
        """The reset has failed."""
        if not (self._settings.has_reset or may_pass(sqlstate)):
            self._settings.reset_refused(reason)
        if self.owner is not None:
            self.owner.reset_failed(asyncpg.InterfaceError(f"the reset of a session failed: {reason}"))
            self.owner.lost("reset failed")
