"""
A server that speaks PostgreSQL's protocol as a test scripts it, to the byte.

It knows the startup, queries and the goodbye. To anything else it answers an error, and hangs up. A function of the
test's answers the queries, always as the protocol's simple ones: a prepared statement is answered by the same messages,
each when it is its turn. The arguments of a statement are not looked at.

The server itself answers what the pool asks when it connects: which process it is, and whether it can end a session at
an error. The guard before a reset is shown as the reset's first statements. A server that `is_bare` leaves both to the
function.
"""

from __future__ import annotations

import asyncio
import re
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
    "row",
]

_PROTOCOL_3: Final = 3 << 16
_CANCEL_REQUEST: Final = 80877102
_BOOL, _BIGINT, _TEXT = 16, 20, 25  # types, by their oids


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


def row(*values: str | int | bool | None) -> bytes:
    """Encode a result of one row, with columns of the types text, bigint and boolean, and CommandComplete."""
    columns = b"".join(_column(_type_of(value)) for value in values)
    fields = b"".join(b"\xff" * 4 if value is None else _field(_as_text(value)) for value in values)
    count = struct.pack("!H", len(values))
    return message(b"T", count + columns) + message(b"D", count + fields) + completed("SELECT 1")


def _column(oid: int, name: bytes = b"f", *, is_binary: bool = False) -> bytes:
    return name + b"\0" + bytes(6) + struct.pack("!IhIh", oid, -1, 0xFFFFFFFF, is_binary)


def _field(value: bytes) -> bytes:
    return struct.pack("!I", len(value)) + value


def _type_of(value: object) -> int:
    return _BOOL if isinstance(value, bool) else _BIGINT if isinstance(value, int) else _TEXT


def _as_text(value: object) -> bytes:
    return str(value)[0].lower().encode() if isinstance(value, bool) else str(value).encode()


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
    columns = b"".join(_column(_TEXT, name) for name in (b"pid", b"exits", b"start"))
    values = b"".join(map(_field, (b"0", b"on", str(start).encode())))
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

    async def listen(self, answer: Callable[[FakeClient, str], bytes | None], *, is_bare: bool = False) -> None:
        """Answer queries; if *is_bare*, also those that the server otherwise answers itself."""

        def ask(query: str) -> bytes:
            self.queries.append(query)
            return answer(self, query) or b""

        statements = _Statements(ask)
        ahead = ""
        while True:
            kind, length = struct.unpack("!cI", await self._reader.readexactly(5))
            body = await self._reader.readexactly(length - 4)
            if kind == b"X" and not self.is_deaf:
                return
            if kind == b"X":
                continue
            if not is_bare and kind == b"P" and (statement := body[1:-3].decode()) in AHEAD:
                ahead += f"{statement};\n"
            if ahead and kind in b"PBE":
                continue
            if kind in b"PDBECHS":
                self.send(statements.take(kind, body))
            elif kind == b"Q":
                query, ahead = ahead + body[:-1].decode(), ""
                self.send(process_0(id(self)) if query == WHO_ANSWERS and not is_bare else ask(query))
            else:
                self.send(error("0A000", "FATAL", f"the fake server knows no message {kind!r}"))
                return


class _Statement:
    """
    A prepared statement. The messages that answer it as a simple query are sent each when it is its turn.

    Args:
        text: The statement.
        said: The answer to its first execution.
    """

    def __init__(self, text: str, said: bytes) -> None:
        self.text = text
        self.said: bytes | None = said
        rows = [part for part in _messages_in(said) if part[:1] == b"T"]
        self.columns: bytes = rows[0] if rows else message(b"n")
        self.parameters: int = len(set(re.findall(r"\$[0-9]+", text)))


