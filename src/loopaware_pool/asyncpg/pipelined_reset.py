"""
The reset of an asyncpg session, without a round trip.

How a session is reset without waiting
--------------------------------------
asyncpg's own pool awaits its reset query at each release: a round trip that the caller pays for. Here the query's bytes
go straight to the transport. A small protocol (`ResetProtocol`) takes the transport over until the answer has come,
then
gives it back to asyncpg's protocol with whatever arrived behind the answer. No caller waits. It is the full reset, run
at once: an advisory lock is free at release, not at the next use.

A reset after a lease that has left nothing, as far as is known, is held back if callers wait for the connection: the
first of them is about to write a query. Both then go out in one write, which saves a system call here and one or two at
the server, and a wake-up. If that caller writes nothing, the reset is sent in the loop's next iteration.

When the next query may travel behind a reset
---------------------------------------------
A reset is one implicit transaction. It may fail: because of a timeout that the last lease has set, a cancel request
that
comes late, or a role that was revoked. Then the last lease's settings and role stand again, and the server goes on to
the
next message. It would run the next lease's query with them before the pool could know. So:

* A query is sent behind a reset only if the last lease is known to have left nothing: its statements are harmless by
  their text, and the settings that the server reports are unchanged. After any other lease, the connection is lent
  again when the answer has been read. This also keeps the driver's side right: asyncpg learns from that answer which
  encoding and which settings the session has again.
* What a statement's text does not show is contained by a guard, see
  `reset_messages.guarded`.
* No reset is followed before one has succeeded in the same session. A server may look like PostgreSQL and refuse a
  statement of the reset, and each caller behind one would lose its query.

If a proxy stands between the pool and the server, or the server does not know the guard, nothing is sent behind a
reset.

asyncpg's protocol knows nothing of all this, so it must be idle at that moment: no query running or being cancelled, no
transaction open. Otherwise a task of the pool awaits the reset. The same holds if the user has replaced the reset, by a
`reset` callback or a `Connection` subclass.

Who reads unsolicited messages
------------------------------
While no caller has the connection, the reset's protocol keeps the transport, on guard. asyncpg would take whatever
comes
then for the beginning of the next answer. An error that says the server shuts down, a moment before it hangs up, would
fail the next caller's query; a surplus answer would be taken for that caller's. So such a connection is closed at the
first byte.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any, Final, Protocol

import asyncpg

from loopaware_pool.asyncpg.reset_messages import ResetMessage, query_message

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["BackendPidCheck", "ResetProtocol"]

# The answer to a reset has some 200 bytes. A longer one than this, notices included, is none: only the server knows
# when it ends, and until then every byte costs memory or time.
LONGEST_ANSWER_BYTES: Final = 1 << 20
_HEADER_BYTES: Final = 5
# Characters of a server's error that are repeated.
_LONGEST_REASON: Final = 200
# What is replaced on a transport while a reset is held back, unless a tracer has replaced it already.
_REPLACED: Final = frozenset({"write", "writelines"})
# To join larger data would cost more than to write it by itself.
_LARGEST_JOINED_BYTES: Final = 16 << 10
# Where in a DataRow message its first column begins: behind the header and the number of columns.
_FIRST_COLUMN: Final = 7
_NOTHING: Final = ResetMessage(b"", statements=0)


class _Session(Protocol):
    """The session whose reset it is."""

    def setting_reported(self) -> None: ...

    def answer_complete(self) -> None: ...

    def answer_failed(self, reason: str, sqlstate: str) -> None: ...

    def connection_gone(self, reason: str) -> None: ...


class ResetProtocol(asyncio.Protocol):
    """
    Reads the server's answer to a reset in place of asyncpg, then stands guard until a caller has the connection.

    The clean answer to a message is the same bytes each time, so it is compared first and parsed only if it differs.

    Args:
        session: The session, which is told what comes of the reset.
        transport, protocol: asyncpg's.
        clean_answers: What the server answers to each message when there was nothing to reset; added to here.

    Attributes:
        is_due: Whether the answer has not come yet.
        is_on_guard: Whether no message is expected, and any that comes is looked at.
        is_wanted: Whether asyncpg gets the transport as soon as the answer has come.
        can_hold: Whether a reset can be held back on this transport.
    """

    def __init__(
        self, session: _Session, transport: Any, protocol: Any, clean_answers: MutableMapping[bytes, bytes]
    ) -> None:
        self.is_due: bool = False
        self.is_on_guard: bool = False
        self.is_wanted: bool = True
        self._session = session
        self._transport = transport
        self._protocol = protocol
        self._clean_answers = clean_answers
        self._reset = _NOTHING
        self._held: bytes | None = None
        # uvloop's transports have no dictionary.
        self.can_hold: bool = isinstance(transport, asyncio.Transport) and hasattr(transport, "__dict__")
        self._clean: bytes | None = None
        self._buffer = bytearray()  # appended to in place: copying it for each byte that drips in would be quadratic
        self._received_bytes = 0
        self._reported_bytes = 0  # in the answer, and behind it until the next
        self._completed = 0
        self._is_exemplary = True  # one piece, and nothing but the answer

    def send(self, reset: ResetMessage, *, is_held: bool = False) -> None:
        """Take the transport over, and send a reset: with the next write if *is_held*, or by `flush`."""
        self.is_due = True
        self.is_wanted = False
        self._received_bytes = self._reported_bytes = 0
        self._completed = 0
        self._is_exemplary = True
        if self._clean is None or reset is not self._reset:
            self._reset = reset
            self._clean = self._clean_answers.get(reset.data)
        self._transport.set_protocol(self)
        if is_held and self.can_hold and _REPLACED.isdisjoint(vars(self._transport)):
            self._held = reset.data
            self._transport.write, self._transport.writelines = self._write_behind, self._write_lines_behind
        else:
            self._transport.write(reset.data)

    @property
    def is_held(self) -> bool:
        """Whether the reset has not been sent yet."""
        return self._held is not None

    def flush(self) -> None:
        """Send a reset that is held back still."""
        if self._held is not None:
            held = self._drop_held()
            self._transport.write(held)

    def _drop_held(self) -> bytes:
        held, self._held = self._held or b"", None
        replaced = vars(self._transport)
        for name, own in (("write", self._write_behind), ("writelines", self._write_lines_behind)):
            if replaced.get(name) == own:  # else a tracer has wrapped it meanwhile, and still calls it
                del replaced[name]
        return held

    def _write_behind(self, data: Any) -> None:
        transport = self._transport
        write = type(transport).write  # not the transport's own, which a tracer may have set to call this
        if self._held is None:
            write(transport, data)
        elif len(data) <= _LARGEST_JOINED_BYTES:
            joined = self._held + data  # first: it may fail, and the reset must not be lost
            self._drop_held()
            write(transport, joined)
        else:
            write(transport, self._drop_held())
            write(transport, data)

    def _write_lines_behind(self, lines: Any) -> None:
        self.flush()
        type(self._transport).writelines(self._transport, lines)

    def stand_guard(self) -> None:
        """Look at what comes, as nothing should come."""
        if not self.is_due:
            self.is_on_guard = True
            self._transport.set_protocol(self)

    def relieve(self) -> None:
        """End the guard: asyncpg gets what comes, and the part of a message that has come already."""
        begun = bytes(self._buffer)
        self.give_back()
        if begun:
            self._protocol.data_received(begun)

    def give_back(self) -> None:
        """Give the transport back to asyncpg, whatever is due."""
        if self._held is not None:
            self._drop_held()
        if self.is_due or self.is_on_guard:
            self.is_due = self.is_on_guard = False
            self._buffer.clear()
            self._transport.set_protocol(self._protocol)

    def data_received(self, data: bytes) -> None:
        """Compare with the clean answer, or else parse."""
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
            self._fail(f"the answer has not ended after {self._received_bytes} bytes")

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
        """
        Take one message that belongs to the answer, or pass it on. False if it is neither, so that the reset has
        failed.
        """
        if kind == b"S":  # asyncpg keeps every reported setting for the life of the connection
            self._reported_bytes += len(message)
            if self._reported_bytes > LONGEST_ANSWER_BYTES:
                self._fail(f"{self._reported_bytes} bytes of reported settings, without an end")
                return False
        if kind in b"SA" or (kind == b"N" and not self.is_due):
            self._is_exemplary = False
            self._protocol.data_received(message)
            if kind == b"S":
                self._session.setting_reported()
        elif self.is_on_guard:
            self._fail("closed by the server" if kind == b"E" else f"unsolicited message {kind!r}")
            return False
        elif kind == b"C":
            self._completed += 1
        elif kind == b"N" or (kind == b"E" and self._completed == self._reset.statements):
            # A notice of the reset is for no caller. An error after the last statement comes after the commit.
            self._is_exemplary = False
        elif kind not in b"TDI" and not (kind in b"12" and self._completed < self._reset.ahead):
            self._fail(*(_refusal(message) if kind == b"E" else (f"unexpected message {kind!r}",)))
            return False
        return True

    def _ready(self, *, status: bytes, answer: bytes, surplus: bytes) -> None:
        if status != b"I":
            self._fail(f"it leaves a transaction open (status {status.decode(errors='replace')})")
            return
        if self._reset.statements not in (None, self._completed):
            self._fail(f"{self._completed} of {self._reset.statements} statements done")
            return
        if self._is_exemplary:
            self._clean_answers[self._reset.data] = answer
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
        self._session.answer_complete()

    def _fail(self, reason: str, sqlstate: str = "") -> None:
        was_due = self.is_due
        self.give_back()
        if was_due:
            self._session.answer_failed(reason, sqlstate)
        else:
            self._session.connection_gone(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on, and tell the session: asyncpg 0.31 reports the loss of a lent connection only."""
        self.give_back()
        self._protocol.connection_lost(exc)
        self._session.connection_gone("closed by the server")

    def pause_writing(self) -> None:
        """Pass it on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._protocol.resume_writing()


def _refusal(message: bytes) -> tuple[str, str]:
    """Say in one line what an ErrorResponse says; and return its SQLSTATE, empty if it has none."""
    said = {part[:1]: part[1:].decode(errors="replace") for part in message[_HEADER_BYTES:].split(b"\0")}
    reason = " ".join(said.get(b"M", "").split())[:_LONGEST_REASON]
    sqlstate = said.get(b"C", "")
    return f"the server refused it: {reason} ({sqlstate or 'no SQLSTATE'})", sqlstate


class BackendPidCheck(ResetProtocol):
    """
    Finds out which process of which server answers at the other end, and whether the server knows the guard.

    Args:
        transport, protocol: asyncpg's.
        answered: Resolved when that is known.

    Attributes:
        row: What the server has answered, as a DataRow message; empty if it has refused to. Another process, or another
            server, answers something else.
    """

    QUERY: Final = (
        "SELECT pg_catalog.pg_backend_pid(), pg_catalog.set_config('exit_on_error', 'on', true), "
        "pg_catalog.pg_postmaster_start_time();"
    )

    def __init__(self, transport: Any, protocol: Any, answered: asyncio.Future[None]) -> None:
        super().__init__(self, transport, protocol, {})
        self.row: bytes = b""
        self._answered = answered

    def ask(self) -> None:
        """Ask, and have asyncpg get the transport back after the answer."""
        self.send(ResetMessage(query_message(self.QUERY), statements=1))
        self.is_wanted = True

    @property
    def pid(self) -> int:
        """The process that has answered, if any has."""
        (length,) = struct.unpack_from("!I", self.row, _FIRST_COLUMN)
        return int(self.row[_FIRST_COLUMN + 4 : _FIRST_COLUMN + 4 + length])

    def _consume(self, kind: bytes, message: bytes) -> bool:
        if kind in b"SA":
            self._protocol.data_received(message)
        elif kind == b"D":
            self.row = message
        return True

    def _ready(self, *, status: bytes, answer: bytes, surplus: bytes) -> None:
        self._finish(surplus)

    def setting_reported(self) -> None:
        """Do nothing: `ClientMemory` looks when a lease ends."""

    def answer_complete(self) -> None:
        """Note that the answer has come."""
        if not self._answered.done():
            self._answered.set_result(None)

    def answer_failed(self, _: str, sqlstate: str) -> None:
        """Note that the answer is no valid one, which is an answer, too."""
        self.answer_complete()

    def connection_gone(self, _: str) -> None:
        """Note that no answer will come."""
        if not self._answered.done():
            error = asyncpg.ConnectionDoesNotExistError("connection was closed during pool initialization")
            self._answered.set_exception(error)
