"""What the server and the kernel know of a pool's connections, and what can be done to them from outside."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg

import helpers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

__all__ = ["Witness"]

_STATES = {"idle": "state = 'idle'", "active": "state <> 'idle'", "any": "true"}


class Witness:
    """
    Looks on, from a connection of its own.

    Args:
        dsn: The server.
    """

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True, application_name="torture-witness")
        self._before: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """Take the sockets that are open now for none of the pool's."""
        self._before = set(helpers.open_sockets())

    def sockets(self) -> dict[str, int]:
        """The sockets opened since, and their fds."""
        return {name: fd for name, fd in helpers.open_sockets().items() if name not in self._before}

    def peers(self) -> list[int]:
        """The fds of those that lead to a server."""
        return [fd for fd, duplicate in self._duplicates() if _leads_to_a_server(duplicate)]

    def _duplicates(self) -> Iterator[tuple[int, socket.socket]]:
        """Look at each socket by a duplicate; other threads close and open some meanwhile."""
        for name, fd in sorted(self.sockets().items(), key=lambda item: item[1]):
            duplicate = helpers.duplicate_of(name, fd)
            if duplicate is not None:
                with duplicate:
                    yield fd, duplicate

    def sessions(self, name: str) -> int:
        """How many sessions of application *name* there are."""
        row = self._connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [name]
        ).fetchone()
        return row[0]

    def kill(self, name: str, count: int, which: str) -> int:
        """Terminate so many backends of *name*; returns how many there were."""
        rows = self._connection.execute(
            "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
            f"WHERE application_name = %s AND {_STATES[which]} ORDER BY pid LIMIT %s) AS chosen",
            [name, count],
        ).fetchall()
        return len(rows)

    def cut(self, count: int) -> int:
        """Shut down so many sockets under their owner; returns how many there were."""
        found = 0
        for _, duplicate in self._duplicates():
            if found < count and _leads_to_a_server(duplicate):
                found += 1
                with suppress(OSError):  # the server was quicker
                    duplicate.shutdown(socket.SHUT_RDWR)
        return found

    def stale(self, loop: asyncio.AbstractEventLoop, *, keeps_kernel_entries: bool) -> set[int]:
        """The fds that *loop* watches although nobody waits for anything."""
        if hasattr(loop, "_selector"):
            return helpers.selector_fds(loop)
        return set() if keeps_kernel_entries else helpers.kernel_watched_fds() & set(self.peers())

    def close(self) -> None:
        """Go."""
        self._connection.close()


def _leads_to_a_server(connected: socket.socket) -> bool:
    try:
        return isinstance(connected.getpeername(), tuple)
    except OSError:
        return False
