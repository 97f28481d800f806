"""What the server and the kernel know of a pool's connections, and what can be done to them from outside."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import psycopg

import helpers

if TYPE_CHECKING:
    import asyncio

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
        found = []
        for fd in sorted(self.sockets().values()):
            with socket.socket(fileno=os.dup(fd)) as duplicate:
                try:
                    if isinstance(duplicate.getpeername(), tuple):
                        found.append(fd)
                except OSError:
                    continue
        return found

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
        fds = self.peers()[:count]
        for fd in fds:
            with socket.socket(fileno=os.dup(fd)) as duplicate:
                try:
                    duplicate.shutdown(socket.SHUT_RDWR)
                except OSError:  # the server was quicker
                    continue
        return len(fds)

    def stale(self, loop: asyncio.AbstractEventLoop, *, keeps_kernel_entries: bool) -> set[int]:
        """The fds that *loop* watches although nobody waits for anything."""
        if hasattr(loop, "_selector"):
            return helpers.selector_fds(loop)
        return set() if keeps_kernel_entries else helpers.kernel_watched_fds() & set(self.peers())

    def close(self) -> None:
        """Go."""
        self._connection.close()
