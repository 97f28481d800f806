"""
The drop-in for asyncpg's pool.

`create_pool` and `Pool` take the arguments of asyncpg 0.32's, with its defaults, and behave like them, whichever
supported version of asyncpg is installed. Additions are described where they are.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import warnings
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg import pool as upstream
from asyncpg.connection import Connection

from loopaware_pool._core.checks import check_number
from loopaware_pool._core.options import documented
from loopaware_pool._core.pool import PoolCore
from loopaware_pool._core.reporter import logger, without_context
from loopaware_pool._core.slot import acquiring_line
from loopaware_pool._core.state import PoolState
from loopaware_pool._core.timeouts import LEAST_CALLBACK_SECONDS
from loopaware_pool._platform.event_loops import running
from loopaware_pool._platform.log_fields import error_type, fields
from loopaware_pool.asyncpg.connect_arguments import TAKEN, ConnectArguments, check_connect_arguments
from loopaware_pool.asyncpg.driver import AsyncpgDriver, Overloaded, PoolClosed, PoolTimeout, TooManyWaiting
from loopaware_pool.asyncpg.options import Options, SessionReset, check_credentials
from loopaware_pool.asyncpg.proxy import DirtyTrackingProxy, PoolConnectionProxy
from loopaware_pool.asyncpg.upstream_pool import UpstreamPool
from loopaware_pool.driver import ReturnCheck

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from types import CodeType, FrameType, TracebackType
    from typing import Self

    from loopaware_pool._core.runner import SessionListener, ShardRunner
    from loopaware_pool._core.slot import Slot
    from loopaware_pool.asyncpg.connect_arguments import Credentials, Dsn
    from loopaware_pool.asyncpg.session import AsyncpgSession
    from loopaware_pool.stats import EventHook

__all__ = [
    "Overloaded",
    "Pool",
    "PoolClosed",
    "PoolConnectionProxy",
    "PoolTimeout",
    "SessionReset",
    "TooManyWaiting",
    "create_pool",
]

_OPEN: Final = PoolState.OPEN  # bound once: see shard.py
_RESET: Final = ReturnCheck.RESET
_TIMEOUT: Final = "a number of seconds, or None"


class Pool(UpstreamPool):
    """
    A connection pool that any number of loops, threads and `asyncio.run` calls share.

    It is opened by awaiting it, once, on any loop. After that it serves every loop from that loop's first acquire on,
    with connections of its own; `max_size` limits them all together. It may be made without a loop, as at import time.
    See `create_pool` for the arguments.
    """

    def __init__(
        self,
        *connect_args: Any,
        init_size: int | None = None,
        min_size: int,
        max_size: int,
        max_queries: int,
        max_inactive_connection_lifetime: float,
        connect: Callable[..., Awaitable[Any]] | None = None,
        credentials: Credentials | None = None,
        setup: Callable[[Any], Awaitable[Any]] | None = None,
        init: Callable[[Any], Awaitable[Any]] | None = None,
        reset: Callable[[Any], Awaitable[Any]] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        connection_class: type[Connection] = Connection,
        record_class: type[asyncpg.Record] = asyncpg.Record,
        name: str | None = None,
        acquire_timeout: float | None = None,
        session_reset: SessionReset = "auto",
        reset_query: str | None = None,
        max_lifetime: float = 0,
        lifetime_jitter: float = 0.1,
        keepalive: float = 0,
        max_waiting: int = 0,
        shed_after: float | None = None,
        max_connecting: int | None = None,
        leak_threshold: float | None = None,
        fd_check: float | None = None,
        close_timeout: float | None = None,
        on_event: EventHook | None = None,
        **connect_kwargs: Any,
    ) -> None:
        options = Options.of(locals())
        if len(connect_args) > 1:
            warnings.warn(
                "Passing multiple positional arguments to asyncpg.Pool constructor is deprecated and will be removed "
                "in asyncpg 0.17.0.  The non-deprecated form is asyncpg.Pool(<dsn>, **kwargs)",
                DeprecationWarning,
                stacklevel=2,
            )
        check_connect_arguments(connect_kwargs, takes_any=connect is not None, own=["dsn", *Options.names()])
        self._max_inactive_connection_lifetime = max_inactive_connection_lifetime
        config = options.config()
        self._driver = AsyncpgDriver(connect_args, connect_kwargs, options, name=config.name)
        self._proxy_class = DirtyTrackingProxy if options.judges_leases else PoolConnectionProxy
        self._setup = setup
        self._acquire_timeout = acquire_timeout
        self._home = None if loop is None else weakref.ref(loop)
        self._core = PoolCore(config, self._driver, self)
        self.reference: weakref.ref[Self] = weakref.ref(self)

    # ---- opening and closing ----

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _open(self) -> Self:
        core = self._core
        if core.state is PoolState.OPENING and core.is_opening_here():
            raise asyncpg.InterfaceError("pool is being initialized in another task")
        if core.state in (PoolState.NEW, PoolState.OPENING, PoolState.OPEN):
            await core.open()
        return self

    async def close(self) -> None:
        """
        Close the pool on every loop: refuse waiting callers, wait for leases, close connections.

        Like asyncpg's. In addition `close_timeout` limits the wait for leases, and waiting callers get an error at
        once.

        Raises:
            asyncpg.InterfaceError: The pool has not been opened.

        Cancellation: terminates every connection.
        """
        if self._core.state is PoolState.CLOSED:
            return
        self._check_init()
        try:
            await self._core.close()
        except BaseException:
            self.terminate()  # already done, but a subclass may do more
            raise

    def terminate(self) -> None:
        """
        Close every connection at once, lent ones included; from any thread, with or without a loop.

        Raises:
            asyncpg.InterfaceError: The pool has not been opened.
        """
        if self._core.state is PoolState.CLOSED:
            return
        self._check_init()
        self._core.terminate()

    def _check_init(self) -> None:
        state = self._core.state
        if state is PoolState.NEW:
            raise asyncpg.InterfaceError(
                "pool is not initialized: await it, or use it in `async with`, before its first use"
            )
        if state is PoolState.OPENING:
            raise asyncpg.InterfaceError(
                "pool is being initialized, but not yet ready: likely there is a race between creating a pool and "
                "using it"
            )
        if state is PoolState.CLOSED:
            raise self._core.closed_error()

    # ---- lending ----

    def acquire(self, *, timeout: float | None = None) -> PoolAcquireContext:
        """
        Lend a connection of the running loop.

        Args:
            timeout: Seconds for everything: the queue, connecting, `setup`. None takes the pool's `acquire_timeout`.

        Returns:
            An object to await, or to enter with `async with`. The connection must be used on this loop; it may be
            released from any.

        Raises:
            TypeError: *timeout* is not a number.
            PoolTimeout: No connection came in time; a `TimeoutError` with the counts and the holders. (When awaited.)
            asyncpg.InterfaceError: The pool is not open, or was closed meanwhile. (When awaited.)
            TooManyWaiting, Overloaded: See `max_waiting` and `shed_after`. (When awaited.)
            UnsupportedLoop: No loop is running, or one that cannot watch sockets. (When awaited.)
            Exception: What connecting failed with, if there is no timeout: one caller gets each failure.

        Cancellation: loses nothing. A connection handed over at that moment goes to the next waiter; one that is being
        opened joins the pool.
        """
        if timeout is None:
            timeout = self._acquire_timeout
        else:
            check_number("timeout", timeout, _TIMEOUT)
        return PoolAcquireContext(self, timeout, sys._getframe(1))

    async def _acquire(self, context: PoolAcquireContext) -> PoolConnectionProxy:
        core = self._core
        timeout = context.timeout
        if core.state is not _OPEN:
            self._refuse()
        runner = core.runner()
        began = monotonic()
        slot = runner.shard.take(began)
        if runner.decided:
            runner.act()
        if slot is None:
            slot = await core.queue.wait(runner, timeout, (context.code, context.instruction))
        session = slot.session
        session.reset_timeout = timeout if timeout is None or timeout > 0 else None  # in no time no reset succeeds
        slot.lent_to(asyncio.current_task(runner.loop), context.code, context.instruction)
        proxy = self._proxy_class(session, self)
        if self._setup is not None:
            await self._set_up(proxy, runner, slot, None if timeout is None else began + timeout)
        context.connection = proxy  # not before: a context whose `setup` failed may be entered again
        return proxy

    def _refuse(self) -> None:
        if self._core.state is PoolState.CLOSING:
            raise self._core.closing_error()
        self._check_init()

    async def _set_up(
        self,
        proxy: PoolConnectionProxy,
        runner: ShardRunner[AsyncpgSession],
        slot: Slot[AsyncpgSession],
        deadline: float | None,
    ) -> None:
        """
        Run the user's `setup`. If it fails, the pool closes the connection, and no caller waits for that. If `setup`
        has closed or released the connection, the caller gets an error now, not at the first use.

        The connection is aborted, unless asyncpg is about to have the server cancel a query of `setup`: after an abort
        the server would run that query to its end, beside the sessions that the pool counts.
        """
        left = None if deadline is None else max(LEAST_CALLBACK_SECONDS, deadline - monotonic())
        timer = asyncio.timeout(left)
        setup: Any = self._setup
        try:
            async with timer:
                await setup(proxy)
        except BaseException as error:
            if proxy._connection is not None:  # else `setup` has released it: it may be lent again
                proxy._holder.disown()
                runner.shard.retire(slot, "setup failed", politely=proxy._holder.is_cancelling())
                runner.act()
            if timer.expired() and isinstance(error, TimeoutError):
                raise self._core.queue.timeout_error(runner, left or 0.0, " (in setup)") from error
            raise
        if proxy._connection is None:
            self._refuse()
            raise asyncpg.ConnectionDoesNotExistError("connection was closed or released in setup")

    async def release(self, connection: PoolConnectionProxy, *, timeout: float | None = None) -> None:
        """
        Give a connection back. This costs no round trip unless the reset has to be awaited (see `session_reset`).

        A caller whose time is up waits for the reset for a tenth of a second at most: one that is handling a
        `TimeoutError` or a cancellation, or one whose query is still being cancelled (unless every reset is awaited).

        It may be called on any loop. On another loop than the connection's own, it only hands the connection over.

        Args:
            connection: What `acquire` returned. One that was released already is ignored.
            timeout: Seconds for the reset, after which the connection is closed; None takes the acquire's timeout,
                unless that was 0. A reset that is not awaited has a second at least.

        Raises:
            TypeError: *timeout* is not a number; the connection is still lent.
            asyncpg.InterfaceError: *connection* is not of this pool.
            Exception: What an awaited reset failed with; the connection is closed.

        Cancellation: ends the waiting; the pool still resets or closes the connection.
        """
        if timeout is not None:
            check_number("timeout", timeout, _TIMEOUT)
        pending = self._release(connection, timeout)
        if pending is not None:
            await pending.finished(connection._holder.patience_after(sys.exc_info()[1]))

    _own_release = staticmethod(release)  # to tell it from an override

    def _release(self, proxy: object, timeout: float | None) -> SessionListener[AsyncpgSession] | None:
        """Take a connection back. Returns its listener if a task still resets it; the caller may wait for that."""
        if type(proxy) is not self._proxy_class or proxy._pool_reference is not self.reference:
            raise asyncpg.InterfaceError(
                f"Pool.release() received invalid connection: {proxy!r} is not a member of this pool"
            )
        con, session = proxy._connection, proxy._holder
        listener = session.owner
        if con is None or listener is None or session.lease is None:
            return None  # released already, closed, or the parent process's
        if con._loop is not running():
            listener.runner.errands.add(functools.partial(self._release_at_home, proxy, listener, timeout))
            return None
        if timeout is not None:
            session.reset_timeout = timeout
        check = ReturnCheck.BROKEN
        runner, slot = listener.runner, listener.slot
        is_wanted = bool(runner.shard.waiters)
        try:
            if session.is_exposed:
                session.invalidate_derivatives()
        finally:  # it warns about listeners, and warnings may be errors
            session.end_lease(proxy)
            try:
                # An expired one is closed without a reset, as in asyncpg's pool.
                is_outdated = runner.shard.is_outdated(slot)
                check = ReturnCheck.READY if is_outdated else session.take_back(is_wanted=is_wanted)
            finally:
                runner.shard.returned(slot, check, monotonic(), session.reset_timeout)
                if is_wanted:
                    session.flush_later()  # behind the caller's wake-up
                if runner.decided:
                    runner.act()
        return listener if check is _RESET else None

    def _release_at_home(
        self, proxy: PoolConnectionProxy, listener: SessionListener[AsyncpgSession], timeout: float | None
    ) -> None:
        """Take a connection back on its own loop, or for that loop if it is not running."""
        if listener.runner.is_here():
            self._release(proxy, timeout)
        elif proxy._connection is not None and proxy._holder.lease is not None:
            proxy._holder.end_lease(proxy)
            listener.runner.shard.returned(listener.slot, ReturnCheck.STRANDED, monotonic())
            listener.runner.act()

    # ---- asyncpg's other methods ----

    async def expire_connections(self) -> None:
        """Replace every connection that is open now: at its release, or before it would be lent next."""
        self._core.expire()

    def set_connect_args(
        self, dsn: Dsn | None = None, *, credentials: Credentials | None = None, **connect_kwargs: Any
    ) -> None:
        """
        Connect with these arguments from now on, and with none of the former ones.

        Args:
            dsn, credentials: As in `create_pool`.
            **connect_kwargs: The arguments of `asyncpg.connect`; with the pool's `connect`, whatever that takes.

        Raises:
            TypeError: One is unknown, or cannot be changed, or is of a wrong type; nothing has changed.
        """
        check_connect_arguments(connect_kwargs, takes_any=self._driver.connect_hook is not None, taken=TAKEN)
        check_credentials("credentials", credentials)
        self._driver.arguments = ConnectArguments([dsn], connect_kwargs, credentials)
        self._driver.has_reset = False  # the next server may be another one

    def is_closing(self) -> bool:
        """Whether the pool is closed, or about to be."""
        return self._core.state in (PoolState.CLOSING, PoolState.CLOSED)

    def get_size(self) -> int:
        """Count the open connections on all loops."""
        return len(self._sessions())

    def get_idle_size(self) -> int:
        """Count the open connections that no caller has, on all loops; not those whose reset is awaited."""
        return sum(runner.shard.idle_size for runner in self._core.runners())

    def get_init_size(self) -> int:
        """Return how many connections are opened at first."""
        return self._core.shared.config.init_size

    def get_min_size(self) -> int:
        """Return how many connections are kept while idle."""
        return self._core.shared.config.min_size

    def get_max_size(self) -> int:
        """Return how many connections there may be, on all loops together."""
        return self._core.shared.config.max_size

    # ---- what asyncpg's has not ----

    @property
    def name(self) -> str:
        """The pool's name, as errors, logs and events give it."""
        return self._core.shared.config.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._core.state.value}: {self.stats().summary()}>"


