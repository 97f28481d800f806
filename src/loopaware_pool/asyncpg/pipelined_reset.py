"""
The reset of an asyncpg session, without a round trip.

How a session is reset without waiting
--------------------------------------
asyncpg's own pool awaits its reset query at each release: a round trip that the caller pays for. Here the query's
bytes go straight to the transport, and a small protocol (`ResetProtocol`) takes the transport over until the answer
has come, then gives it back to asyncpg's with whatever arrived behind it. No caller waits for it. It is the full reset,
run now; an advisory lock is free at release, not at the next use.

When the next query may travel behind a reset
---------------------------------------------
A reset is one implicit transaction. If it fails (a timeout that the last lease has set, a cancel request that comes
late, a role that was revoked), the last lease's settings and role stand again, and the server goes on to the next
message: it would run the next lease's query in them, before the pool could know. So:

* Only a lease that is known to have left nothing is followed at once: its statements are harmless by their text, and
  what the server reports of the session is what it was. After any other, the connection is lent again when the answer
  has been read. This is also what keeps the driver's side right: asyncpg learns from that answer which encoding and
  which settings the session has again.
* What a text does not tell is kept in by a guard, see `guarded`.

Where something stands between the pool and the server, or the server knows no such guard, nothing is sent behind a
reset at all.

asyncpg's protocol knows nothing of all this, so it must have nothing to say at that moment: no query running, none
being cancelled, no transaction open. Otherwise, and whenever a user has taken the reset into his own hands (a `reset`
callback, a `Connection` subclass), the reset is awaited, by a task of the pool.

Who reads what comes unasked
----------------------------
While nobody has the connection, the answer's protocol keeps the transport, on guard. asyncpg takes whatever comes then
for the beginning of the next answer: an error that says the server shuts down, a moment before it hangs up, fails the
next caller's query, and an answer too many would be his. So such a connection is given up at the first byte.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import asyncpg

if TYPE_CHECKING:
    from asyncpg.connection import Connection

__all__ = [
    "BackendPidCheck",
    "ResetProtocol",
    "SessionUser",
    "can_be_guarded",
    "guarded",
    "query_message",
    "reset_statements",
]

# The answer to a reset is some 200 bytes. One that is, or pretends to be, longer than this is not one, whatever notices
# are in it: nobody but the server knows when it ends, and until then every byte of it costs memory or time.
LONGEST_ANSWER_BYTES: Final = 1 << 20
_HEADER_BYTES: Final = 5
_UNLOCK: Final = "SELECT pg_advisory_unlock_all();"
_RESET_ALL: Final = "RESET ALL;"
# A reset has begun in the last lease's kind of transaction. One that is serializable, read-only and deferrable has its
# first query wait until all that write in serializable ones are done.
_BEGINNING: Final = [_RESET_ALL, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;"]
# What stands for that under the guard, and ends it. `RESET ALL` comes first: it also ends the last lease's time limits.
_AHEAD: Final = ("RESET ALL", "BEGIN ISOLATION LEVEL READ COMMITTED", "SET LOCAL exit_on_error = on")
_COMMIT: Final = "COMMIT;"


class _Session(Protocol):
    """Whose reset it is."""

    @property
    def clean_answer(self) -> bytes | None: ...

    def learn(self, answer: bytes) -> None: ...

    def reported(self) -> None: ...

    def answered(self) -> None: ...

    def reset_failed(self, reason: str) -> None: ...

    def lost(self, reason: str) -> None: ...


class ResetProtocol(asyncio.Protocol):
    """
    Reads the server's answer to a reset in asyncpg's stead, then stands guard until somebody has the connection.

    The clean answer is the same bytes each time, so it is compared first and parsed only if it differs.

    Attributes:
        is_due: Whether the answer has not come yet.
        is_on_guard: Whether nothing is to come, and what does is looked at.
        is_wanted: Whether asyncpg is to have the transport as soon as the answer has come.
    """

    def __init__(
        self, session: _Session, transport: Any, protocol: Any, statements: int, *, is_guarded: bool = False
    ) -> None:
        self.is_due = False
        self.is_on_guard = False
        self.is_wanted = True
        self._session = session
        self._transport = transport
        self._protocol = protocol
        self._ahead = len(_AHEAD) if is_guarded else 0
        self._statements = statements + (len(_AHEAD) + 1 - len(_BEGINNING) if is_guarded else 0)
        self._clean: bytes | None = None
        self._buffer = bytearray()  # bytes that drip in are added to it, not copied with it
        self._received_bytes = 0
        self._reported_bytes = 0  # in the answer, and behind it until the next
        self._completed = 0
        self._is_exemplary = True  # one piece, and nothing but the answer

    def expect(self) -> None:
        """Take the transport over; the query is about to be sent."""
        self.is_due = True
        self.is_wanted = False
        self._received_bytes = self._reported_bytes = 0
        self._completed = 0
        self._is_exemplary = True
        if self._clean is None:
            self._clean = self._session.clean_answer
        self._transport.set_protocol(self)

    def stand_guard(self) -> None:
        """Look at what comes, as nothing should."""
        if not self.is_due:
            self.is_on_guard = True
            self._transport.set_protocol(self)

    def relieve(self) -> None:
        """End the guard: what comes is asyncpg's again, that of which only a part has come included."""
        begun = bytes(self._buffer)
        self.give_back()
        if begun:
            self._protocol.data_received(begun)

    def give_back(self) -> None:
        """Let asyncpg have the transport, whatever comes."""
        if self.is_due or self.is_on_guard:
            self.is_due = self.is_on_guard = False
            self._buffer.clear()
            self._transport.set_protocol(self._protocol)

    def data_received(self, data: bytes) -> None:
        """Compare; else parse what is there."""
        clean = self._clean
        if self.is_due and clean is not None and not self._buffer and not self._completed and data.startswith(clean):
            self._finish(data[len(clean) :])
            return
        if self._buffer or self._completed:
            self._is_exemplary = False
        self._buffer += data
        self._received_bytes += len(data)
        self._parse()
        if self.is_due and self._received_bytes > LONGEST_ANSWER_BYTES:
            self._fail(f"no end of it after {self._received_bytes} bytes")

    def _parse(self) -> None:
        data = self._buffer
        begin = 0
        while len(data) - begin >= _HEADER_BYTES:
            length = int.from_bytes(data[begin + 1 : begin + _HEADER_BYTES], "big")
            end = begin + 1 + length
            if not _HEADER_BYTES - 1 <= length <= LONGEST_ANSWER_BYTES:
                self._fail(f"a message of {length} bytes")
                return
            if end > len(data):
                break
            kind = data[begin : begin + 1]
            if kind == b"Z" and self.is_due:
                status = bytes(data[begin + _HEADER_BYTES : end])
                self._ready(status=status, answer=bytes(data[:end]), surplus=bytes(data[end:]))
                return
            if not self._consume(bytes(kind), bytes(data[begin:end])):
                return
            begin = end
        del data[:begin]

    def _consume(self, kind: bytes, message: bytes) -> bool:
        """Take one message that belongs to the answer, or pass it on. False if it is neither: the reset has failed."""
        if kind == b"S":  # asyncpg keeps what is reported, under whatever name, for the life of the connection
            self._reported_bytes += len(message)
            if self._reported_bytes > LONGEST_ANSWER_BYTES:
                self._fail(f"no end of what it reports after {self._reported_bytes} bytes")
                return False
        if kind in b"SA" or (kind == b"N" and not self.is_due):
            self._is_exemplary = False
            self._protocol.data_received(message)
            if kind == b"S":
                self._session.reported()
        elif self.is_on_guard:
            self._fail("closed by the server" if kind == b"E" else f"said {kind!r} unasked")
            return False
        elif kind == b"C":
            self._completed += 1
        elif kind == b"N" or (kind == b"E" and self._completed == self._statements):
            # A notice of the reset is for no caller. An error after the last statement comes after the commit.
            self._is_exemplary = False
        elif kind not in b"TDI" and not (kind in b"12" and self._completed < self._ahead):
            self._fail("the server refused it" if kind == b"E" else f"unexpected message {kind!r}")
            return False
        return True

    def _ready(self, *, status: bytes, answer: bytes, surplus: bytes) -> None:
        if status != b"I" or self._completed != self._statements:
            self._fail(f"{self._completed} of {self._statements} statements done, transaction status {status!r}")
            return
        if self._is_exemplary:
            self._session.learn(answer)
        self._finish(surplus)

    def _finish(self, surplus: bytes) -> None:
        if self.is_wanted:
            self.give_back()
            if surplus:
                self._protocol.data_received(surplus)
        else:
            self.is_due, self.is_on_guard = False, True
            self._buffer[:] = surplus
            if surplus:
                self._parse()
        self._session.answered()

    def _fail(self, reason: str) -> None:
        was_due = self.is_due
        self.give_back()
        if was_due:
            self._session.reset_failed(reason)
        else:
            self._session.lost(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on; asyncpg 0.31 tells nobody of a connection that is not lent."""
        self.give_back()
        self._protocol.connection_lost(exc)
        self._session.lost("closed by the server")

    def pause_writing(self) -> None:
        """Pass it on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._protocol.resume_writing()


class BackendPidCheck(ResetProtocol):
    """
    Reads who does the work at the other end, and whether the guard can be had there.

    Args:
        transport, protocol: asyncpg's.
        answered: Done when that is known.

    Attributes:
        row: What the server has answered, as a DataRow message; empty if it has refused to.
    """

    QUERY: Final = "SELECT pg_catalog.pg_backend_pid(), pg_catalog.set_config('exit_on_error', 'on', true);"
    clean_answer: Final = None

    def __init__(self, transport: Any, protocol: Any, answered: asyncio.Future[None]) -> None:
        super().__init__(self, transport, protocol, statements=1)
        self.row = b""
        self._answered = answered

    def comes_from(self, pid: int) -> bool:
        """Whether process *pid*, which the server named when the connection was made, has answered."""
        text = str(pid).encode()
        return struct.pack("!HI", 2, len(text)) + text in self.row  # the first of two columns

    def _consume(self, kind: bytes, message: bytes) -> bool:
        if kind in b"SA":
            self._protocol.data_received(message)
        elif kind == b"D":
            self.row = message
        return True

    def _ready(self, *, status: bytes, answer: bytes, surplus: bytes) -> None:
        self._finish(surplus)

    def learn(self, answer: bytes) -> None:
        """Do nothing."""

    def reported(self) -> None:
        """Do nothing: `ClientMemory` looks when a lease ends."""

    def answered(self) -> None:
        """Hear that the answer has come."""
        if not self._answered.done():
            self._answered.set_result(None)

    def reset_failed(self, _: str) -> None:
        """Hear of an answer that is none, which is an answer, too."""
        self.answered()

    def lost(self, _: str) -> None:
        """Hear that there will be none."""
        if not self._answered.done():
            error = asyncpg.ConnectionDoesNotExistError("connection was closed during pool initialization")
            self._answered.set_exception(error)


class SessionUser(NamedTuple):
    """
    Whom a session is to act as after each reset.

    Attributes:
        authorization: Its session user; None for the one that has logged in.
        role: Its role; "none" for the session user's own.
    """

    authorization: str | None
    role: str


def reset_statements(con: Connection, user: SessionUser | None) -> list[str]:
    """
    Complete the driver's reset by what it leaves standing, where the server is PostgreSQL proper.

    Args:
        con: Tells the driver's reset.
        user: Whom the session is to act as; None for whom it began as.
    """
    statements: list[str] = con.get_reset_query().splitlines()
    if _RESET_ALL in statements and _UNLOCK in statements:
        # As asyncpg has it, it finds whatever function of that name the last caller's search_path leads to first.
        statements[statements.index(_UNLOCK)] = "SELECT pg_catalog.pg_advisory_unlock_all();"
        statements.remove(_RESET_ALL)
        statements = [*_BEGINNING, *statements, *_become(user)]
    return statements


def _become(user: SessionUser | None) -> list[str]:
    """
    Tell the statements that make a session act as *user*.

    The session user comes first: setting it ends the role, and it may take other roles than the last lease's. Only
    one who has logged in as a superuser can set it to another, as `init` has done before.
    """
    if user is None:
        return ["RESET SESSION AUTHORIZATION;", "RESET ROLE;"]
    return [
        "RESET SESSION AUTHORIZATION;"
        if user.authorization is None
        else f"SET SESSION AUTHORIZATION {_quoted(user.authorization)};",
        # "Reset" would bring back one that the connection began with, although `init` has given it up.
        "SET ROLE NONE;" if user.role == "none" else f"SET ROLE {_quoted(user.role)};",
    ]


def can_be_guarded(statements: list[str]) -> bool:
    """Whether a reset begins as the guard has it."""
    return statements[: len(_BEGINNING)] == _BEGINNING


def guarded(statements: list[str]) -> bytes:
    """
    Encode a reset that nothing survives if it fails: neither the session, nor what has been sent behind it.

    A failure must be able to strike at no moment without a guard. Ahead of all, `RESET ALL`, `BEGIN` and the guard
    itself go by the extended protocol, and without a Sync: where one of them fails, the server skips whatever follows,
    up to the Sync of the next caller's query, which therefore is not run. From then on `exit_on_error`, which any user
    may set, has the server end the session at the first error, up to and including the commit. As it is set for the
    transaction alone, the commit takes it back. Set and reset as any other, it would be off from its reset to the
    commit: a cancel request that comes then brings the last lease's settings back (seen, with much to log).
    """
    rest = "\n".join([*statements[len(_BEGINNING) :], _COMMIT])
    return b"".join(map(_extended, _AHEAD)) + query_message(rest)


def _extended(statement: str) -> bytes:
    """Encode a statement by the extended protocol, without a Sync."""
    parse = b"\0" + statement.encode() + b"\0\0\0"  # unnamed, without types of parameters
    bind = bytes(8)  # an unnamed portal of it, without formats and parameters
    execute = bytes(5)  # to its end
    return _message(b"P", parse) + _message(b"B", bind) + _message(b"E", execute)


def _quoted(identifier: str) -> str:
    """Quote a name so that it survives a client_encoding that the last caller has set: in ASCII."""
    if identifier.isascii():
        return '"' + identifier.replace('"', '""') + '"'
    escaped = identifier.replace("\\", "\\\\").replace('"', '""')
    return 'U&"' + "".join(char if char.isascii() else f"\\+{ord(char):06X}" for char in escaped) + '"'


def query_message(query: str) -> bytes:
    """Encode a simple-query message."""
    return _message(b"Q", query.encode() + b"\0")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body
