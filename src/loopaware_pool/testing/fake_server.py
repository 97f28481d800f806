"""
A server that speaks as much of PostgreSQL's protocol as a test has it say, to the byte.

It knows the startup, simple queries (a statement without arguments) and the goodbye; whoever says anything else is told
so, and it hangs up. What it answers is a function of the test's; which process it is, and whether it can end a session
at an error, as the pool asks when it connects, it answers by itself. The guard that a reset begins with is shown as its
first statement.
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
    """Put a message of the protocol together: a letter, the length, the body."""
    return kind + struct.pack("!I", len(body) + 4) + body


def completed(tag: str = "RESET") -> bytes:
    """Say that a statement is done: CommandComplete."""
    return message(b"C", tag.encode() + b"\0")


def error(sqlstate: str, severity: str = "ERROR", text: str | None = None) -> bytes:
    """Say that a statement failed: ErrorResponse. Without a *text* it says that the script says so."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": text or f"the script says {sqlstate}"}
    return message(b"E", b"".join(f"{name}{value}\0".encode() for name, value in fields.items()) + b"\0")


def parameter(name: str, value: str) -> bytes:
    """Say what a setting is: ParameterStatus."""
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

# What goes ahead of a guarded reset, by the extended protocol.
AHEAD: Final = ("RESET ALL", "BEGIN ISOLATION LEVEL READ COMMITTED", "SET LOCAL exit_on_error = on")
WHO_ANSWERS: Final = "SELECT pg_catalog.pg_backend_pid(), pg_catalog.set_config('exit_on_error', 'on', true);"
# It is the process that its welcome announces: number 0.
PROCESS_0: Final = (
    message(
        b"T",
        b"\0\2"
        + b"".join(
            name + b"\0" + bytes(6) + struct.pack("!IhIh", 25, -1, 0xFFFFFFFF, 0) for name in (b"pid", b"exits")
        ),
    )
    + message(b"D", struct.pack("!HI1sI2s", 2, 1, b"0", 2, b"on"))
    + completed("SELECT 1")
    + READY
)


def is_reset(query: str) -> bool:
    """Whether a pool resets its session by *query*."""
    return "RESET ALL" in query


def reset_messages(query: str) -> list[bytes]:
    """Answer each statement of a reset as PostgreSQL does, and then that it is ready."""
    statements = [statement.strip() for statement in query.strip().rstrip(";").split(";")]
    answers = [ROWS + completed("SELECT 1") if one.startswith("SELECT") else completed() for one in statements]
    if tuple(statements[: len(AHEAD)]) == AHEAD:
        answers[: len(AHEAD)] = [message(b"1") + message(b"2") + completed()] * len(AHEAD)
    return [*answers, READY]


def reset_answer(query: str) -> bytes:
    """Do so in one piece."""
    return b"".join(reset_messages(query))


def plain_answer(_: FakeClient, query: str) -> bytes | None:
    """Answer with the query as the tag, so that an answer that belongs to another question is seen at once."""
    return reset_answer(query) if is_reset(query) else completed(query.rstrip(";")) + READY


class FakeClient:
    """
    One connection, seen from the server.

    Attributes:
        queries: What was asked on it, resets included.
        has_left: Whether the client has said goodbye, or hung up.
        is_deaf: Whether the client may say goodbye, and nothing happens.
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
        """
        Read what the client begins with.

        Returns:
            The code in it: the protocol's version, or what the client asks for instead.
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
                self.send(PROCESS_0)
                continue
            self.queries.append(query)
            said = answer(self, query)
            if said is not None:
                self.send(said)


class FakeServer:
    """
    A server on the running loop; an async context manager, which closes all connections at its end.

    Args:
        answer: As the attribute.

    Attributes:
        answer: Called with the connection and each query; gives the bytes to say, None for nothing.
        welcome: The bytes said to a client that comes; None for nothing.
        sessions: All connections so far.
        cancellations: How many cancel requests have come.
    """

    def __init__(self, answer: Callable[[FakeClient, str], bytes | None] = plain_answer) -> None:
        self.answer = answer
        self.welcome: bytes | None = WELCOME
        self.sessions: list[FakeClient] = []
        self.cancellations = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def dsn(self) -> str:
        """How psycopg finds it."""
        return f"postgresql://me@127.0.0.1:{self.port}/db?sslmode=disable&gssencmode=disable"

    @property
    def asyncpg_dsn(self) -> str:
        """How asyncpg finds it."""
        return f"postgresql://me@127.0.0.1:{self.port}/db?sslmode=disable"

    @property
    def session(self) -> FakeClient:
        """The connection that came last."""
        return self.sessions[-1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]
        self._tasks.add(task)
        session = FakeClient(reader, writer)
        try:
            code = await session.startup()
            if code == _CANCEL_REQUEST:
                self.cancellations += 1
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
