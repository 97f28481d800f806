"""
Transactions, prepared statements and cursors that end with their lease and refuse other loops.

asyncpg checks whether the lease has ended when one of their methods is called. But the call only makes a coroutine. A
task made of it may take its first step after the connection has been lent again, and would begin a transaction in the
middle of the next lease; or it takes its first step on another loop. So this is checked at the first step, too.

They also talk to the server without the proxy. The errors that the server answers are passed to the session here.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final, Protocol

import asyncpg
from asyncpg.connresource import ConnectionResource
from asyncpg.cursor import Cursor, CursorFactory, CursorIterator
from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.transaction import Transaction

from loopaware_pool._platform.event_loops import label, running
from loopaware_pool.asyncpg.internals import raise_if_ended
from loopaware_pool.errors import WrongLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from asyncpg.connection import Connection

__all__ = ["bound_to_lease", "wrong_loop"]

_LOOK: Final = "_check_conn_validity"
# asyncpg's coroutine methods by name: a tracer may have replaced one by a plain function that returns an awaitable. A
# coroutine method of a newer asyncpg is recognised as such.
_COROUTINES: Final[dict[type, tuple[str, ...]]] = {
    Transaction: ("start", "commit", "rollback", "__aenter__", "__aexit__"),
    PreparedStatement: ("explain", "fetch", "fetchval", "fetchrow", "fetchmany", "executemany"),
    CursorFactory: (),
    Cursor: ("fetch", "fetchrow", "forward"),
    CursorIterator: ("__anext__",),
}
# Methods that run the caller's code meanwhile: an iterator of arguments may raise an error of another server.
_CALL_BACK: Final = ("executemany", "fetchmany")
# `__aenter__` calls `start`, which checks by itself. `__aexit__` may come after the lease, and handles that.
_LOOK_THEMSELVES: Final = ("__aenter__", "__aexit__")
# The methods of an iterator that talk to the server, once for many rows.
_SENDERS: Final = ("_bind_exec", "_exec", "_close_portal")
# The server's errors, and asyncpg's error once the server has ended the session.
_SESSION_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InternalClientError)
# Methods that make another such object, without a first step.
_MAKERS: Final = {PreparedStatement: "cursor", CursorFactory: "__aiter__"}


class _Proxy(Protocol):
    """What the caller has of a connection."""

    def show_asyncpg(self) -> None:
        """Have asyncpg refer to it."""


class _LeaseNumber(int):
    """
    asyncpg's number of a lease, which each resource keeps to compare it. This one refers to the lease's proxy, too.

    So a lease is not taken for dropped while there is a resource of it. The resources' classes have slots, and none to
    spare.
    """

    proxy: _Proxy


def bound_to_lease(resource: Any, proxy: _Proxy) -> Any:
    """Make *resource*, new from asyncpg, refuse a first step after its lease or on another loop, and keep *proxy*."""
    bound = _BOUND.get(type(resource))
    if bound is None:
        proxy.show_asyncpg()
    else:
        resource.__class__ = bound
        number = resource._con_release_ctr = _LeaseNumber(resource._con_release_ctr)
        number.proxy = proxy
    return resource


def wrong_loop(con: Connection, what: str) -> WrongLoop:
    """Make the error for a use of *con*, or of an object made from it, on another loop; *what* is the method."""
    here, proxy = running(), con._proxy
    pool = None if proxy is None else proxy._holder.pool
    name = "?" if pool is None else pool.name
    return WrongLoop(
        f"cannot call {what}() on {'no loop' if here is None else label(here)}: the connection belongs to "
        f"{label(con._loop)}; acquire one of pool {name!r} here",
        pool=name,
    )


def _subclass(kind: type) -> type:
    names = {
        *(name for name in _COROUTINES[kind] if hasattr(kind, name)),
        *(
            name
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") and inspect.iscoroutinefunction(inspect.unwrap(method))
        ),
    }
    methods: dict[str, Any] = {name: _looks_twice(kind, name) for name in names}
    if kind in _MAKERS:
        methods[_MAKERS[kind]] = _binds(kind, _MAKERS[kind])
    if kind is CursorFactory:
        methods["__await__"] = _open
    if kind is CursorIterator and all(hasattr(kind, part) for part in (*_SENDERS, "_buffer")):
        methods |= {part: _looks_twice(kind, part, "__anext__") for part in _SENDERS} | {"__anext__": _next_row}
    return type(kind.__name__, (kind,), {"__slots__": (), "__module__": kind.__module__, **methods})


def _looks_twice(kind: type, name: str, public_name: str | None = None) -> Callable[..., Any]:
    @functools.wraps(getattr(kind, name))
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _run(kind, self, public_name or name, getattr(kind, name)(self, *args, **kwargs))  # the call checks, too

    return call


@functools.wraps(CursorIterator.__anext__)
def _next_row(rows: Any) -> Any:
    """
    Return the next row. A check would double the cost of a row that has come already and needs no message to the
    server.

    If a message is needed after all, because another call was quicker, its own methods are checked.
    """
    if rows._buffer and rows._connection._loop is running():
        return CursorIterator.__anext__(rows)
    return _run(CursorIterator, rows, "__anext__", CursorIterator.__anext__(rows))


async def _run(kind: type, resource: Any, name: str, steps: Any) -> Any:
    """Run asyncpg's coroutine, unless its first step comes after the lease or on another loop."""
    con = resource._connection
    if con._loop is not running() or con._pool_release_ctr != resource._con_release_ctr:
        _check_first_step(kind, resource, name, steps)
    try:
        return await steps
    except _SESSION_ERRORS as error:
        _tell_session(resource, error, is_hearsay=name in _CALL_BACK)
        raise_if_ended(error)
        raise


def _check_first_step(kind: type, resource: Any, name: str, steps: Any) -> None:
    try:
        if name not in _LOOK_THEMSELVES:
            getattr(resource, _LOOK)(name)
        _check_loop(kind, resource, name)
    except BaseException:
        getattr(steps, "close", bool)()  # no warning that it was never awaited
        raise


def _binds(kind: type, name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(kind, name))
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return bound_to_lease(getattr(kind, name)(self, *args, **kwargs), self._con_release_ctr.proxy)

    return call


def _open(factory: Any) -> Generator[Any, Any, Any]:
    getattr(factory, _LOOK)("__await__")
    return _opening(factory)


def _opening(factory: Any) -> Generator[Any, Any, Any]:
    _check_loop(CursorFactory, factory, "__await__")
    try:
        return bound_to_lease((yield from CursorFactory.__await__(factory)), factory._con_release_ctr.proxy)
    except _SESSION_ERRORS as error:
        _tell_session(factory, error)
        raise_if_ended(error)
        raise


def _check_loop(kind: type, resource: Any, name: str) -> None:
    con = resource._connection
    is_over = con._pool_release_ctr != resource._con_release_ctr  # asyncpg raises its own error then, or accepts it
    if con._loop is not running() and not is_over:
        raise wrong_loop(con, f"{kind.__name__}.{name}")


def _tell_session(resource: Any, error: BaseException, *, is_hearsay: bool = False) -> None:
    proxy = resource._connection._proxy
    if proxy is not None:  # else the lease has ended meanwhile
        tell = proxy._holder.suspect if is_hearsay else proxy._holder.heard
        tell(error)


_BOUND: Final[dict[type, type]] = (
    {kind: _subclass(kind) for kind in _COROUTINES} if hasattr(ConnectionResource, _LOOK) else {}
)
