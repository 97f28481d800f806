"""
Redacts connection strings in errors, and finds what is wrong with them.

A password whose special characters are not percent-encoded changes the meaning of a connection string: a part of it
becomes the host, the port or an option, and the driver repeats that part in its error. So where a string can be
misread, the driver's error is not passed on.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs, urlsplit

__all__ = [
    "EMPTY_HOST",
    "MISREAD",
    "SCHEMES",
    "has_empty_host",
    "hide_passwords",
    "may_be_misread",
    "may_hold_password",
    "redact",
]

MISREAD: Final = (
    "the connection string is not understood: expected postgresql://user:password@host:port/database, with special "
    "characters of the password percent-encoded (@ is %40, / is %2F); the driver's own words are left out, as they may "
    "repeat a part of the password"
)
EMPTY_HOST: Final = (
    "a host is empty in the list of hosts of the connection string, or of PGHOST: expected "
    "'first-host:5432,second-host:5432'"
)

SCHEMES: Final = ("postgresql://", "postgres://")
_PORT: Final = re.compile(r"\d*[/?#]")
_CREDENTIALS: Final = re.compile(r"://.*@", re.DOTALL)
_NAME_OF_PASSWORD: Final = re.compile("pas|pw", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"(password\s*=).+", re.DOTALL | re.IGNORECASE)


def may_be_misread(dsn: str, special: str) -> bool:
    """
    Tell whether a part of the password may be taken for something else.

    Args:
        dsn: A URI, or what was meant to be one.
        special: The characters that end a password where they are not encoded; they differ between the drivers.

    Returns:
        False also for a string that is not a URI.
    """
    _, is_uri, rest = dsn.partition("://")
    if not is_uri:
        return False
    if not dsn.startswith(SCHEMES):
        return True
    before_options = rest.partition("?")[0]
    is_before_options = "@" in before_options
    password = (before_options if is_before_options else rest).rpartition("@")[0].partition(":")[2]
    if not is_before_options and _PORT.match(password):
        return False  # a server without credentials, and an option with an @ in it
    return any(char in special for char in password)


def may_hold_password(conninfo: str) -> bool:
    """Whether *conninfo*, a URI or not, may hold a password under any name; True if in doubt."""
    after_host = conninfo.partition("://")[2].partition(":")[2]
    has_colon_of_password = bool(after_host) and not _PORT.match(f"{after_host}/")
    return "@" in conninfo or has_colon_of_password or bool(_NAME_OF_PASSWORD.search(conninfo))


def has_empty_host(dsn: str, pghost: str) -> bool:
    """Whether the list of hosts of a URI, or else *pghost*, has an empty one: asyncpg raises an `IndexError` then."""
    parts = urlsplit(dsn)
    hosts = parts.netloc.rpartition("@")[2]
    lists = [hosts] if hosts else parse_qs(parts.query).get("host") or [pghost]
    return any("" in hosts.split(",") for hosts in lists if hosts)


def redact(error: Exception) -> None:
    """Replace a driver's error text about a string that it has misread, or cannot read."""
    error.args = (MISREAD,)
    error.__context__ = error.__cause__ = None


def hide_passwords(text: str) -> str:
    """Replace everything in *text* that may belong to a user name or a password by three asterisks; rather too much."""
    return _PASSWORD.sub(r"\1***", _CREDENTIALS.sub("://***@", text))
