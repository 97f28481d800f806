"""One record of SQLAlchemy's pool, as the core uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy.util import greenlet_spawn

from loopaware_pool._platform.event_loops import post
from loopaware_pool.driver import Liveness, ReturnCheck
from loopaware_pool.sqlalchemy.links import Link, make_link

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from sqlalchemy.pool import ConnectionPoolEntry

    from loopaware_pool._core.runner import SessionListener
    from loopaware_pool._platform.sockets import SocketIdentity

__all__ = ["RecordKeeper", "RecordSession"]

# Bound once: see shard.py.
_DEAD: Final = Liveness.DEAD
_READY: Final = ReturnCheck.READY


class RecordKeeper(Protocol):
    """
    The part of the pool that a session uses.

    Attributes:
        dispatch: SQLAlchemy's listeners.
    """

    dispatch: Any
    _dialect: Any

    @property
    def pool_name(self) -> str: ...

    def _create_connection(self) -> ConnectionPoolEntry: ...

    def keep_record(self, record: ConnectionPoolEntry) -> None:
        """Use a record that has no connection any more for the next connect."""

    def gone(self, connection: Any) -> None:
        """Note that a connection that a caller had dropped has been closed."""


class RecordSession:
    """
    A record of SQLAlchemy's pool, and the connection that it has.

    While it is lent, SQLAlchemy may close the connection, open another in its place, or detach it. So what the record
    has is looked at when it comes back.

    Attributes:
        owner: Listens to what happens to the session.
        record: SQLAlchemy's record.
        connection: The connection that the record had when it was looked at last; None after the session has parted
            with it.
        link: What is below that connection; None after the session has parted with it.
        needs_care: Whether `take_back` has anything to do while the record has the same connection.
        liveness: Looks at the socket, without waiting.
        loop: The loop it belongs to.
    """

    liveness: Callable[[], Liveness]
    needs_care: bool

    __slots__ = ("_is_abandoned", "_pool", "connection", "link", "liveness", "loop", "needs_care", "owner", "record")

    is_settled = True

    def __init__(self, pool: RecordKeeper, record: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.owner: SessionListener[RecordSession] | None = None
        self.record: Any = record
        self.loop: asyncio.AbstractEventLoop = loop
        self._pool = pool
        self._is_abandoned = False
        self._look_below()
        record.loopaware_session = self

    def _look_below(self) -> None:
        """Find the socket of the connection that the record has now."""
        self.connection: Any
        connection = self.connection = self.record.dbapi_connection
        dialect = self._pool._dialect
        link = make_link(connection, self.loop, self._pool.pool_name, lambda: dialect.do_terminate(connection))
        self.link: Link | None = link
        self.needs_care = link.needs_care
        self.liveness = link.liveness

    def follow(self) -> None:
        """Look below the connection that SQLAlchemy has opened in place of the session's, if it has."""
        connection = self.record.dbapi_connection
        if connection is not self.connection and connection is not None and self.connection is not None:
            self._look_below()

    # ---- what the core asks ----

    @property
    def identity(self) -> SocketIdentity | None:
        """The socket."""
        return None if self.link is None else self.link.identity

    @property
    def says_goodbye(self) -> bool:
        """Whether there is a connection to close. The record may have another one by now, of another session."""
        return self.link is not None

    def park(self) -> None:
        """Take the fd out of the selector."""
        if self.link is not None:
            self.link.park()

    def unpark(self) -> None:
        """Put the fd back."""
        if self.link is not None:
            self.link.unpark()

    def is_dropped(self) -> bool:
        """Whether the caller has dropped the connection. If the loop runs, it is told at once."""
        return self._is_abandoned

    def take_back(self) -> ReturnCheck:
        """Look at what SQLAlchemy has left of the connection. It has reset the session."""
        connection = self.record.dbapi_connection
        if connection is None:  # invalidated, and closed; or detached, and the caller's own
            was_closed = self.liveness() is _DEAD
            self._part()
            self._keep_record()
            return ReturnCheck.BROKEN if was_closed else ReturnCheck.WORN_OUT
        if connection is not self.connection:
            self.follow()
        link = self.link
        return _READY if link is not None and link.take_back() else ReturnCheck.BROKEN

    async def reset(self) -> None:
        """Do nothing: SQLAlchemy has reset the session before it returned it."""

    async def ping(self) -> None:
        """Make a round trip."""
        self._lend()
        await greenlet_spawn(self._pool._dialect.do_ping, self.connection)
        if self.link is not None:
            self.link.take_back()

    async def close(self) -> None:
        """
        Close the connection in SQLAlchemy's way, with its events. If the session has parted with it, do nothing: the
        record may have another session's connection then.

        Cancellation: leaves the socket to `abort`.
        """
        if self.link is not None:
            self._lend()
            self.connection = None  # from here on `abort` leaves the record alone
            await greenlet_spawn(self.record.close)
            self._part()

    def abort(self) -> None:
        """Close the socket without a goodbye."""
        self.follow()
        link, connection = self._part()
        if link is not None:
            try:
                self._leave_record(connection)
            finally:
                self._pool.gone(connection)
                link.abort()

    def discard(self, *, forked: bool) -> None:
        """Close the socket although its loop does not run here."""
        self.follow()
        link, connection = self._part()
        if link is not None:
            try:
                if not forked:
                    self._leave_record(connection)
            finally:
                self._pool.gone(connection)
                link.discard(forked=forked)

    def _part(self) -> tuple[Link | None, Any]:
        """Let go of the connection: it is closed now, or the caller's own. Returns what the session had."""
        link, connection = self.link, self.connection
        self.link = self.connection = None
        self.liveness = _dead
        return link, connection

    def _leave_record(self, connection: Any) -> None:
        """Take the connection from the record, if the record still has it, and tell the listeners."""
        record = self.record
        if record.dbapi_connection is None and self._is_abandoned:  # SQLAlchemy has detached it, and told the listeners
            self._keep_record()
        if connection is None or connection is not record.dbapi_connection:
            return
        record.finalize_callback.clear()
        record.dbapi_connection = None
        self._keep_record()
        if self._pool.dispatch.close:
            self._pool.dispatch.close(connection, record)

    def _keep_record(self) -> None:
        """
        Keep the record for another connection, unless a caller still has it: closing that one would then end another
        caller's lease.
        """
        if self.record.fairy_ref is None:
            self._pool.keep_record(self.record)

    def _lend(self) -> None:
        if self.link is not None:
            self.link.lend()

    def reclaim_soon(self) -> None:
        """
        Have the connection that a caller has abandoned closed by its loop. The garbage collector may have come in the
        middle of a decision, in any thread.
        """
        self._is_abandoned = True
        if self.owner is not None:
            post(self.loop, self.owner.dropped)


def _dead() -> Liveness:
    """Tell of a session that has no connection any more."""
    return _DEAD
