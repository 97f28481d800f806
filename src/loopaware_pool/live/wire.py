"""Reading from a socket within one time for all that is read: for a live view, and for who looks at it."""

from __future__ import annotations

import io
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

__all__ = ["UntilDeadline"]


class UntilDeadline(io.RawIOBase):
    """
    Reads a socket, which it does not close. A timeout of the socket's own would begin anew with each byte.

    Args:
        connection: Its timeout is changed.
        deadline: In monotonic seconds; after it, reading raises TimeoutError.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come, or wait for it."""
        left = self._deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)
