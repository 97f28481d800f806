"""The server a command works on: the one of a DSN, or an embedded one. What is wrong with it takes one line."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg

from loopaware_pool._platform.conninfo import EMPTY_HOST, has_empty_host, may_be_misread
from loopaware_pool.cli.command import Unusable
from loopaware_pool.testing.embedded_server import EmbeddedServer, EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CONNECT_ERRORS",
    "Target",
    "Unusable",
    "explain",
    "is_unreadable",
    "open_target",
    "refuse_malformed",
    "say_goodbye",
]

CONNECT_TIMEOUT_SECONDS = 10.0
_GOODBYE_SECONDS = 1.0


def _psycopg_error() -> type[Exception]:
    try:
        from psycopg import Error
    except ImportError:  # there is no libpq here: then its errors cannot occur
        return OSError
    return Error


# What a server, or the way to it, may answer at any moment.
CONNECT_ERRORS = (
    *(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, _psycopg_error()),
    *(asyncpg.InternalClientError, LookupError),  # see `is_unreadable`
)

_EXPECTED = "postgresql://user:password@host:port/database"
_MALFORMED = (
    f"the DSN is not understood: expected {_EXPECTED}, "
    "with special characters of the password percent-encoded (@ is %40, / is %2F)"
)
_OTHER_FORM = f"the DSN is not understood: it is in libpq's other form, key=value; expected {_EXPECTED}"
_SQLALCHEMYS_FORM = (
    f"the DSN is not understood: it is in SQLAlchemy's form; leave out the + and the driver behind it: {_EXPECTED}"
)
_SCHEMES = ("postgresql", "postgres")
_KEY_AND_VALUE = re.compile(r"\s*(host|hostaddr|port|dbname|user|password|service|sslmode)\s*=")
_PORT = re.compile(r":(\d{1,20})$", re.ASCII)
_ENDS_PASSWORD = "/?#[]@"
# How asyncpg's complaint about the value of an option begins.
_OPTION = re.compile("`?(sslmode|target_session_attrs)`? (?:parameter must|is expected to) be one of")

_NOT_POSTGRESQL = "the server at {where} does not know what it was asked: {reason}; is it PostgreSQL?"
_ADVICE: tuple[tuple[type[BaseException], str], ...] = (
    (
        asyncpg.TargetServerAttributeNotMatched,
        "no server at {where} is what target_session_attrs asks for; leave it out, or name another server",
    ),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "the server at {where} does not let this user in: {reason}; check user and password",
    ),
    (
        asyncpg.InvalidCatalogNameError,
        "the server at {where} has no such database: {reason}; check the end of the DSN",
    ),
    (
        asyncpg.InsufficientPrivilegeError,
        "the server at {where} forbids it: {reason}; a user who may do that is needed",
    ),
    (
        asyncpg.TooManyConnectionsError,
        "the server at {where} is full: {reason}; free some of its connections, or raise its max_connections",
    ),
    (TimeoutError, "no answer from {where} within {seconds:.0f} s; check host and port"),
    (OSError, "no connection to {where}: {reason}; is a server running there?"),
    (asyncpg.SyntaxOrAccessError, _NOT_POSTGRESQL),
    (asyncpg.FeatureNotSupportedError, _NOT_POSTGRESQL),
    (BaseException, "the server at {where} answered: {reason}"),
)
_UNREADABLE = "the server at {where} says of itself what asyncpg cannot read: {reason}; is it PostgreSQL?"


@dataclass(frozen=True, slots=True)
class Target:
    """
    A server that was seen to answer.

    Attributes:
        dsn: Where to connect. It may hold a password: not to be shown.
        description: What it is, to be shown.
    """

    dsn: str
    description: str


@contextmanager
def open_target(dsn: str | None, *, max_connections: int = 100) -> Iterator[Target]:
    """
    Connect to the server of *dsn* once, or start an embedded one that ends with the block.

    Args:
        dsn: The server; None or empty for an embedded one.
        max_connections: How many connections an embedded one is to accept.

    Raises:
        Unusable: Neither is to be had.
    """
    with ExitStack() as stack:
        if dsn:
            try:
                refuse_malformed(dsn)
            except ValueError as error:
                raise Unusable(str(error)) from None
            where = f"at {_address(dsn)}"
        else:
            try:
                dsn = stack.enter_context(EmbeddedServer(settings={"max_connections": max_connections})).dsn
            except EmbeddedServerError as error:
                raise Unusable(str(error)) from None
            where = "embedded"
        try:
            version = asyncio.run(_ask_version(dsn))
        except (*CONNECT_ERRORS, ValueError, OverflowError) as error:
            raise Unusable(explain(error, dsn)) from None
        yield Target(dsn, f"PostgreSQL {version} ({where})")


async def _ask_version(dsn: str) -> str:
    connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_SECONDS, statement_cache_size=0)
    try:
        version: str = await connection.fetchval("SHOW server_version")
        return version.split()[0]
    finally:
        await say_goodbye(connection)


async def say_goodbye(connection: Any, seconds: float = _GOODBYE_SECONDS) -> None:
    """
    Close a connection of asyncpg's. asyncpg waits until the server hangs up, which some servers (PGlite) never do: they
    are not waited for longer than *seconds*.
    """
    with suppress(TimeoutError):
        await connection.close(timeout=seconds)


def explain(error: BaseException, dsn: str) -> str:
    """Say in one line what *error* means for the user who gave *dsn*."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if option := _OPTION.match(reason):
        return f"the DSN is not understood: asyncpg does not know this value of {option[1]}"
    if is_unreadable(error):
        template = _UNREADABLE
    elif isinstance(error, (asyncpg.ClientConfigurationError, ValueError, OverflowError)):
        return _why_malformed(dsn)
    else:
        template = next(template for kind, template in _ADVICE if isinstance(error, kind))
    return template.format(where=_address(dsn), reason=reason, seconds=CONNECT_TIMEOUT_SECONDS)


