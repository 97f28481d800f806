"""The caller's proxy of a connection, which checks where it is used."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, NoReturn

import asyncpg
from asyncpg import pool as upstream
from asyncpg.connection import Connection

from loopaware_pool._platform.event_loops import running
from loopaware_pool.asyncpg.client_memory import CODEC_METHODS
from loopaware_pool.asyncpg.internals import raise_if_ended
from loopaware_pool.asyncpg.resources import bound_to_lease, wrong_loop
from loopaware_pool.asyncpg.sql_effects import is_known_to_leave_session_unchanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool.asyncpg.session import AsyncpgSession

__all__ = ["DirtyTrackingProxy", "PoolConnectionProxy"]

# asyncpg's coroutine methods by name: a tracer may have replaced one by a plain function that returns an awaitable. A
# coroutine method of a newer asyncpg is recognised as such.
_COROUTINES = (
    *("execute", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval", "prepare"),
    *("add_listener", "remove_listener", "set_type_codec", "set_builtin_type_codec", "reset_type_codec"),
    *("copy_from_query", "copy_from_table", "copy_records_to_table", "copy_to_table"),
    *("close", "reload_schema_state", "reset"),
)
_FACTORIES = ("cursor", "transaction")
# Methods that do nothing on the server but run the statement they are given.
_STATEMENT_METHODS = ("execute", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval", "prepare")
_TRANSACTION = "transaction"
# Methods that run the caller's code meanwhile, such as an iterator of rows. That code may raise an error of another
# server.
_CALL_BACK = (
    *("executemany", "fetchmany"),
    *("copy_from_query", "copy_from_table", "copy_records_to_table", "copy_to_table"),
)
# Methods that have had their answer, or have cancelled it, when they return or raise, and whose results cannot talk to
# the server.
_SELF_CONTAINED = ("execute", "fetch", "fetchrow", "fetchval")
# Methods that only touch the client's side: that look, and that change callbacks.
_LOOKING = ("get_reset_query", "get_server_pid", "get_server_version", "get_settings", "is_closed", "is_in_transaction")
# Methods whose callbacks are called with the proxy.
_LISTENING = ("add_listener", "add_log_listener", "add_termination_listener")
_CHANGING_CALLBACKS = (
    *("add_log_listener", "add_query_logger", "add_termination_listener"),
    *("remove_log_listener", "remove_query_logger", "remove_termination_listener"),
)


class _ProxyMeta(upstream.PoolConnectionProxyMeta):
    """
    Wraps the methods of `Connection` that talk to the server, or make objects that will, to check where they run.

    Args:
        reads: Whether to read their statements, too.
    """

    def __new__(
        mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, reads: bool = False
    ) -> _ProxyMeta:
        for method_name, method in inspect.getmembers(Connection, callable):
            if method_name in _FACTORIES:
                namespace[method_name] = _making(method_name, method, reads=reads)
            elif method_name in _LOOKING or method_name in _CHANGING_CALLBACKS:
                namespace[method_name] = _on_any_loop(method_name, method)
            elif _is_coroutine(method_name, method):
                namespace[method_name] = _on_its_loop(method_name, method, reads=reads)
        made: _ProxyMeta = super().__new__(mcls, name, bases, namespace)
        return made


def _is_coroutine(name: str, method: Callable[..., Any]) -> bool:
    is_new = not name.startswith("_") and inspect.iscoroutinefunction(inspect.unwrap(method))
    return name in _COROUTINES or is_new


def _on_its_loop(name: str, method: Callable[..., Any], *, reads: bool) -> Callable[..., Any]:
    """
    Wrap a coroutine method.

    The call checks only that the lease has not ended. The rest is checked in the coroutine's first step, as is the
    lease again: the call may be made in another thread, or without a running loop, and another lease may have begun by
    then.
    """
    is_statement = name in _STATEMENT_METHODS
    is_self_contained = name in _SELF_CONTAINED
    is_prepare = name == "prepare"
    sets_codecs = name in CODEC_METHODS
    calls_back = name in _CALL_BACK
    listens = name in _LISTENING

    async def do(proxy: PoolConnectionProxy, con: Connection, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if proxy._connection is not con:
            raise _released(name)
        session = proxy._holder
        if session._loop is not running():
            raise wrong_loop(session._con, f"Connection.{name}")
        if not is_self_contained:
            session.is_exposed = True
            session.may_have_set_codecs |= sets_codecs
            if listens:
                proxy.show_asyncpg()
        if reads and not session.is_dirty:
            session.is_dirty = not is_statement or _may_leave_something(args, kwargs)
        session.calls += 1
        try:
            result = await getattr(con.__class__, name)(con, *args, **kwargs)
        except BaseException as error:
            session.call_failed(error, is_hearsay=calls_back)
            raise_if_ended(error)
            raise
        finally:
            session.calls -= 1
        return bound_to_lease(result, proxy) if is_prepare else result

    do.__name__, do.__qualname__ = name, f"Connection.{name}"  # for the warning that it was never awaited

    @functools.wraps(method)
    def call(self: PoolConnectionProxy, *args: Any, **kwargs: Any) -> Any:
        con = self._connection
        if con is None:
            raise _released(name)
        return do(self, con, args, kwargs)

    mark = getattr(inspect, "markcoroutinefunction", None)  # Python 3.12
    return call if mark is None else mark(call)


def _making(name: str, method: Callable[..., Any], *, reads: bool) -> Callable[..., Any]:
    """Wrap a method that makes an object which will talk to the server. The object checks its own first step."""
    may_leave_something = reads and name != _TRANSACTION

    @functools.wraps(method)
    def call(self: PoolConnectionProxy, *args: Any, **kwargs: Any) -> Any:
        con = self._connection
        if con is None:
            raise _released(name)
        session = self._holder
        session.is_exposed = True
        if may_leave_something:
            session.is_dirty = True
        return bound_to_lease(getattr(con.__class__, name)(con, *args, **kwargs), self)

    return call


def _on_any_loop(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    changes_callbacks = name in _CHANGING_CALLBACKS
    listens = name in _LISTENING

    @functools.wraps(method)
    def call(self: PoolConnectionProxy, *args: Any, **kwargs: Any) -> Any:
        con = self._connection
        if con is None:
            raise _released(name)
        self._holder.is_exposed |= changes_callbacks
        if listens:
            self.show_asyncpg()
        return getattr(con.__class__, name)(con, *args, **kwargs)

    return call


def _may_leave_something(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    statement = args[0] if args else kwargs.get("query", kwargs.get("command"))
    return type(statement) is not str or not is_known_to_leave_session_unchanged(statement)


def _released(name: str) -> asyncpg.InterfaceError:
    return asyncpg.InterfaceError(f"cannot call Connection.{name}(): connection has been released back to the pool")


class PoolConnectionProxy(upstream.PoolConnectionProxy, metaclass=_ProxyMeta):
    """
    What an acquire returns: a connection until it is released, and errors afterwards.

    Like asyncpg's proxy, it is made anew for each lease. In addition it refuses to be used on another loop than its
    own.
    """

    __slots__ = ("__weakref__", "_connection", "_pool_reference")

    _holder: AsyncpgSession

    def __init__(self, session: AsyncpgSession, pool: upstream.Pool) -> None:
        self._pool_reference = pool.reference  # weak: a proxy that has been released keeps no pool alive
        self._holder = session
        self._connection: Connection | None = session.lend(self, pool)

    def show_asyncpg(self) -> None:
        """
        Have asyncpg refer to this proxy for the rest of its lease, in place of the session.

        Listeners are called with it. Code that has the connection itself may add some.
        """
        con = self._connection
        if con is not None:
            con._proxy = self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: a copy would outlive its lease."""
        raise TypeError("a connection cannot be pickled or copied")

    def __repr__(self) -> str:
        """Show it as asyncpg's does. To print a connection is not to use it."""
        con = self._connection
        return f"<{type(self).__name__} {'[released]' if con is None else repr(con)} {id(self):#x}>"

    @property
    def _con(self) -> Connection | None:
        """The connection, under the name that asyncpg's proxy has for it. Code that reads this may bypass the proxy."""
        session = self._holder
        session.is_exposed = session.is_dirty = session.may_have_set_codecs = True
        self.show_asyncpg()
        return self._connection


class DirtyTrackingProxy(PoolConnectionProxy, metaclass=_ProxyMeta, reads=True):
    """A proxy that tracks whether its lease has left anything to reset."""

    __slots__ = ()


# Programs print the name, and compare it.
DirtyTrackingProxy.__name__ = DirtyTrackingProxy.__qualname__ = PoolConnectionProxy.__name__
