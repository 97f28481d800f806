"""What a live view shows: the pools of a process at one moment. Also its JSON form."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from loopaware_pool._platform.sockets import SocketIdentity
from loopaware_pool.stats import ConnectionReport, Counters, LeaseInfo, LoopStats, PoolStats

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SCHEMA", "ForeignSnapshot", "PoolSnapshot", "Snapshot", "Viewed"]

# Increased when a field changes its meaning or is removed; not when one is added.
SCHEMA: Final = 1

_TEXTS: Final = "tuple[str, ...]"
# The types of values, by the annotations of the fields.
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "int | None": (int, NoneType),
    "bool | None": (bool, NoneType),
    "str | None": (str, NoneType),
    _TEXTS: (str,),
}
# An inode's number has 64 bits; 30,000 years are seconds enough.
_LARGEST: Final = dict.fromkeys(_TYPES, 2.0**64) | {"float": 1e12}

T = TypeVar("T")


class Viewed(Protocol):
    """The part of a pool that a live view uses. It calls both methods from its own threads."""

    def stats(self) -> PoolStats: ...

    def fd_report(self) -> list[ConnectionReport]: ...


class ForeignSnapshot(ValueError):
    """The data are no snapshot, or one of another version."""


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """
    One pool.

    Attributes:
        stats: Its counts, loop by loop.
        connections: Its connections, in no order. A moment younger than the counts.
    """

    stats: PoolStats
    connections: tuple[ConnectionReport, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    All pools of a live view at one moment.

    Attributes:
        schema: Version of this format.
        pid: Id of the process they are in.
        time: When, in seconds since 1970.
        monotonic: The same by that process's monotonic clock, in seconds, for rates between two snapshots.
        pools: In the order in which they were given, without those that have been dropped.
    """

    schema: int
    pid: int
    time: float
    monotonic: float
    pools: tuple[PoolSnapshot, ...]

    @classmethod
    def take(cls, pools: Iterable[Viewed]) -> Snapshot:
        """Take a snapshot of *pools* now. Waits for no loop."""
        seen = tuple(PoolSnapshot(pool.stats(), tuple(pool.fd_report())) for pool in pools)
        return cls(SCHEMA, os.getpid(), time.time(), time.monotonic(), seen)

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Snapshot:
        """
        Parse the result of `to_json`, by this release or another.

        Raises:
            ForeignSnapshot: *text* is something else.
        """
        try:
            data = json.loads(text)
            schema = data["schema"]
            found = _make(cls, data, pools=tuple(map(_pool, data["pools"]))) if schema == SCHEMA else None
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ForeignSnapshot("it is not a snapshot of pools") from error
        if found is None:
            raise ForeignSnapshot(f"it is of schema {schema!r}, and this release understands {SCHEMA}")
        return found


def _pool(data: dict[str, Any]) -> PoolSnapshot:
    return PoolSnapshot(_stats(data["stats"]), tuple(map(_connection, data["connections"])))


def _stats(data: dict[str, Any]) -> PoolStats:
    loops = tuple(_make(LoopStats, loop, counters=_make(Counters, loop["counters"])) for loop in data["loops"])
    return _make(PoolStats, data, loops=loops, ended=_make(Counters, data["ended"]))


def _connection(data: dict[str, Any]) -> ConnectionReport:
    identity, lease = data["identity"], data["lease"]
    return _make(
        ConnectionReport,
        data,
        identity=None if identity is None else _make(SocketIdentity, identity),
        lease=None if lease is None else _make(LeaseInfo, lease),
    )


def _make(kind: type[T], data: dict[str, Any], **parts: object) -> T:
    """Make a *kind* from the fields of *data* that are known: another release may have more."""
    known = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type] # all are dataclasses
    read = {name: value for name, value in data.items() if name in known and name not in parts}
    for name, value in read.items():
        _check_type(name, known[name], value)
    return kind(**read | parts)


def _check_type(name: str, annotation: Any, value: object) -> None:
    """
    Refuse a value of the wrong type for a field: the other end may send anything, and the values are used in
    arithmetic.

    Raises:
        TypeError: It is of another type, or a number out of all proportion.
    """
    values = value if isinstance(value, list) and annotation == _TEXTS else [value]
    if not all(isinstance(each, _TYPES[annotation]) for each in values):
        raise TypeError(f"{name} is a {type(value).__name__}")
    if isinstance(value, (int, float)) and not abs(value) <= _LARGEST[annotation]:
        raise TypeError(f"{name} is {value}")
