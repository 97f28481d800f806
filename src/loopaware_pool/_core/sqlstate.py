"""What an error's SQLSTATE says about the server it came from."""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = [
    "BECAME_READ_ONLY",
    "IS_READ_ONLY_QUERY",
    "RESET_REFUSED",
    "ROLE_REFUSED",
    "ServerState",
    "classify",
    "is_not_understood",
    "may_pass",
]

# Asks what a new session would find, whatever this one has set: a standby, or a server that no longer takes writes, as
# failover tools set it. Only asked where the server has said at the connect that it was neither.
IS_READ_ONLY_QUERY: Final = (
    "SELECT pg_catalog.pg_is_in_recovery() OR reset_val = 'on' FROM pg_catalog.pg_settings "
    "WHERE name = 'default_transaction_read_only'"
)
BECAME_READ_ONLY: Final = "the server became read-only"
RESET_REFUSED: Final = (
    "each lease costs its connection, because its reset failed: {}. Set reset_query to what this server knows, such as "
    '"RESET ALL", or to "" for nothing'
)
ROLE_REFUSED: Final = (
    "a reset restores the role that {} has set, but this server refuses to tell it: {}. Set reset_query to what it "
    'knows, such as "RESET ALL", or to "" for nothing'
)


class ServerState(Enum):
    """What an error says about the connection that it came on."""

    GOODBYE = "goodbye"
    """The connection ends: the server or this session shuts down, or the server is not up yet."""

    READ_ONLY = "read-only"
    """A write was refused: its transaction was read-only, or the server has become so."""

    HEARSAY = "hearsay"
    """One of these, but perhaps of another server: such an error has ended the caller's block."""


_OMENS: Final = {
    "57P01": ServerState.GOODBYE,  # admin_shutdown
    "57P02": ServerState.GOODBYE,  # crash_shutdown
    "57P03": ServerState.GOODBYE,  # cannot_connect_now
    "25006": ServerState.READ_ONLY,  # read_only_sql_transaction
}


# Syntax errors and unknown names; features that are not there; errors of other servers that have no class.
_NOT_UNDERSTOOD: Final = ("42", "0A", "XX")


# Connections, resources, operators and cancellations, the system.
_OF_THE_MOMENT: Final = ("08", "53", "57", "58")


def may_pass(sqlstate: str) -> bool:
    """Whether the same statement may well succeed another time."""
    return sqlstate.startswith(_OF_THE_MOMENT)


def is_not_understood(error: BaseException) -> bool:
    """Whether a driver's *error* says that the server does not know what it was asked."""
    return str(getattr(error, "sqlstate", None)).startswith(_NOT_UNDERSTOOD)


def classify(error: BaseException) -> ServerState | None:
    """Return what the SQLSTATE of a driver's *error* says; None if it has none, or an unrelated one."""
    sqlstate = getattr(error, "sqlstate", None)
    return _OMENS.get(sqlstate) if isinstance(sqlstate, str) else None
