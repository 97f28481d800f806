"""Which server process has answered each session of a pool, to notice a proxy that shares server connections."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

__all__ = ["Backends"]


class _Session(Protocol):
    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def is_open_still(self) -> bool: ...

    def stop_sending_behind(self) -> None: ...


class Backends:
    """
    The server processes of a pool's sessions.

    Two sessions that are open at the same time have one process each. If one process has answered both, a proxy between
    gives its server connections to several clients in turn, and may lose a query that is sent behind a reset. Whether a
    proxy is between, and whether it shares its connections, does not show otherwise: a session's own process id may
    well be the right one at the moment when it is asked for.

    Attributes:
        are_shared: Whether that has been seen. It stays so.
    """

    def __init__(self) -> None:
        self.are_shared: bool = False
        self._sessions: weakref.WeakValueDictionary[bytes, _Session] = weakref.WeakValueDictionary()

    def note(self, process: bytes, session: _Session) -> None:
        """
        Note which process has answered a new session.

        Args:
            process: What tells it from all others, other servers' included.
            session: The session. Only sessions of one loop are compared.
        """
        other = self._sessions.get(process)
        self._sessions[process] = session
        if other is not None and other.loop is session.loop and other.is_open_still():
            other.stop_sending_behind()
            self.share()
        elif self.are_shared:
            session.stop_sending_behind()

    def share(self) -> None:
        """Send nothing behind the reset of any session from now on."""
        self.are_shared = True
        for known in self._sessions.valuerefs():  # a list: other threads note theirs meanwhile
            if (session := known()) is not None:
                session.stop_sending_behind()
