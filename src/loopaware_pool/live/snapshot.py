"""What a live view shows: the pools of a process at one moment, and the same as JSON."""

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

# Grows when something that was there means something else, or is gone; not when something is added.
SCHEMA: Final = 1

_TEXTS: Final = "tuple[str, ...]"
# By the annotations of what a snapshot is made of.
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
    """A pool, as far as a live view asks it. Both are called from another thread than the loops'."""

    def stats(self) -> PoolStats: ...

    def fd_report(self) -> list[ConnectionReport]: ...


class ForeignSnapshot(ValueError):
    """What was read is no snapshot, or one of another version."""


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
        schema: Version of this shape.
        pid: Of the process they are in.
        time: When, in seconds since 1970.
        monotonic: The same by that process's monotonic clock, in seconds: for rates between two snapshots.
        pools: In the order in which they were given, those left out that nobody has any more.
    """

    schema: int
    pid: int
    time: float
    monotonic: float
    pools: tuple[PoolSnapshot, ...]

    @classmethod
    def take(cls, pools: Iterable[Viewed]) -> Snapshot:
        """Look at *pools* now. Waits for no loop."""
        seen = tuple(PoolSnapshot(pool.stats(), tuple(pool.fd_report())) for pool in pools)
        return cls(SCHEMA, os.getpid(), time.time(), time.monotonic(), seen)

    def to_json(self) -> str:
        """Write it in one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Snapshot:
        """
        Read what `to_json` has written, by this release or by another.

        Raises:
            ForeignSnapshot: It has written something else.
        """
        try:
            data = json.loads(text)
            schema = data["schema"]
            found = _make(cls, data, pools=tuple(map(_pool, data["pools"]))) if schema == SCHEMA else None
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ForeignSnapshot("it is not what a pool tells of itself") from error
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
    """Make a *kind* of what is known of *data*: another release may tell more."""
    known = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type] # all are dataclasses
    read = {name: value for name, value in data.items() if name in known and name not in parts}
    for name, value in read.items():
        _check_type(name, known[name], value)
    return kind(**read | parts)


def _check_type(name: str, annotation: Any, value: object) -> None:
    """
    Refuse what is no value of a field: a stranger may write anything, and what is shown is reckoned with.

    Raises:
        TypeError: Its type is another, or it is a number that nothing here comes to.
    """
    values = value if isinstance(value, list) and annotation == _TEXTS else [value]
    if not all(isinstance(each, _TYPES[annotation]) for each in values):
        raise TypeError(f"{name} is a {type(value).__name__}")
    if isinstance(value, (int, float)) and not abs(value) <= _LARGEST[annotation]:
        raise TypeError(f"{name} is {value}")
