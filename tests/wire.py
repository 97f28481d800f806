"""A server that speaks as much of PostgreSQL's protocol as a test has it say, to the byte."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = [
    "NOTICE",
    "NOTIFICATION",
    "READY",
    "ROWS",
    "WireServer",
    "WireSession",
    "completed",
    "error",
    "is_reset",
    "message",
    "parameter",
    "reset_answer",
    "until_read",
]

_PROTOCOL_3 = 3 << 16
_CANCEL_REQUEST = 80877102


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def completed(tag: str = "RESET") -> bytes:
    return message(b"C", tag.encode() + b"\0")


def error(sqlstate: str, severity: str = "ERROR") -> bytes:
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": f"the script says {sqlstate}"}
    return message(b"E", b"".join(f"{name}{value}\0".encode() for name, value in fields.items()) + b"\0")


def parameter(name: str, value: str) -> bytes:
    return message(b"S", f"{name}\0{value}\0".encode())


READY = message(b"Z", b"I")
NOTICE = message(b"N", b"SNOTICE\0VNOTICE\0C00000\0Ma word\0\0")
NOTIFICATION = message(b"A", b"\0\0\0\1channel\0payload\0")
ROWS = message(b"T", b"\0\1" + b"f\0" + bytes(6) + b"\0\0\x08\xae\0\4" + b"\xff" * 4 + b"\0\0") + message(
    b"D", b"\0\1\0\0\0\0"
)
WELCOME = (
    message(b"R", bytes(4))
    + parameter("server_version", "17.0")
    + parameter("server_encoding", "UTF8")
    + parameter("client_encoding", "UTF8")
    + parameter("standard_conforming_strings", "on")
    + parameter("integer_datetimes", "on")
    + parameter("in_hot_standby", "off")
    + parameter("default_transaction_read_only", "off")
    + parameter("DateStyle", "ISO, MDY")
    + parameter("TimeZone", "UTC")
    + message(b"K", bytes(8))
    + READY
)


def is_reset(query: str) -> bool:
    return "RESET ALL" in query


def reset_messages(query: str) -> list[bytes]:
    """What the server answers to each statement of a reset, and that it is ready."""
    statements = [statement.strip() for statement in query.strip().rstrip(";").split(";")]
    answers = [ROWS + completed("SELECT 1") if one.startswith("SELECT") else completed() for one in statements]
    return [*answers, READY]


def reset_answer(query: str) -> bytes:
    return b"".join(reset_messages(query))


def answer(session: WireSession, query: str) -> bytes | None:
    """The name of the query as its tag: an answer that belongs to another question is seen at once."""
    return reset_answer(query) if is_reset(query) else completed(query.rstrip(";")) + READY


async def until_read(sock: socket.socket | int) -> None:
    """Wait until all that has come for a socket of this process has been read."""
    while struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]:
        await asyncio.sleep(0)


class WireSession:
    """
    One client.

    Attributes:
        queries: What it has asked, resets included.
        has_left: Whether it has said goodbye, or hung up.
        is_deaf: Whether it may say goodbye, and nothing happens.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.queries: list[str] = []
        self.has_left = False
        self.is_deaf = False
        self._reader = reader
        self._writer = writer
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        """Say something."""
        self._writer.write(data)

    def hang_up(self) -> None:
        """Close the connection."""
        self._writer.close()

    async def startup(self) -> int:
        """Read what the client begins with; its code."""
        length, code = struct.unpack("!II", await self._reader.readexactly(8))
        await self._reader.readexactly(length - 8)
        return code

    async def listen(self, answer: Callable[[WireSession, str], bytes | None]) -> None:
        """Answer queries."""
        while True:
            kind, length = struct.unpack("!cI", await self._reader.readexactly(5))
            body = await self._reader.readexactly(length - 4)
            if kind == b"X" and not self.is_deaf:
                return
            if kind == b"X":
                continue
            assert kind == b"Q", f"the script knows no {kind}"
            query = body[:-1].decode()
            self.queries.append(query)
            said = answer(self, query)
            if said is not None:
                self.send(said)


class WireServer:
    """
    A server on the running loop; a context manager.

    Attributes:
        answer: Called with the session and each query; gives what is said, None for nothing.
        welcome: What is said to a client that comes; None for nothing.
        sessions: All so far.
        cancellations: How many cancel requests have come.
    """

    def __init__(self, answer: Callable[[WireSession, str], bytes | None] = answer) -> None:
        self.answer = answer
        self.welcome: bytes | None = WELCOME
        self.sessions: list[WireSession] = []
        self.cancellations = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def dsn(self) -> str:
        """For psycopg."""
        return f"postgresql://me@127.0.0.1:{self.port}/db?sslmode=disable&gssencmode=disable"

    @property
    def asyncpg_dsn(self) -> str:
        return f"postgresql://me@127.0.0.1:{self.port}/db?sslmode=disable"

    @property
    def session(self) -> WireSession:
        """The one that came last."""
        return self.sessions[-1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        session = WireSession(reader, writer)
        try:
            code = await session.startup()
            if code == _CANCEL_REQUEST:
                self.cancellations += 1
                return
            assert code == _PROTOCOL_3, f"the script knows no startup {code}"
            self.sessions.append(session)
            if self.welcome is not None:
                session.send(self.welcome)
            await session.listen(lambda session, query: self.answer(session, query))
        except (EOFError, ConnectionError):
            pass
        finally:
            session.has_left = True
            self._tasks.discard(task)
            writer.close()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # their transports close in the next iteration