class PoolAcquireContext(upstream.PoolAcquireContext):
    """What `Pool.acquire` returns: to await, or to enter, once."""

    __slots__ = ("code", "instruction")

    pool: Pool
    timeout: float | None
    connection: PoolConnectionProxy | None
    code: CodeType | None
    instruction: int
    done: bool

    def __init__(self, pool: Pool, timeout: float | None, frame: FrameType) -> None:
        self.pool = pool
        self.timeout = timeout
        self.connection = None
        self.done = False
        self.code, self.instruction = acquiring_line(frame)

    def __aenter__(self) -> Coroutine[Any, Any, PoolConnectionProxy]:
        if self.connection is not None or self.done:
            raise asyncpg.InterfaceError("a connection is already acquired")
        return self.pool._acquire(self)

    def __await__(self) -> Generator[Any, Any, PoolConnectionProxy]:
        self.done = True
        return self.pool._acquire(self).__await__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> None:
        self.done = True
        connection, self.connection = self.connection, None
        if exc_val is not None and connection is not None and connection._connection is not None:
            connection._holder.suspect(exc_val)
        pool = self.pool
        if getattr(pool.release, "__func__", None) is pool._own_release:
            listener = pool._release(connection, None)
            if listener is None or connection is None:
                return
            releasing: Awaitable[None] = listener.finished(connection._holder.patience_after(exc_val))
        else:  # a subclass's, or a tracer's
            releasing = pool.release(connection)  # type: ignore[arg-type]
        try:
            await releasing
        except Exception as error:
            if exc_val is None:
                raise
            # The block's error says more than a failed reset after it.
            logger.warning(
                "releasing a connection failed after an error",
                exc_info=without_context(error, exc_val),
                extra=fields("release_failed", pool.name, pool_error=error_type(error)),
            )


