"""What a live view shows: the pools of a process at one moment, and the same as JSON."""

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

# Grows when something that was there means something else, or is gone; not when something is added.
SCHEMA: Final = 1

# The most that is believed of a number: an inode's has 64 bits; 30,000 years are seconds enough.
_LARGEST: Final = {int: 2.0**64, float: 1e12}
# Of what is in a snapshot: some are imported for types only where they are named.
_NAMES: Final = {kind.__name__: kind for kind in (ConnectionReport, PoolStats, SocketIdentity)}


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
            if schema == SCHEMA:
                snapshot: Snapshot = _read(cls, data)
                return snapshot
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ForeignSnapshot("it is not what a pool tells of itself") from error
        raise ForeignSnapshot(f"it is of schema {schema!r}, and this release understands {SCHEMA}")


def _read(kind: Any, data: Any) -> Any:
    """
    Make a *kind*, which is a dataclass or another annotation, of what JSON has made; another release may tell more.

    Raises:
        AttributeError, TypeError: It is something else: a stranger may write anything, and this is reckoned with.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{name: _read(hints[name], value) for name, value in data.items() if name in hints})
    if get_origin(kind) is tuple:
        return tuple(_read(get_args(kind)[0], each) for each in data)
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