def is_unreadable(error: BaseException) -> bool:
    """Whether a connect has failed because asyncpg cannot read what the server reports, such as its version."""
    kinds = (asyncpg.InternalClientError, LookupError, UnicodeError)
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return False
    return isinstance(error, kinds) or (isinstance(error, ValueError) and "Postgres version" in str(error))


def refuse_malformed(dsn: str) -> None:
    """
    Refuse what only looks like a DSN, and what one of the drivers takes for another.

    Raises:
        ValueError: It is one of these; the message shows nothing secret.
    """
    try:
        is_understood = "://" in dsn and not may_be_misread(dsn, _ENDS_PASSWORD) and urlsplit(dsn)
    except ValueError:
        is_understood = False
    if not is_understood:
        raise ValueError(_why_malformed(dsn))
    if has_empty_host(dsn, os.environ.get("PGHOST", "")):
        raise ValueError(f"the DSN is not understood: {EMPTY_HOST}")


def _why_malformed(dsn: str) -> str:
    """
    Say what is wrong with a DSN, and nothing else of it.

    The drivers' own words may repeat a part of the password that they took for something else.
    """
    scheme, is_uri, rest = dsn.partition("://")
    if not is_uri:
        return _OTHER_FORM if _KEY_AND_VALUE.match(dsn) else _MALFORMED
    if scheme not in _SCHEMES:
        database, is_sqlalchemys, _ = scheme.partition("+")
        if is_sqlalchemys and database in _SCHEMES:
            return _SQLALCHEMYS_FORM
        return f"the DSN is not understood: it does not begin with postgresql://; expected {_EXPECTED}"
    port = _PORT.search(rest.partition("/")[0])
    if port is not None and not may_be_misread(dsn, _ENDS_PASSWORD) and not 0 < int(port[1]) < 65536:
        return f"the DSN is not understood: port {port[1]} is none; a port is a number from 1 to 65535"
    return _MALFORMED


def _address(dsn: str) -> str:
    """Host and port of *dsn*, and nothing else of it."""
    return urlsplit(dsn).netloc.rpartition("@")[2] or "the default address"
