"""One psycopg connection seen from below: its socket, whether its peer is there, the selector, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import weakref
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import AsyncConnection, pq

from loopaware_pool._platform.event_loops import on_closed
from loopaware_pool._platform.sockets import (
    SocketIdentity,
    SocketProbe,
    duplicate,
    peek,
    replace_by_devnull,
    selector_keys,
)
from loopaware_pool.driver import Liveness
from loopaware_pool.psycopg.connection import LoopAwareConnection
from loopaware_pool.psycopg.socket_waiter import ConnectionUse, SocketWaiter, unregister

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ForeignWatch", "PsycopgLink"]

# How long a query of another connection class may take to notice that its socket was shut down.
_LEAVE_STEP_SECONDS: Final = 0.01
_LEAVE_STEPS: Final = 100
# The end of the stream, and an unsolicited error. (Over TLS the latter cannot be seen.)
_FAREWELLS: Final = (b"", b"E")
# Bound once: see shard.py.
_ALIVE, _DEAD = Liveness.ALIVE, Liveness.DEAD
_USED: Final = ConnectionUse.USED
_BAD: Final = pq.ConnStatus.BAD


class ForeignWatch:
    """
    The registrations of a connection of another class, which adds and removes them around each wait.

    Args:
        connection: The connection. No reference to it is kept.
        loop: Its loop.

    Attributes:
        use, pool_name: As in `SocketWaiter`; not used here.
    """

    def __init__(self, connection: AsyncConnection[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.use = _USED
        self.pool_name = "?"
        self._pgconn = connection.pgconn
        self._lock = connection.lock
        self._loop = loop
        self._keys = selector_keys(loop)
        self._identity = SocketIdentity.of(connection.pgconn.socket)

    def is_waited_for(self) -> bool:
        """Whether a query is waiting for the socket, or may be: uvloop does not show it."""
        is_registered = self._keys is None or self._identity.fd in self._keys
        return self._lock.locked() and is_registered

    def detach(self) -> None:
        """Take the socket out of the selector, unless its number is another file's by now."""
        fd = self._identity.fd
        if (self._keys is None or fd in self._keys) and not self._identity.is_reused():
            unregister(self._loop, fd)

    detach_others = detach

    def fail(self, _: BaseException) -> None:
        """End a wait by shutting the socket down: there is no way to raise an error in it."""
        if self.is_waited_for() and self._identity.is_open():
            with contextlib.suppress(OSError), duplicate(self._identity.fd) as own:
                own.shutdown(socket.SHUT_RDWR)

    async def left(self) -> None:
        """Wait until no query waits for the socket, which is shut down if one does; then unregister it."""
        self.fail(psycopg.OperationalError())
        for _ in range(_LEAVE_STEPS):
            if not self.is_waited_for():
                break
            await asyncio.sleep(_LEAVE_STEP_SECONDS)
        self.detach()

    def forget(self) -> None:
        """Forget the socket without unregistering it: the selector is also another process's."""
        self._keys = {}

    def finish(self, how: str) -> None:
        """
        Close the socket once no query waits for it any more.

        A wait that is not over would unregister the number when it ends, and the number may be another file's by then.
        """
        self.fail(psycopg.OperationalError(f"the connection was {how}"))
        if self.is_waited_for() and self._loop.is_running():
            call_off = on_closed(self._loop, self._finish)  # the loop may end first
            self._finish_when_left(_LEAVE_STEPS, call_off)
        else:
            self._finish()

    def _finish_when_left(self, tries: int, call_off: Callable[[], object]) -> None:
        if tries and self.is_waited_for():
            self._loop.call_later(_LEAVE_STEP_SECONDS, self._finish_when_left, tries - 1, call_off)
        else:
            call_off()
            self._finish()

    def _finish(self) -> None:
        try:
            self.detach()
        finally:
            self._pgconn.finish()


class PsycopgLink:
    """
    What the pools of all flavours do with a psycopg connection.

    Args:
        bare: psycopg's connection, without a tracer's wrapper. No reference to it is kept.
        loop: Its loop.
        pool_name: Name of the pool, for errors.
        dropped: Called by the garbage collector, in any thread, when nothing refers to the connection any more.

    Attributes:
        loop: The loop it belongs to.
    """

    __slots__ = ("_identity", "_pgconn", "_probe", "_reference", "_watch", "loop")

    def __init__(
        self,
        bare: AsyncConnection[Any],
        loop: asyncio.AbstractEventLoop,
        pool_name: str,
        dropped: Callable[[object], object] | None = None,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self._pgconn = pgconn = bare.pgconn
        self._reference = weakref.ref(bare, dropped)
        fd = pgconn.socket
        self._identity = SocketIdentity.of(fd)
        self._probe = SocketProbe(fd)
        self._watch: SocketWaiter | ForeignWatch
        if isinstance(bare, LoopAwareConnection):
            self._watch = bare.watch
        else:
            self._watch = foreign = ForeignWatch(bare, loop)
            bare.close = functools.partial(_close, self._reference, foreign)  # type: ignore[method-assign]
        self._watch.use = _USED
        self._watch.pool_name = pool_name

    @property
    def identity(self) -> SocketIdentity:
        """The socket."""
        return self._identity

    def liveness(self) -> Liveness:
        """
        Look at the socket, and at what has come, without reading it: a notification, or the server's error as it
        closes.

        psycopg looks for notifications when it waits for the socket, so it would miss what libpq had read before.
        """
        if self._pgconn.status == _BAD:
            return _DEAD
        is_gone, is_readable = self._probe.events()
        if is_gone or (is_readable and peek(self._identity.fd) in _FAREWELLS):
            return _DEAD
        return _ALIVE

    def park(self) -> None:
        """Take the fd out of the selector."""
        self._watch.detach()

    def unpark(self) -> None:
        """Do nothing: a wait registers the fd."""

    def abort(self) -> None:
        """Close the socket. libpq says goodbye by itself, without waiting."""
        self._finish("closed")

    def discard(self, *, forked: bool) -> None:
        """Close the socket although its loop does not run here."""
        if forked:
            self._watch.forget()
            if self._identity.is_open():
                replace_by_devnull(self._identity.fd)
            self._pgconn.finish()
        else:
            self._finish("closed")

    def _finish(self, how: str) -> None:
        connection = self._reference()
        # A connection that the server has closed must keep `broken`, which means that no code of ours has closed it.
        if connection is not None and self._pgconn.status != _BAD:
            connection._closed = True
        self._watch.finish(how)


async def _close(reference: weakref.ref[AsyncConnection[Any]], watch: ForeignWatch) -> None:
    """Close a connection of another class by its own method, once no query waits for its socket."""
    await watch.left()
    connection = reference()
    if connection is not None:
        await type(connection).close(connection)
