"""One asyncpg connection seen from below: its socket, whether its peer is there, the selector, and its end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from loopaware_pool._platform.event_loops import close_socket_of
from loopaware_pool._platform.sockets import SocketIdentity, SocketProbe, replace_by_devnull
from loopaware_pool.asyncpg.internals import Internals
from loopaware_pool.driver import Liveness

if TYPE_CHECKING:
    import asyncio

    from asyncpg.connection import Connection

__all__ = ["AsyncpgLink"]

# Bound once: see shard.py.
_ALIVE, _DEAD, _UNREAD = Liveness


class AsyncpgLink:
    """
    What the pools of all flavours do with an asyncpg connection.

    Args:
        con: The connection.
        loop: Its loop.

    Attributes:
        is_parked: Whether the fd is out of the selector.
    """

    __slots__ = ("_con", "_identity", "_internals", "_loop", "_probe", "is_parked")

    def __init__(self, con: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._con: Connection | None = con
        self._loop = loop
        self._internals = internals = Internals(con)
        internals.read_less_at_once()
        self.is_parked: bool = False
        fd = internals.socket_fd
        self._identity = None if fd is None else SocketIdentity.of(fd)
        self._probe = None if fd is None else SocketProbe(fd)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop it belongs to."""
        return self._loop

    @property
    def identity(self) -> SocketIdentity | None:
        """The socket."""
        return self._identity

    @property
    def is_settled(self) -> bool:
        """Whether no answer of the server is due, so that unread data mean something."""
        return True

    def is_connected(self) -> bool:
        """Whether the connection is open."""
        return self._con is not None and not self._con.is_closed()

    def liveness(self) -> Liveness:
        """Look at the socket, without waiting."""
        if self._con is None or not self._internals.is_connected():
            return _DEAD
        probe = self._probe
        if probe is None or not (found := probe.poll(0)):
            return _ALIVE
        is_gone, is_readable = probe.meaning(found)
        if is_gone:
            return _DEAD
        if is_readable and self.is_settled:
            self._found_unread()
            return _UNREAD
        return _ALIVE

    def _found_unread(self) -> None:
        """Prepare for the unread data to be read."""

    def park(self) -> None:
        """
        Take the fd out of the selector.

        Over TLS the lower transport has it: pausing the upper one alone leaves the fd registered.
        """
        transport = self._internals.plain or self._internals.transport
        if transport is not None and not self.is_parked and not transport.is_closing():
            self.is_parked = True
            transport.pause_reading()

    def unpark(self) -> None:
        """
        Put the fd back. Needed before closing, too: a close waits for the end of the stream, which only a reader sees.
        """
        if self.is_parked:
            self.is_parked = False
            (self._internals.plain or self._internals.transport).resume_reading()

    def abort(self) -> None:
        """Close the socket without a goodbye."""
        if self._con is not None:
            self._terminate(self._con)

    def _terminate(self, con: Connection) -> None:
        """Terminate the connection."""
        try:
            con.terminate()
        finally:
            self._detach()

    def discard(self, *, forked: bool) -> None:
        """Close the socket although its loop does not run here."""
        con = self._con
        if forked:
            self._detach()
            # No goodbye and no unregistration: the server and the epoll set are the parent's too. No plain close
            # either: the transport would close the number again, when it may be another file's.
            if self._identity is not None and self._identity.is_open():
                replace_by_devnull(self._identity.fd)
        elif con is not None and (not self._loop.is_closed() or hasattr(self._internals.plain, "_sock")):
            with contextlib.suppress(RuntimeError):  # asyncpg wants to use the loop, which is closed
                self._terminate(con)
        self._detach()
        if con is not None:  # else a polite close was cut short: asyncpg has dropped the open socket
            con._aborted = True
        is_over = forked or self._loop.is_closed()
        close_socket_of(self._internals.plain, for_good=is_over)
        if is_over and self._internals.plain is not None and self._internals.transport is not self._internals.plain:
            self._internals.transport._closed = True  # a TLS transport has a finaliser of its own

    def _detach(self) -> None:
        self._con = None
