"""A client of a live view."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from loopaware_pool.live.address import HostPort, parse_address
from loopaware_pool.live.snapshot import Snapshot
from running import DEADLINE_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GET", "Face", "ask", "connect", "look"]

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Face:
    """The object that users of a core know."""


def connect(address: str | Path) -> socket.socket:
    """A client that has said nothing yet."""
    where = parse_address(address)
    if isinstance(where, HostPort):
        return socket.create_connection((where.host, where.port), timeout=DEADLINE_SECONDS)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE_SECONDS)
    client.connect(where.path)
    return client


def ask(address: str | Path, request: bytes = GET) -> tuple[int, bytes]:
    """The status, and the body; 0 and nothing where there is no answer."""
    with connect(address) as client:
        client.sendall(request)
        try:
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        except ConnectionResetError:
            return 0, b""
    if not answer.startswith(b"HTTP/"):
        return 0, answer
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def look(address: str | Path) -> Snapshot:
    """What the view shows."""
    status, body = ask(address)
    assert status == 200
    return Snapshot.from_json(body)
