"""What was returned or raised, in words that do not depend on the pool, the process or the moment."""

from __future__ import annotations

import enum
import io
import re
from collections.abc import Mapping
from typing import Any

import asyncpg
import psycopg

from loopaware_pool.psycopg import LoopAwareConnection

__all__ = ["Describer", "name_of_class"]

_ADDRESS = re.compile(r"0x[0-9a-f]+")
_OURS = "loopaware_pool"
_UNIQUE_NAME = re.compile(r"__asyncpg_\w+?_[0-9a-f]+__|(pool|differential|_pg3_)-?\d+")
_FUNCTION = re.compile(r"<function (\S+) at 0x[0-9a-f]+>")
_OUR_CONNECTION = f"{LoopAwareConnection.__module__}.{LoopAwareConnection.__qualname__}"
# How the names of what differs each time end: durations, and what a plan that was executed has read.
_CHANCE = ("_ms", " Time", " Blocks")
# From here on the server numbers what programs make, anew in each run.
_FIRST_OWN_OID = 16384
_PLAIN = (type(None), bool, int, float, str, bytes)
# Of an error of the server's: what is told of it, beside its message. Not the file and line of PostgreSQL's source.
_DETAILS = ("sqlstate", "detail", "hint", "constraint_name", "table_name", "column_name")


def is_ours(kind: type) -> bool:
    """Whether a class is of this project."""
    return kind.__module__.partition(".")[0] == _OURS


def name_of_class(kind: type) -> str:
    """Its own name, or that of its next base which is not of this project."""
    nearest = next(base for base in kind.__mro__ if not is_ours(base) and base.__name__ != "Generic")
    return nearest.__name__


def _is_context(value: Any) -> bool:
    """Whether it is but a context manager, such as the one that lends a connection."""
    return hasattr(value, "__aenter__") and not hasattr(value, "execute")


class Describer:
    """
    Describes the values of one run.

    Args:
        sessions: The number of each session, by the process id of its server process.
    """

    def __init__(self, sessions: dict[int, int]) -> None:
        self._sessions = sessions

    def value(self, value: Any) -> Any:
        """Describe what was returned; the description can be compared, and written as JSON."""
        if isinstance(value, enum.Enum):
            return f"{type(value).__name__}.{value.name}"
        if isinstance(value, int) and not isinstance(value, bool) and value in self._sessions:
            return self.pid(value)
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, _PLAIN):
            return value
        return self._composed(value)

    def pid(self, pid: int) -> str:
        """Describe the process id of a session that notifies, which may not have been lent yet."""
        return f"<pid {self._sessions.get(pid, 'of no lease')}>"

    def _composed(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            return self.error(value)
        if isinstance(value, psycopg.Notify):
            return [value.channel, value.payload, self.pid(value.pid)]
        if isinstance(value, asyncpg.Record):
            return [type(value).__name__, [[name, self.value(one)] for name, one in value.items()]]
        if isinstance(value, asyncpg.Type) and value.oid >= _FIRST_OWN_OID:
            return ["<oid>", *self.value(value[1:])]
        if isinstance(value, Mapping):
            return {str(name): self.value(one) for name, one in value.items() if not str(name).endswith(_CHANCE)}
        if isinstance(value, tuple | list):
            return [self.value(one) for one in value]
        if isinstance(value, io.BytesIO):
            return repr(value.getvalue())
        return "a context" if _is_context(value) else f"a {name_of_class(type(value))}"

    def text(self, text: str) -> str:
        """Take out of a text what differs each time."""
        text = _FUNCTION.sub(r"\1", text.replace(_OUR_CONNECTION, "psycopg.AsyncConnection"))
        text = _UNIQUE_NAME.sub("<name>", _ADDRESS.sub("<address>", text))
        for pid, number in self._sessions.items():
            text = re.sub(rf"\b{pid}\b", f"<pid {number}>", text)
        return text

    def error(self, error: BaseException) -> dict[str, Any]:
        """Describe what was raised: the class, upstream's; the message, unless the class is this project's own."""
        told: dict[str, Any] = {"raised": name_of_class(type(error))}
        if is_ours(type(error)):
            told["is"] = [base.__name__ for base in type(error).__mro__ if not is_ours(base)]
        if not is_ours(type(error)):
            told["message"] = self.text(str(error))
        source = error.diag if isinstance(error, psycopg.Error) else error
        return told | {name: self.text(found) for name in _DETAILS if (found := getattr(source, name, None))}
