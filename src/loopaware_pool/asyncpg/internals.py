"""
All private attributes of asyncpg that are used, in one place. A missing attribute disables the feature that needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg import connection as upstream

from loopaware_pool._platform.event_loops import close_socket_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncpg.connection import Connection

__all__ = ["Internals", "cut", "has_own_methods", "has_own_reset", "is_refused_as_ended", "raise_if_ended"]

_PARTS_OF_A_PROTOCOL: Final = ("_is_cancelling", "_on_timeout", "_wait_for_cancellation", "is_in_transaction")

# The methods by which statements reach the server.
_METHODS: Final = (
    *("execute", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval", "prepare", "transaction"),
    *("_execute", "_executemany", "_prepare", "_do_execute", "_get_statement"),
)
# asyncpg's error for an operation after the server has sent an unsolicited error.
_IS_CONSUMING_AN_ERROR: Final = "another operation (2) is in progress"

# How much asyncio's transports ask for at each read, and how much they ask for here.
_ASYNCIO_READ_BYTES: Final = 256 * 1024
_READ_BYTES: Final = 64 * 1024


class _HiddenProtocol:
    """Replaces asyncpg's protocol if that is not found: nothing is known of it, so every reset is awaited."""

    queries_count = 0


class Internals:
    """
    The private attributes of one connection, each found under one name.

    Attributes:
        transport: asyncpg's transport; None if it is not found.
        protocol: asyncpg's protocol, or a replacement.
        is_connected: Tells whether the connection is open.
        plain: The transport that has the socket; under a TLS transport, the lower one. None if it is hidden (uvloop).
        is_busy: Tells whether asyncpg's protocol waits for an answer; None if that cannot be told.
        is_reading: Tells whether the transport reads.
    """

    __slots__ = ("is_busy", "is_connected", "is_reading", "plain", "protocol", "transport")

    def __init__(self, con: Connection) -> None:
        self.transport: Any = getattr(con, "_transport", None)
        self.protocol: Any = getattr(con, "_protocol", None) or _HiddenProtocol
        self.plain: Any = self.transport
        if self.transport is not None and self.transport.get_extra_info("ssl_object") is not None:
            self.plain = getattr(getattr(self.transport, "_ssl_protocol", None), "_transport", None)
        self.is_connected: Callable[[], bool] = self._find_connected(con)
        self.is_busy: Callable[[], bool] | None = self._find_busy()
        self.is_reading: Callable[[], bool] = getattr(self.transport, "is_reading", lambda: True)

    def _find_connected(self, con: Connection) -> Callable[[], bool]:
        """Find a way to ask whether *con* is open that keeps no reference to it. asyncpg's own takes two calls more."""
        is_closed = con.is_closed
        if self.protocol is not _HiddenProtocol and is_closed.__func__ is upstream.Connection.is_closed:
            is_connected: Callable[[], bool] = self.protocol.is_connected
            return is_connected
        reference = weakref.WeakMethod(is_closed)

        def is_open() -> bool:
            ask = reference()
            return ask is not None and not ask()

        return is_open

    def _find_busy(self) -> Callable[[], bool] | None:
        """
        Find a way to ask asyncpg's protocol whether it waits for an answer, which it does not expose.

        Its timeout callback ignores every future but the one that it waits for. Called with None, it goes on only if it
        waits for none, and then raises AttributeError because None has no `done`. Any other way costs a query, or 4 us.
        """
        if not all(hasattr(self.protocol, part) for part in _PARTS_OF_A_PROTOCOL):
            return None
        on_timeout = self.protocol._on_timeout

        def is_busy() -> bool:
            try:
                on_timeout(None)
            except AttributeError:
                return False
            return True

        return None if is_busy() else is_busy  # a fresh connection is not busy

    def is_cancelling(self) -> bool:
        """Whether asyncpg is having the server cancel a query."""
        return self.is_busy is not None and bool(self.protocol._is_cancelling())

    def fail_abandoned_calls(self) -> None:
        """
        Fail the calls that still wait for a cancelled query to end, although the connection has been closed.

        asyncpg 0.31 never wakes them, and their timeouts begin only after that wait. They get the error that asyncpg
        0.32 raises. The futures they wait for are not exposed, so they are looked for in what the protocol refers to.
        """
        if self.is_cancelling():
            for future in gc.get_referents(self.protocol):
                if asyncio.isfuture(future) and not future.done():
                    future.set_exception(asyncpg.InterfaceError("cannot perform operation: connection is closed"))
                    future.exception()  # not reported if no call waits

    def read_less_at_once(self) -> None:
        """
        Have asyncio's transport ask for 64 KiB at each read in place of 256 KiB.

        The buffer is as large as what is asked for. Unless the heap has a free hole of 256 KiB, it is mapped, shrunk
        and unmapped for each answer, which costs two page faults. With 64 KiB a large result takes a few reads more.
        """
        reader: Any
        for reader in (self.plain, getattr(self.transport, "_ssl_protocol", None)):
            if getattr(reader, "max_size", None) == _ASYNCIO_READ_BYTES:
                reader.max_size = _READ_BYTES

    @property
    def can_reset_in_passing(self) -> bool:
        """Whether everything is found that a pipelined reset needs."""
        return self.is_busy is not None and hasattr(self.transport, "set_protocol")

    @property
    def socket_fd(self) -> int | None:
        """The number of the socket."""
        sock = None if self.transport is None else self.transport.get_extra_info("socket")
        return None if sock is None else sock.fileno()


def has_own_methods() -> bool:
    """Whether asyncpg's connections have asyncpg's own methods. A tracer's replacements may do more."""
    return all(
        type(method) is FunctionType and method.__globals__ is vars(upstream)
        for name, method in vars(upstream.Connection).items()
        if name in _METHODS
    )


def has_own_reset(kind: type[Connection]) -> bool:
    """Whether a connection class of the user's replaces asyncpg's reset."""
    return (
        kind.reset is not upstream.Connection.reset
        or kind._reset is not upstream.Connection._reset
        or kind.get_reset_query is not upstream.Connection.get_reset_query
    )


def is_refused_as_ended(error: BaseException) -> bool:
    """
    Whether asyncpg has refused an operation, and sent nothing, because the server has ended the session.

    The server sends an error before it hangs up, as when a time limit for idle sessions or transactions has passed. In
    between, asyncpg takes that error for the beginning of an answer, and blames the caller for a second operation.
    """
    return isinstance(error, asyncpg.InternalClientError) and _IS_CONSUMING_AN_ERROR in str(error)


def raise_if_ended(error: BaseException) -> None:
    """
    Replace *error* by what callers of asyncpg catch, if it means that the session has ended but does not say so.

    Raises:
        asyncpg.ConnectionDoesNotExistError: It does.
    """
    if is_refused_as_ended(error):
        raise asyncpg.ConnectionDoesNotExistError(
            "connection was closed by the server before the operation was sent"
        ) from error


def cut(con: Connection, loop: asyncio.AbstractEventLoop) -> None:
    """Close a connection that has no session, even if the loop has been closed under it."""
    with contextlib.suppress(RuntimeError):
        con.terminate()
    if loop.is_closed():
        close_socket_of(Internals(con).plain, for_good=True)
