"""
A server that speaks PostgreSQL's protocol as a test scripts it, to the byte.

It knows the startup, simple queries (statements without arguments) and the goodbye. To anything else it answers an
error, and hangs up. A function of the test's answers the queries. The server itself answers what the pool asks when it
connects:
which process it is, and whether it can end a session at an error. The guard before a reset is shown as the reset's
first
statements.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = [
    "NOTICE",
    "NOTIFICATION",
    "READY",
    "ROWS",
    "FakeClient",
    "FakeServer",
    "completed",
    "error",
    "is_reset",
    "message",
    "parameter",
    "plain_answer",
    "reset_answer",
    "reset_messages",
]

_PROTOCOL_3: Final = 3 << 16
_CANCEL_REQUEST: Final = 80877102


def message(kind: bytes, body: bytes = b"") -> bytes:
    """Encode a message of the protocol: a letter, the length, the body."""
    return kind + struct.pack("!I", len(body) + 4) + body


def completed(tag: str = "RESET") -> bytes:
    """Encode CommandComplete: a statement is done."""
    return message(b"C", tag.encode() + b"\0")


def error(sqlstate: str, severity: str = "ERROR", text: str | None = None) -> bytes:
    """Encode ErrorResponse: a statement failed. Without a *text* the message says that the script says so."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": text or f"the script says {sqlstate}"}
    return message(b"E", b"".join(f"{name}{value}\0".encode() for name, value in fields.items()) + b"\0")


def parameter(name: str, value: str) -> bytes:
    """Encode ParameterStatus: the value of a setting."""
    return message(b"S", f"{name}\0{value}\0".encode())


READY: Final = message(b"Z", b"I")
NOTICE: Final = message(b"N", b"SNOTICE\0VNOTICE\0C00000\0Ma word\0\0")
NOTIFICATION: Final = message(b"A", b"\0\0\0\1channel\0payload\0")
ROWS: Final = message(b"T", b"\0\1" + b"f\0" + bytes(6) + b"\0\0\x08\xae\0\4" + b"\xff" * 4 + b"\0\0") + message(
    b"D", b"\0\1\0\0\0\0"
)
WELCOME: Final = (
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

# What precedes a guarded reset, by the extended protocol.
AHEAD: Final = ("RESET ALL", "BEGIN ISOLATION LEVEL READ COMMITTED", "SET LOCAL exit_on_error = on")
WHO_ANSWERS: Final = (
    "SELECT pg_catalog.pg_backend_pid(), pg_catalog.set_config('exit_on_error', 'on', true), "
    "pg_catalog.pg_postmaster_start_time();"
)


def process_0(start: int) -> bytes:
    """
    Encode the answer of the process that the welcome announces, number 0.

    Args:
        start: In place of a time. Each connection has another, as if it were another server's: no server has two
            processes of one number.
    """
    columns = b"".join(
        name + b"\0" + bytes(6) + struct.pack("!IhIh", 25, -1, 0xFFFFFFFF, 0) for name in (b"pid", b"exits", b"start")
    )
    values = b"".join(struct.pack("!I", len(value)) + value for value in (b"0", b"on", str(start).encode()))
    return message(b"T", b"\0\3" + columns) + message(b"D", b"\0\3" + values) + completed("SELECT 1") + READY


def is_reset(query: str) -> bool:
    """Whether *query* is a pool's reset of its session."""
    return "RESET ALL" in query


def reset_messages(query: str) -> list[bytes]:
    """Return the answers to the statements of a reset, as PostgreSQL's, and ReadyForQuery."""
    statements = [statement.strip() for statement in query.strip().rstrip(";").split(";")]
    answers = [ROWS + completed("SELECT 1") if one.startswith("SELECT") else completed() for one in statements]
    if tuple(statements[: len(AHEAD)]) == AHEAD:
        answers[: len(AHEAD)] = [message(b"1") + message(b"2") + completed()] * len(AHEAD)
    return [*answers, READY]


def reset_answer(query: str) -> bytes:
    """Return the answer to a reset in one piece."""
    return b"".join(reset_messages(query))


def plain_answer(_: FakeClient, query: str) -> bytes | None:
    """Answer with the query as the tag, so that the answer to another query is noticed at once."""
    return reset_answer(query) if is_reset(query) else completed(query.rstrip(";")) + READY


class FakeClient:
    """
    One connection, seen from the server.

    Attributes:
        queries: The queries received on it, resets included.
        has_left: Whether the client has said goodbye, or hung up.
        is_deaf: Whether to ignore the client's goodbye.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.queries: list[str] = []
        self.has_left = False
        self.is_deaf = False
        self._reader = reader
        self._writer = writer
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        """Send bytes to the client."""
        self._writer.write(data)

    def hang_up(self) -> None:
        """Close the connection."""
        self._writer.close()

    async def startup(self) -> int:
        """
        Read the startup message.

        Returns:
            Its code: the protocol's version, or a request such as a cancellation.
        """
        length: int
        code: int
        length, code = struct.unpack("!II", await self._reader.readexactly(8))
        await self._reader.readexactly(length - 8)
        return code

    async def listen(self, answer: Callable[[FakeClient, str], bytes | None]) -> None:
        """Answer queries."""
        ahead = ""
        while True:
            kind, length = struct.unpack("!cI", await self._reader.readexactly(5))
            body = await self._reader.readexactly(length - 4)
            if kind == b"X" and not self.is_deaf:
                return
            if kind == b"X":
                continue
            if kind == b"P" and (statement := body[1:-3].decode()) in AHEAD:
                ahead += f"{statement};\n"
            if ahead and kind in b"PBE":
                continue
            if kind != b"Q":
                self.send(error("0A000", "FATAL", f"the fake server knows simple queries only, not {kind!r}"))
                return
            query, ahead = ahead + body[:-1].decode(), ""
            if query == WHO_ANSWERS:
                self.send(process_0(id(self)))
                continue
            self.queries.append(query)
            said = answer(self, query)
            if said is not None:
                self.send(said)


class FakeServer:
    """
    A server on the running loop. An async context manager, which closes all connections at its end.

    Args:
        answer: As the attribute.

    Attributes:
        answer: Called with the connection and each query; returns the bytes to send, None for nothing.
        welcome: The bytes sent to a new client; None for nothing.
        sessions: All connections so far.
    """

    def __init__(self, answer: Callable[[FakeClient, str], bytes | None] = plain_answer) -> None:
        self.answer = answer
        self.welcome: bytes | None = WELCOME
        self.sessions: list[FakeClient] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port that it listens on, at 127.0.0.1."""
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def dsn(self) -> str:
        """The DSN for psycopg."""
        return f"postgresql://me@127.0.0.1:{self.port}/db?sslmode=disable&gssencmode=disable"

    @property
    def asyncpg_dsn(self) -> str:
        """The DSN for asyncpg."""
        return f"postgresql://me@127.0.0.1:{self.port}/db?sslmode=disable"

    @property
    def session(self) -> FakeClient:
        """The latest connection."""
        return self.sessions[-1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]
        self._tasks.add(task)
        session = FakeClient(reader, writer)
        try:
            code = await session.startup()
            if code == _CANCEL_REQUEST:
                return
            if code != _PROTOCOL_3:
                session.send(error("0A000", "FATAL", f"the fake server knows no startup {code}"))
                return
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