@documented(Options)
def create_pool(
    dsn: Dsn | None = None,
    *,
    init_size: int | None = None,
    min_size: int = 10,
    max_size: int = 10,
    max_queries: int = 50000,
    max_inactive_connection_lifetime: float = 300.0,
    connect: Callable[..., Awaitable[Any]] | None = None,
    credentials: Credentials | None = None,
    setup: Callable[[Any], Awaitable[Any]] | None = None,
    init: Callable[[Any], Awaitable[Any]] | None = None,
    reset: Callable[[Any], Awaitable[Any]] | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    connection_class: type[Connection] = Connection,
    record_class: type[asyncpg.Record] = asyncpg.Record,
    name: str | None = None,
    acquire_timeout: float | None = None,
    session_reset: SessionReset = "auto",
    reset_query: str | None = None,
    max_lifetime: float = 0,
    lifetime_jitter: float = 0.1,
    keepalive: float = 0,
    max_waiting: int = 0,
    shed_after: float | None = None,
    max_connecting: int | None = None,
    leak_threshold: float | None = None,
    fd_check: float | None = None,
    close_timeout: float | None = None,
    on_event: EventHook | None = None,
    **connect_kwargs: Any,
) -> Pool:
    """
    Make a pool that knows which loop each of its connections belongs to. The drop-in for `asyncpg.create_pool`.

    Await it, or enter it with `async with`, before its first use. From then on any loop of any thread may use it.

    Args:
        dsn: Where to connect; or a function, plain or async, that returns it, called before each connect. None leaves
            it to the other arguments and the environment, as in asyncpg.
        {options}
        **connect_kwargs: The arguments of `asyncpg.connect`; with *connect*, whatever that takes. As with asyncpg,
            *password* may be a function, plain or async, called at each connect.

    Returns:
        A pool that has connected to nothing yet.

    Raises:
        ValueError, TypeError: An argument makes no sense, or is unknown; the message names it.

    A lease has left nothing, as far as can be told, if all of this is true: the settings that the server reports are
    unchanged; it used asyncpg's own connection class; each of its statements ran, and is known by its text to change
    nothing that a reset restores. Known are SELECT, VALUES, INSERT, UPDATE and DELETE with the functions and types that
    `loopaware_pool.asyncpg.sql_effects` lists, and the statements that begin and end transactions. A text is judged
    when it comes a second time; a new one may leave something.

    What a text does not show goes unseen: functions that the server calls by itself, for triggers, views, rules,
    policies, operators, casts, defaults and constraints; functions or types of the user's that have a listed name; and
    functions of the user's that are written like a column. If a method of asyncpg's connection has been replaced, as by
    a tracer, each lease may have left something.

    * "pipelined": each lease is reset. After a lease that has left nothing the connection is lent again at once, and
      the next query may travel behind the reset; if the reset fails, the server ends the session before it runs that
      query. After any other lease, the connection is lent again when the server has answered the reset. If a proxy
      stands between the pool and the server, this is so after every lease.
    * "when_dirty": a lease that has left nothing is not reset. What went unseen stays until the next reset.
    * "confirmed": each lease is reset, and the connection is lent again when the server has answered. No release waits.
    * "awaited": the same, by asyncpg's own means, and the release waits; it raises what the reset failed with. A caller
      whose time is up waits a tenth of a second at most.
    * "never": only transactions are rolled back and callbacks removed.

    A connection whose reset has not been answered within 30 seconds is closed. `SECURITY.md` says what each promises.
    """
    arguments = dict(locals())  # exactly what was given
    return Pool(arguments.pop("dsn"), **arguments.pop("connect_kwargs"), **arguments)
