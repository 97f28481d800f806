"""
What asyncpg remembers of a session in the client: the settings that the server reported, and type codecs.

Both belong to the lease as much as what the server remembers. asyncpg encodes text by the last reported
`client_encoding`, shows the other settings in `get_settings()`, and keeps a codec that a lease has registered. So the
next lease must find them as they were when the session was made; codecs, as `init` left them.

asyncpg hides the tables themselves, but Python's garbage collector knows what an object refers to. If a table is not
found that way, nothing counts as unchanged.
"""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from asyncpg.connection import Connection

__all__ = ["CODEC_METHODS", "ClientMemory"]

# The calls by which a lease changes codecs.
CODEC_METHODS: Final = ("set_type_codec", "set_builtin_type_codec", "reset_type_codec")
# The reported settings that change how the text of a statement is read.
_READ_WITH: Final = ("client_encoding", "DateStyle", "IntervalStyle", "standard_conforming_strings", "TimeZone")
_OWNER_OF_CODECS: Final = "DataCodecConfig"
_NO_TYPE: Final = 1  # an OID that no type has
_LAST_BUILTIN_OID: Final = 9999  # for these asyncpg brings codecs along


class ClientMemory:
    """
    What asyncpg remembers of one session.

    Args:
        con: The connection, which no caller has yet. No reference to it is kept.

    Attributes:
        reported: The settings that the server has reported, as asyncpg keeps them; None if they are not found.
        expected: The settings reported for an unchanged session.
        can_restore_codecs: Whether the table of codecs is found.
    """

    __slots__ = ("_codecs", "_kept_codecs", "can_restore_codecs", "expected", "reported")

    expected: dict[str, str]

    def __init__(self, con: Connection) -> None:
        settings = con.get_settings()
        self.reported: dict[str, str] | None = _reported_settings(settings)
        self._codecs = _table_of_codecs(settings)
        self.can_restore_codecs: bool = self._codecs is not None
        self.expect_this()
        self.keep_codecs()

    def expect_this(self) -> None:
        """Take the settings reported now for those of an unchanged session."""
        self.expected = {} if self.reported is None else self.reported.copy()

    def forget_statements(self, con: Connection) -> None:
        """
        Have asyncpg prepare its cached statements again, if the lease has changed how their literals are read.

        A date in a statement's text is read when the statement is prepared, in the `DateStyle` of that moment. The
        lease may have set it back since, as the end of a transaction does after `SET LOCAL`. So the values' identities
        are compared: asyncpg makes a new object of each value that the server reports.
        """
        reported, expected = self.reported, self.expected
        if reported is None:
            return
        for name in _READ_WITH:
            if reported.get(name) is not expected.get(name):
                con._drop_local_statement_cache()
                return

    def keep_codecs(self) -> None:
        """Note the codecs that each lease must find."""
        self._kept_codecs = {} if self._codecs is None else self._codecs.copy()

    def restore_codecs(self, con: Connection) -> None:
        """Remove the codecs that a lease has set, and what asyncpg has cached with them."""
        codecs = self._codecs
        if codecs is None or not self._have_changed(codecs):
            return
        codecs.clear()
        codecs.update(self._kept_codecs)
        con._drop_local_type_cache()
        con._drop_local_statement_cache()

    def _have_changed(self, codecs: dict[Any, Any]) -> bool:
        """Whether a lease has set codecs. Codecs that asyncpg has added by itself, as for a new enum, are kept."""
        if codecs == self._kept_codecs:
            return False
        if any(codecs.get(key) is not kept for key, kept in self._kept_codecs.items()):
            return True
        added = {key: codec for key, codec in codecs.items() if key not in self._kept_codecs}
        if any(oid <= _LAST_BUILTIN_OID or _is_users(codec) for (oid, _), codec in added.items()):
            return True
        self._kept_codecs.update(added)
        return False


def _is_users(codec: Any) -> bool:
    """Whether a codec calls Python functions."""
    return any(callable(found) for found in gc.get_referents(codec))


def _reported_settings(settings: Any) -> dict[str, str] | None:
    for found in gc.get_referents(settings):
        if (
            type(found) is dict
            and "client_encoding" in found
            and all(getattr(settings, name, None) is value for name, value in found.items())
        ):
            return found
    return None


def _table_of_codecs(settings: Any) -> dict[Any, Any] | None:
    """Find the table of registered codecs: the one that changes when a codec is registered."""
    tables = [
        table
        for owner in gc.get_referents(settings)
        if type(owner).__name__ == _OWNER_OF_CODECS
        for table in gc.get_referents(owner)
        if type(table) is dict
    ]
    with contextlib.suppress(AttributeError, TypeError):
        settings.add_python_codec(_NO_TYPE, "none", "none", [], "scalar", str, str, "text")
        found = [table for table in tables if any(oid == _NO_TYPE for oid, _ in table)]
        settings.remove_python_codec(_NO_TYPE, "none", "none")
        return found[0] if found else None
    return None
