"""What an error says of the server that it came from, by its SQLSTATE."""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["BECAME_READ_ONLY", "IS_READ_ONLY_QUERY", "ServerState", "classify"]

# Asks for what a new session would find, whatever this one has set: a standby, or a server that was told to take no
# writes, by whoever fails over to another.
IS_READ_ONLY_QUERY: Final = (
    "SELECT pg_catalog.pg_is_in_recovery() OR reset_val = 'on' FROM pg_catalog.pg_settings "
    "WHERE name = 'default_transaction_read_only'"
)
BECAME_READ_ONLY: Final = "the server became read-only"


class ServerState(Enum):
    """What is to be expected of a connection on which an error was heard."""

    GOODBYE = "goodbye"
    """It ends: the server, or this session of it, shuts down, or is not up yet."""

    READ_ONLY = "read-only"
    """A write was refused: its transaction was read-only, or the server is by now."""

    HEARSAY = "hearsay"
    """One of these, but perhaps of another server: an error that says so has ended the caller's block."""


_OMENS: Final = {
    "57P01": ServerState.GOODBYE,  # admin_shutdown
    "57P02": ServerState.GOODBYE,  # crash_shutdown
    "57P03": ServerState.GOODBYE,  # cannot_connect_now
    "25006": ServerState.READ_ONLY,  # read_only_sql_transaction
}


def classify(error: BaseException) -> ServerState | None:
    """Read the SQLSTATE of a driver's *error*, if it has one."""
    sqlstate = getattr(error, "sqlstate", None)
    return _OMENS.get(sqlstate) if isinstance(sqlstate, str) else None
