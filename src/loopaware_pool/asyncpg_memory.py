"""
What asyncpg remembers of a session on the client's side: the settings that the server reported, and type codecs.

Both belong to the lease as much as what the server remembers. asyncpg encodes text by the `client_encoding` that it was
last told of, shows the others in `get_settings()`, and keeps a codec that a lease has registered until it is told
otherwise. So the next lease is to find them as they were when the session was made, `init` included for codecs.

asyncpg hides the tables themselves, but Python's garbage collector knows what an object refers to. Where a table is not
found that way, nothing is taken for unchanged.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from asyncpg.connection import Connection

__all__ = ["CODEC_METHODS", "ClientMemory"]

# The calls by which a lease changes codecs.
CODEC_METHODS: Final = ("set_type_codec", "set_builtin_type_codec", "reset_type_codec")
_OWNER_OF_CODECS: Final = "DataCodecConfig"
_TABLES_OF_CODECS: Final = 2  # those that were set, and those that were derived


class ClientMemory:
    """
    What asyncpg remembers of one session.

    Args:
        con: The connection, which is not referred to afterwards.

    Attributes:
        reported: The settings that the server has reported, as asyncpg keeps them; None if they are not found.
        expected: The same, when the session was last as it was made.
        can_restore_codecs: Whether the tables of codecs are found.
    """

    __slots__ = ("_codecs", "_kept_codecs", "can_restore_codecs", "expected", "reported")

    def __init__(self, con: Connection) -> None:
        settings = con.get_settings()
        self.reported = _reported_settings(settings)
        self._codecs = _tables_of_codecs(settings)
        self.can_restore_codecs = bool(self._codecs)
        self.expect_this()
        self.keep_codecs()

    def expect_this(self) -> None:
        """Take the settings that are reported now for those of an unchanged session."""
        self.expected = {} if self.reported is None else self.reported.copy()

    def keep_codecs(self) -> None:
        """Note the codecs that leases are to find."""
        self._kept_codecs = [codecs.copy() for codecs in self._codecs]

    def restore_codecs(self, con: Connection) -> None:
        """Forget what a lease has registered, and the cached statements that go by it."""
        for codecs, kept in zip(self._codecs, self._kept_codecs, strict=True):
            codecs.clear()
            codecs.update(kept)
        con._drop_local_statement_cache()


def _reported_settings(settings: Any) -> dict[str, str] | None:
    for found in gc.get_referents(settings):
        if (
            type(found) is dict
            and "client_encoding" in found
            and all(getattr(settings, name, None) is value for name, value in found.items())
        ):
            return found
    return None


def _tables_of_codecs(settings: Any) -> list[dict[Any, Any]]:
    tables = [
        table
        for owner in gc.get_referents(settings)
        if type(owner).__name__ == _OWNER_OF_CODECS
        for table in gc.get_referents(owner)
        if type(table) is dict
    ]
    return tables if len(tables) == _TABLES_OF_CODECS else []
