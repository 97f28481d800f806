"""Reads from a socket with one deadline for everything: for a live view, and for its clients."""

from __future__ import annotations

import io
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

__all__ = ["UntilDeadline"]


class UntilDeadline(io.RawIOBase):
    """
    Reads a socket, which it does not close. The socket's own timeout would start anew with each byte.

    Args:
        connection: The socket. Its timeout is changed.
        deadline: In monotonic seconds; after it, reading raises TimeoutError.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come, or wait for it."""
        left = self._deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)
