"""
What is sent to reset an asyncpg session.

A reset is the driver's own, completed by what that leaves standing. It is sent as one simple query, which is one
implicit transaction. If the next query may travel behind it, it is guarded as well, see `guarded`.
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from asyncpg.connection import Connection

__all__ = [
    "ResetMessage",
    "SessionUser",
    "guarded",
    "is_completed",
    "of_user",
    "plain",
    "query_message",
    "reset_statements",
]

_UNLOCK: Final = "SELECT pg_advisory_unlock_all();"
_RESET_ALL: Final = "RESET ALL;"
# A reset begins in the last lease's kind of transaction. The first query of a serializable, read-only, deferrable one
# waits for all serializable transactions that write.
_BEGINNING: Final = (_RESET_ALL, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;")
# The same with the guard, which `COMMIT` ends. `RESET ALL` comes first: it also ends the last lease's time limits.
_AHEAD: Final = ("RESET ALL", "BEGIN ISOLATION LEVEL READ COMMITTED", "SET LOCAL exit_on_error = on")
_COMMIT: Final = "COMMIT;"


class ResetMessage(NamedTuple):
    """
    A reset as it is sent.

    Attributes:
        data: The bytes.
        statements: How many statements the server has done then; None if that is not known.
        ahead: How many of them go ahead by the extended protocol.
    """

    data: bytes
    statements: int | None
    ahead: int = 0


class SessionUser(NamedTuple):
    """
    The user that a session acts as after each reset.

    Attributes:
        authorization: Its session user; None for the one that has logged in.
        role: Its role; "none" for the session user's own.
    """

    authorization: str | None
    role: str


def is_completed(con: Connection) -> bool:
    """
    Whether the driver's reset is completed by what it leaves standing.

    It is if the driver takes the server for PostgreSQL itself. For others, it leaves out what they do not know.
    """
    statements = con.get_reset_query().splitlines()
    return _RESET_ALL in statements and _UNLOCK in statements


def reset_statements(con: Connection, user: SessionUser | None) -> tuple[str, ...]:
    """
    Return the driver's reset, completed if `is_completed`.

    Args:
        con: The connection, which has the driver's reset.
        user: The user that the session is to act as; None for the one it began as.
    """
    statements: list[str] = con.get_reset_query().splitlines()
    if is_completed(con):
        # asyncpg's does not name the schema, so it calls whichever function of that name the last caller's search_path
        # finds first.
        statements[statements.index(_UNLOCK)] = "SELECT pg_catalog.pg_advisory_unlock_all();"
        statements.remove(_RESET_ALL)
        statements = [*_BEGINNING, *statements, *_become(user)]
    return tuple(statements)


def _become(user: SessionUser | None) -> list[str]:
    """
    Return the statements that make a session act as *user*.

    The session user comes first: setting it ends the role, and it may be allowed other roles than the last lease's
    user. Only a session that was logged in as a superuser can set it to another user, as `init` has done before.
    """
    if user is None:
        return ["RESET SESSION AUTHORIZATION;", "RESET ROLE;"]
    return [
        "RESET SESSION AUTHORIZATION;"
        if user.authorization is None
        else f"SET SESSION AUTHORIZATION {_quoted(user.authorization)};",
        # RESET ROLE would bring back the role that the connection began with, although `init` has given it up.
        "SET ROLE NONE;" if user.role == "none" else f"SET ROLE {_quoted(user.role)};",
    ]


@functools.lru_cache(64)
def plain(statements: tuple[str, ...]) -> ResetMessage:
    """Encode a reset as one simple query."""
    return ResetMessage(query_message("\n".join(statements)), len(statements))


@functools.lru_cache(64)
def of_user(query: str) -> ResetMessage:
    """Encode a reset of the user's."""
    return ResetMessage(query_message(query), statements=None)


@functools.lru_cache(64)
def guarded(statements: tuple[str, ...]) -> ResetMessage:
    """
    Encode a completed reset that nothing survives if it fails: neither the session, nor a query sent behind it.

    There must be no moment at which a failure finds no guard. First come `RESET ALL`, `BEGIN` and the guard itself, by
    the extended protocol and without a Sync: if one of them fails, the server skips everything up to the Sync of the
    next caller's query, which therefore is not run. From then on `exit_on_error`, which any user may set, makes the
    server end the session at the first error, up to and including the commit.

    It is set for the transaction alone, so the commit takes it back. Set and reset as an ordinary setting, it would be
    off between its reset and the commit. A cancel request that comes then brings the last lease's settings back (seen,
    with much to log).

    The statements are not prepared once and for all, although that would save a fifth of the server's work: a trigger's
    function can put a `SELECT` in place of a prepared `RESET ALL`, and the next query would be run before that is
    noticed.
    """
    rest = "\n".join([*statements[len(_BEGINNING) :], _COMMIT])
    done = len(_AHEAD) + len(statements) - len(_BEGINNING) + 1
    return ResetMessage(b"".join(map(_extended, _AHEAD)) + query_message(rest), done, ahead=len(_AHEAD))


def _extended(statement: str) -> bytes:
    """Encode a statement by the extended protocol, without a Sync."""
    parse = b"\0" + statement.encode() + b"\0\0\0"  # unnamed, without types of parameters
    bind = bytes(8)  # an unnamed portal of it, without formats and parameters
    execute = bytes(5)  # to its end
    return _message(b"P", parse) + _message(b"B", bind) + _message(b"E", execute)


def _quoted(identifier: str) -> str:
    """Quote a name in ASCII, so that it survives any client_encoding that the last caller has set."""
    if identifier.isascii():
        return '"' + identifier.replace('"', '""') + '"'
    escaped = identifier.replace("\\", "\\\\").replace('"', '""')
    return 'U&"' + "".join(char if char.isascii() else f"\\+{ord(char):06X}" for char in escaped) + '"'


def query_message(query: str) -> bytes:
    """Encode a simple-query message."""
    return _message(b"Q", query.encode() + b"\0")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body
