"""What a live view shows: the pools of a process at one moment. Also its JSON form."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Protocol, get_args, get_origin, get_type_hints

from loopaware_pool._platform.sockets import SocketIdentity
from loopaware_pool.stats import ConnectionReport, PoolStats

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SCHEMA", "ForeignSnapshot", "PoolSnapshot", "Snapshot", "Viewed"]

# Increased when a field changes its meaning or is removed; not when one is added.
SCHEMA: Final = 1

# The most that is believed of a number: an inode's has 64 bits; 30,000 years are seconds enough.
_LARGEST: Final = {int: 2.0**64, float: 1e12}
# Of what is in a snapshot: some are imported for types only where they are named.
_NAMES: Final = {kind.__name__: kind for kind in (ConnectionReport, PoolStats, SocketIdentity)}


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
            if schema == SCHEMA:
                snapshot: Snapshot = _read(cls, data)
                return snapshot
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ForeignSnapshot("it is not a snapshot of pools") from error
        raise ForeignSnapshot(f"it is of schema {schema!r}, and this release understands {SCHEMA}")


def _read(kind: Any, data: Any) -> Any:
    """
    Make a *kind*, a dataclass or another annotation, of parsed JSON. Fields that this release lacks are left out.

    Raises:
        AttributeError, TypeError, ValueError: The data does not fit. A stranger may send anything, and the values are
            used in arithmetic.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{name: _read(hints[name], value) for name, value in data.items() if name in hints})
    if get_origin(kind) in (tuple, list):
        return get_origin(kind)(_read(get_args(kind)[0], each) for each in data)
    if get_origin(kind) is dict:
        return {_read(str, key): _read(get_args(kind)[1], each) for key, each in data.items()}
    if get_origin(kind) is UnionType:
        return None if data is None else _read(get_args(kind)[0], data)
    if not isinstance(data, (int, float) if kind is float else kind) or (
        kind in _LARGEST and not abs(data) <= _LARGEST[kind]
    ):
        raise TypeError(f"{data!r} is no {kind.__name__}")
    return data


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, localns=_NAMES)
