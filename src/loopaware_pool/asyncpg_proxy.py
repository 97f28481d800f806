"""What a caller has of a connection: a way to acquire one, and a proxy that looks where it is used."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, NoReturn

import asyncpg
from asyncpg import pool as upstream
from asyncpg.connection import Connection

from loopaware_pool.asyncpg_memory import CODEC_METHODS
from loopaware_pool.asyncpg_resources import bound_to_lease
from loopaware_pool.errors import WrongLoop
from loopaware_pool.loops import label, running
from loopaware_pool.reports import apart, logger
from loopaware_pool.slot import acquiring_line
from loopaware_pool.statements import is_known_harmless

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from types import FrameType, TracebackType

    from loopaware_pool.asyncpg import Pool
    from loopaware_pool.asyncpg_session import AsyncpgSession

__all__ = ["PoolAcquireContext", "PoolConnectionProxy", "ReadingProxy"]

_FACTORIES = ("cursor", "transaction")
# Of the methods that talk to the server, those whose doing is all in the statement they are given.
_STATEMENT_METHODS = ("execute", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval", "prepare")
_TRANSACTION = "transaction"
# Those that have had their answer, or have had it cancelled, once they return or raise, and that leave nothing in the
# caller's hands which talks to the server.
_SELF_CONTAINED = ("execute", "fetch", "fetchrow", "fetchval")
# Those that look at the client's side, or note a callback there.
_LOCAL = (
    *("get_reset_query", "get_server_pid", "get_server_version", "get_settings", "is_closed", "is_in_transaction"),
    *("add_log_listener", "add_query_logger", "add_termination_listener"),
    *("remove_log_listener", "remove_query_logger", "remove_termination_listener"),
)


class _ProxyMeta(upstream.PoolConnectionProxyMeta):
    """
    Wraps those methods of `Connection` that talk to the server, or make what will, to look where they run.

    Args:
        reads: Whether to look at what they do, too.
    """

    def __new__(
        mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, reads: bool = False
    ) -> _ProxyMeta:
        for method_name, method in inspect.getmembers(Connection, inspect.isfunction):
            is_looked_after = inspect.iscoroutinefunction(method) or method_name in _FACTORIES
            if is_looked_after and not method_name.startswith("_"):
                namespace[method_name] = _on_its_loop(method_name, method, reads=reads)
            elif method_name in _LOCAL:
                namespace[method_name] = _on_any_loop(method_name, method)
        made: _ProxyMeta = super().__new__(mcls, name, bases, namespace)
        return made


def _on_its_loop(name: str, method: Callable[..., Any], *, reads: bool) -> Callable[..., Any]:
    is_coroutine = inspect.iscoroutinefunction(method)
    leaves_nothing = name == _TRANSACTION  # by itself
    is_statement = name in _STATEMENT_METHODS
    is_self_contained = name in _SELF_CONTAINED
    sets_codecs = name in CODEC_METHODS
    do = _prepare if name == "prepare" else _do

    @functools.wraps(method)
    def call(self: PoolConnectionProxy, *args: Any, **kwargs: Any) -> Any:
        con = self._connection
        if con is None:
            raise _released(name)
        if con._loop is not running():
            raise _wrong_loop(self, name)
        session = self._holder
        if not is_self_contained:
            session.is_exposed = True
            session.may_have_set_codecs |= sets_codecs
        if reads and not leaves_nothing and not session.is_dirty:
            session.is_dirty = not is_statement or _may_leave_something(args, kwargs)
        if is_coroutine:
            return do(self, con, name, args, kwargs)
        return bound_to_lease(getattr(con.__class__, name)(con, *args, **kwargs))

    mark = getattr(inspect, "markcoroutinefunction", None)  # Python 3.12
    return mark(call) if mark is not None and is_coroutine else call


def _on_any_loop(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: PoolConnectionProxy, *args: Any, **kwargs: Any) -> Any:
        con = self._connection
        if con is None:
            raise _released(name)
        return getattr(con.__class__, name)(con, *args, **kwargs)

    return call


def _may_leave_something(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    statement = args[0] if args else kwargs.get("query", kwargs.get("command"))
    return type(statement) is not str or not is_known_harmless(statement)


async def _do(
    proxy: PoolConnectionProxy, con: Connection, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call a method, unless the lease has ended: a task that was made of it may take its first step only then."""
    if proxy._connection is not con:
        raise _released(name)
    session = proxy._holder
    session.calls += 1
    try:
        return await getattr(con.__class__, name)(con, *args, **kwargs)
    except BaseException as error:
        session.call_failed(error)
        raise
    finally:
        session.calls -= 1


async def _prepare(
    proxy: PoolConnectionProxy, con: Connection, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return bound_to_lease(await _do(proxy, con, name, args, kwargs))


def _released(name: str) -> asyncpg.InterfaceError:
    return asyncpg.InterfaceError(f"cannot call Connection.{name}(): connection has been released back to the pool")


def _wrong_loop(proxy: PoolConnectionProxy, name: str) -> WrongLoop:
    here, pool = running(), proxy._holder.pool
    pool_name = "?" if pool is None else pool.name
    return WrongLoop(
        f"cannot call Connection.{name}() on {'no loop' if here is None else label(here)}: the connection belongs to "
        f"{label(proxy._holder.loop)}; acquire one of pool {pool_name!r} here",
        pool=pool_name,
    )


class PoolConnectionProxy(upstream.PoolConnectionProxy, metaclass=_ProxyMeta):
    """
    What an acquire gives: a connection until it is released, and an error afterwards.

    As asyncpg's, made anew for each lease. In addition it refuses to be used on another loop than its own.
    """

    __slots__ = ("_connection", "_pool_reference")

    _holder: AsyncpgSession

    def __init__(self, session: AsyncpgSession, pool: Pool) -> None:
        self._pool_reference = pool.reference  # weak: a proxy that has been released keeps no pool alive
        self._holder = session
        self._connection: Connection | None = session.lend(self, pool)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: a copy would outlive its lease."""
        raise TypeError("a connection cannot be pickled or copied")

    @property
    def _con(self) -> Connection | None:
        """The connection, by the name that asyncpg's proxy has it; what reads it may use it past this proxy."""
        session = self._holder
        session.is_exposed = session.is_dirty = session.may_have_set_codecs = True
        return self._connection


class ReadingProxy(PoolConnectionProxy, metaclass=_ProxyMeta, reads=True):
    """A proxy that tells whether its lease has left anything to reset."""

    __slots__ = ()


class PoolAcquireContext(upstream.PoolAcquireContext):
    """What `Pool.acquire` returns: to be awaited, or entered, once."""

    __slots__ = ("code", "instruction")

    pool: Pool
    timeout: float | None
    connection: PoolConnectionProxy | None

    def __init__(self, pool: Pool, timeout: float | None, frame: FrameType) -> None:
        super().__init__(pool, timeout)
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
            connection._holder.heard(exc_val)  # of a cursor's, or a prepared statement's
        pending = self.pool._release(connection, None)
        if pending is None or connection is None:
            return
        try:
            await pending.finished(connection._holder.patience_after(exc_val))
        except Exception as error:
            if exc_val is None:
                raise
            # What the body raised says more than that the connection could not be reset after it.
            logger.warning("releasing a connection failed after an error", exc_info=apart(error, exc_val))
