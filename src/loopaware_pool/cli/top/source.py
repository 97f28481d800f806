"""Asks a live view for what it shows, within a time."""

from __future__ import annotations

import http.client
import io
import socket
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool.live.address import HostPort, parse_address
from loopaware_pool.live.snapshot import ForeignSnapshot, Snapshot
from loopaware_pool.live.wire import UntilDeadline

if TYPE_CHECKING:
    from loopaware_pool.live.address import Address

__all__ = ["NoView", "Source"]

# Of a pool with ten thousand connections it is a tenth.
LONGEST_ANSWER_BYTES: Final = 32 * 1024 * 1024
_PIECE_BYTES: Final = 65536


class NoView(Exception):
    """There is no snapshot to be had; the message says in one line why, and what to do."""


class Source:
    """
    A live view, seen from outside.

    Args:
        address: Where it is served.
        timeout: Seconds that one answer may take.

    Raises:
        ValueError: The address is not understood.
    """

    def __init__(self, address: str, timeout: float) -> None:
        self.address: Address = parse_address(address)
        self._timeout = timeout
        self._pid: int | None = None

    def fetch(self) -> Snapshot:
        """
        Ask for a snapshot.

        Raises:
            NoView: There is none.
        """
        try:
            snapshot = Snapshot.from_json(self._ask())
        except TimeoutError:
            raise NoView(
                f"no answer from {self.address} within {self._timeout:g} s: its process is stopped, or something in it "
                "keeps Python's lock"
            ) from None
        except OSError as error:
            raise NoView(self._say_why(error)) from None
        except (http.client.HTTPException, ForeignSnapshot) as error:
            raise NoView(f"what answers at {self.address} is no live view: {_in_a_line(error)}") from None
        self._pid = snapshot.pid
        return snapshot

    def _ask(self) -> bytes:
        deadline = monotonic() + self._timeout
        connection = _Connection(self.address, deadline)
        try:
            # The name is not looked up: a view lets nobody ask by a name that a DNS server answers for.
            connection.request("GET", "/", headers={"Host": "localhost"})
            answer = connection.getresponse()
            if answer.status != HTTPStatus.OK:
                raise http.client.HTTPException(f"{answer.status} {answer.reason}")
            return _read(answer)
        finally:
            connection.close()

    def _say_why(self, error: OSError) -> str:
        if self._pid is not None:
            return f"process {self._pid} has ended, or has closed its live view at {self.address}"
        if isinstance(error, PermissionError):
            return f"{self.address} belongs to another user: run this as the user of the pool's process"
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            return f"nobody serves at {self.address}: has the program called serve_live(pool, {str(self.address)!r})?"
        return f"nobody can be asked at {self.address}: {error.strerror or error}"


class _Connection(http.client.HTTPConnection):
    """HTTP, over a Unix socket too."""

    def __init__(self, address: Address, deadline: float) -> None:
        host, port = (address.host, address.port) if isinstance(address, HostPort) else ("localhost", 0)
        super().__init__(host, port, timeout=deadline - monotonic())
        self._address = address
        self.response_class = partial(_Answer, deadline=deadline)  # type: ignore[assignment] # called as the class is

    def connect(self) -> None:
        if isinstance(self._address, HostPort):
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address.path)


class _Answer(http.client.HTTPResponse):
    """Read until a deadline, its head as well."""

    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._holds_it_open = self.fp  # the connection closes its socket when it has read the head
        self.fp = io.BufferedReader(UntilDeadline(sock, deadline))


def _read(answer: http.client.HTTPResponse) -> bytes:
    body = b""
    while piece := answer.read1(_PIECE_BYTES):
        body += piece
        if len(body) > LONGEST_ANSWER_BYTES:
            raise http.client.HTTPException("its answer is too long")
    return body


def _in_a_line(error: Exception) -> str:
    """Say what it says, but not at length; a stranger may say anything."""
    return (" ".join(str(error).split()) or type(error).__name__)[:100]
