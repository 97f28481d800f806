"""What the pool does with a driver's connection below SQLAlchemy: its socket, its selector, its end."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from loopaware_pool.driver import Liveness

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool._platform.sockets import SocketIdentity

__all__ = ["Link", "cut", "loop_of", "make_link"]

_ALIVE: Final = Liveness.ALIVE  # bound once: see shard.py


class Link(Protocol):
    """One connection of a driver. The methods are those of `Session`, as far as they concern a socket."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def identity(self) -> SocketIdentity | None: ...

    def liveness(self) -> Liveness: ...

    def park(self) -> None: ...

    def unpark(self) -> None: ...

    @property
    def is_parked(self) -> bool:
        """Whether `lend` has anything to do."""

    @property
    def needs_care(self) -> bool:
        """Whether `take_back` has anything to do. If not, the next look at the socket finds a closed connection."""

    def lend(self) -> None:
        """Prepare the connection for a caller."""

    def take_back(self) -> bool:
        """Keep callers from the connection. Tells whether it is of use: open, and not in the middle of a query."""

    def abort(self) -> None: ...

    def discard(self, *, forked: bool) -> None: ...


class OpaqueLink:
    """
    A connection of which only SQLAlchemy knows how to close it, such as a mock of a DBAPI.

    Args:
        loop: Its loop.
        terminate: Closes it without waiting.
    """

    identity = None
    is_parked = needs_care = False

    def __init__(self, loop: asyncio.AbstractEventLoop, terminate: Callable[[], object]) -> None:
        self.loop = loop
        self._terminate = terminate

    def liveness(self) -> Liveness:
        """Assume the best."""
        return _ALIVE

    def park(self) -> None:
        """Do nothing: the socket is not known."""

    def unpark(self) -> None:
        """Do nothing, as `park`."""

    def lend(self) -> None:
        """Do nothing: there is no socket to prepare."""

    def take_back(self) -> bool:
        """Assume the best."""
        return True

    def abort(self) -> None:
        """Close it."""
        self._terminate()

    def discard(self, *, forked: bool) -> None:
        """Close it, unless it belongs to the parent process."""
        if not forked:
            self._terminate()


def make_link(
    connection: Any, loop: asyncio.AbstractEventLoop, pool_name: str, terminate: Callable[[], object]
) -> Link:
    """
    Look below a connection of SQLAlchemy's.

    Args:
        connection: The connection, as a dialect's `connect` returns it.
        loop: Its loop.
        pool_name: Name of the pool, for errors.
        terminate: Closes it without waiting, if its driver is not known.
    """
    driver_connection = _driver_connection(connection)
    # A driver that has made a connection has been imported.
    if (asyncpg := sys.modules.get("asyncpg")) and isinstance(driver_connection, asyncpg.Connection):
        from loopaware_pool.sqlalchemy.asyncpg_link import LentAsyncpgLink

        return LentAsyncpgLink(driver_connection, loop)
    if (psycopg := sys.modules.get("psycopg")) and isinstance(driver_connection, psycopg.AsyncConnection):
        from loopaware_pool.sqlalchemy.psycopg_link import LentPsycopgLink

        return LentPsycopgLink(driver_connection, loop, pool_name)
    return OpaqueLink(loop, terminate)


def loop_of(connection: Any) -> asyncio.AbstractEventLoop | None:
    """Return the loop of a connection of SQLAlchemy's; None if its driver does not tell."""
    found = _driver_connection(connection)
    watch = getattr(found, "watch", None)
    loop = getattr(found, "_loop", None) if watch is None else getattr(watch, "loop", None)
    return loop if isinstance(loop, asyncio.AbstractEventLoop) else None  # a mock has any attribute


def cut(connection: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Close without a goodbye a connection of SQLAlchemy's that is none of a pool's, or not any more."""
    found = _driver_connection(connection)
    if hasattr(found, "watch"):
        if not found.closed:
            found._finish()
    elif not found.is_closed():
        from loopaware_pool.asyncpg.internals import cut as cut_asyncpg

        cut_asyncpg(found, loop)


def _driver_connection(connection: Any) -> Any:
    """Return the driver's own connection, without SQLAlchemy's adapter and a tracer's wrapper."""
    found = getattr(connection, "driver_connection", connection)
    while (inner := getattr(found, "__wrapped__", None)) is not None:
        found = inner
    return found