class _Statements:
    """
    The prepared statements of a connection.

    Args:
        ask: Returns the answer to a statement as a simple query.
    """

    def __init__(self, ask: Callable[[str], bytes]) -> None:
        self._ask = ask
        self._statements: dict[bytes, _Statement] = {}
        self._portals: dict[bytes, tuple[_Statement, bool]] = {}
        self._ready = READY
        self._is_failed = False

    def take(self, kind: bytes, body: bytes) -> bytes:
        """Return what is sent in answer to a message."""
        if kind == b"S":
            self._is_failed = False
            return self._ready
        if kind == b"H" or self._is_failed:
            return b""
        answers = {b"P": self._parse, b"D": self._describe, b"B": self._bind, b"E": self._execute}
        return answers[kind](body) if kind in answers else message(b"3")

    def _parse(self, body: bytes) -> bytes:
        name, text, _ = body.split(b"\0", 2)
        self._statements[name] = statement = _Statement(text.decode(), self._ask(text.decode()))
        return self._failed(statement) or message(b"1")

    def _failed(self, statement: _Statement) -> bytes:
        """Return what comes of an answer before the next Sync if it fails; nothing if it does not."""
        said = _messages_in(statement.said or b"")
        self._ready = b"".join(part for part in said if part[:1] == b"Z")
        self._is_failed = not said or any(part[:1] == b"E" for part in said)
        return b"".join(part for part in said if part[:1] != b"Z") if self._is_failed else b""

    def _describe(self, body: bytes) -> bytes:
        name = body[1:-1]
        if body[:1] == b"P":
            statement, is_binary = self._portals[name]
            return _columns_in_binary(statement.columns) if is_binary else statement.columns
        statement = self._statements[name]
        count = statement.parameters
        return message(b"t", struct.pack(f"!H{count}I", count, *[_TEXT] * count)) + statement.columns

    def _bind(self, body: bytes) -> bytes:
        portal, name, rest = body.split(b"\0", 2)
        self._portals[portal] = self._statements[name], rest.endswith(b"\0\1")  # the format of the last column
        return message(b"2")

    def _execute(self, body: bytes) -> bytes:
        statement, is_binary = self._portals[body[:-5]]
        if statement.said is None:
            statement.said = self._ask(statement.text)
        failed = self._failed(statement)
        said, statement.said = _messages_in(statement.said), None
        if failed:
            return failed
        oids = [oid for oid, _ in _columns_in(statement.columns)]
        return b"".join(
            _row_in_binary(part, oids) if is_binary and part[:1] == b"D" else part
            for part in said
            if part[:1] not in b"TZ"
        )


def _messages_in(data: bytes) -> list[bytes]:
    found = []
    while data:
        end = 1 + int.from_bytes(data[1:5], "big")
        found.append(data[:end])
        data = data[end:]
    return found


def _columns_in(description: bytes) -> list[tuple[int, bytes]]:
    """The types and names of a RowDescription."""
    columns, rest = [], description[7:]
    while rest:
        name, _, rest = rest.partition(b"\0")
        columns.append((int.from_bytes(rest[6:10], "big"), name))
        rest = rest[18:]
    return columns


def _columns_in_binary(description: bytes) -> bytes:
    if description[:1] != b"T":
        return description
    columns = [_column(oid, name, is_binary=True) for oid, name in _columns_in(description)]
    return message(b"T", description[5:7] + b"".join(columns))


def _row_in_binary(data_row: bytes, oids: list[int]) -> bytes:
    """Encode a DataRow in the binary format."""
    fields, rest = data_row[5:7], data_row[7:]
    for oid in oids:
        length = int.from_bytes(rest[:4], "big", signed=True)
        value, rest = rest[4 : 4 + max(length, 0)], rest[4 + max(length, 0) :]
        if oid == _BOOL:
            value = b"\1" if value == b"t" else b"\0"
        elif oid == _BIGINT:
            value = struct.pack("!q", int(value))
        fields += b"\xff" * 4 if length < 0 else _field(value)
    return message(b"D", fields)


class FakeServer:
    """
    A server on the running loop. An async context manager, which closes all connections at its end.

    Args:
        answer: As the attribute.
        is_bare: As the attribute.

    Attributes:
        answer: Called with the connection and each query; returns the bytes to send, None for nothing.
        is_bare: Whether `answer` is also asked what the server otherwise answers itself.
        welcome: The bytes sent to a new client; None for nothing.
        sessions: All connections so far.
    """

    def __init__(
        self, answer: Callable[[FakeClient, str], bytes | None] = plain_answer, *, is_bare: bool = False
    ) -> None:
        self.answer = answer
        self.is_bare = is_bare
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
            await session.listen(lambda session, query: self.answer(session, query), is_bare=self.is_bare)
        except (
            EOFError,
            ConnectionError,
            asyncio.CancelledError,
        ):  # the server ends; asyncio would log a cancelled task
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
