"""What `top` tells of a snapshot, and of the one before it, as rich draws it. Pure: what is given is all it knows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.columns import Columns
from rich.console import Group
from rich.table import Table
from rich.text import Text

from loopaware_pool.cli.output import in_one_line
from loopaware_pool.stats import Counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from loopaware_pool.live.snapshot import PoolSnapshot, Snapshot
    from loopaware_pool.stats import ConnectionReport, LoopStats, PoolStats

__all__ = ["Room", "make_page"]

_UNKNOWN: Final = "-"
_GAP: Final = 2
_STATES: Final = ("lent", "idle", "connecting", "resetting", "closing", "waiting")
_WORRYING: Final = ("waiting", "timed out", "refused", "errors")
_NOTHING: Final = ("0", _UNKNOWN)


@dataclass(frozen=True, slots=True)
class Room:
    """How much there is room for."""

    holders: int  # leases of a pool that are listed
    place: int  # characters of a file, line and function; the end tells more


def make_page(now: Snapshot, before: Snapshot | None, address: str, room: Room, *, hint: str = "") -> RenderableType:
    """
    Tell of all pools.

    Args:
        now: As they are.
        before: As they were; None for the first look. Then what has happened is counted since each pool was made.
        address: Where the view is served.
        room: How much there is room for.
        hint: What the first line begins with.
    """
    at = time.strftime("%H:%M:%S", time.localtime(now.time))
    nothing = "" if now.pools else ": no pool is left"
    head = f"{hint}{at}  process {now.pid} at {in_one_line(address)}{nothing}"
    seconds = now.monotonic - before.monotonic if before is not None else 0.0
    parts = (part for pool, earlier in _pairs(now, before) for part in _pool(pool, earlier, seconds, room))
    return Group(Text(head, style="dim", no_wrap=True, overflow="ellipsis"), *parts)


# ---- pools ----


def _pairs(now: Snapshot, before: Snapshot | None) -> list[tuple[PoolSnapshot, PoolSnapshot | None]]:
    """Put each pool beside what it was before: those of one process that have the same name, in their order."""
    left = [*before.pools] if before is not None and before.pid == now.pid else []
    found: list[tuple[PoolSnapshot, PoolSnapshot | None]] = []
    for pool in now.pools:
        match = next((other for other in left if other.stats.name == pool.stats.name), None)
        if match is not None:
            left.remove(match)
        found.append((pool, match))
    return found


def _pool(pool: PoolSnapshot, before: PoolSnapshot | None, seconds: float, room: Room) -> Iterator[RenderableType]:
    """Tell of one pool: states, what has happened, loops if there are several, and who holds connections."""
    earlier = before.stats if before is not None and seconds > 0 else None
    has_loops = len(pool.stats.loops) > 1
    leases = sorted((row for row in pool.connections if row.lease is not None), key=_held, reverse=True)
    yield Text(f"\npool {in_one_line(pool.stats.name)}", style="bold cyan")
    yield _figures(_states(pool.stats, earlier))
    yield Text()
    yield _figures(_activity(pool.stats, earlier, seconds))
    if has_loops:
        yield Text()
        yield _loops(pool.stats, earlier, seconds)
    if leases:
        yield Text()
        yield _holders(leases[: room.holders], room.place, has_loops=has_loops)
    left_out = len(leases) - room.holders
    if not leases or left_out > 0:
        yield Text(f"and {left_out} more" if leases else "no connection is lent", style="dim")


def _figures(figures: dict[str, str]) -> Columns:
    """Show each figure below its name: where it is narrow, rich puts those that do not fit below the others."""
    parts = (
        Text.assemble((f"{name}\n", "dim"), _cell(name, figure), justify="right") for name, figure in figures.items()
    )
    return Columns(parts, padding=(0, _GAP))


def _cell(header: str, word: str) -> Text:
    is_worrying = header in _WORRYING and word not in _NOTHING
    return Text(word, style="bold red" if is_worrying else "", no_wrap=True, overflow="ellipsis")


def _states(stats: PoolStats, earlier: PoolStats | None) -> dict[str, str]:
    passed = _passed(stats, earlier)
    ended = passed.acquired - stats.lent + (0 if earlier is None else earlier.lent)
    states = {name: f"{sum(getattr(loop, name) for loop in stats.loops)}" for name in _STATES}
    return {
        **states,
        "lent": f"{stats.lent}/{stats.max_size}",
        "mean wait": _mean(passed.waited_seconds, passed.waited),
        "mean use": _mean(passed.used_seconds, ended),
    }


def _activity(stats: PoolStats, earlier: PoolStats | None, seconds: float) -> dict[str, str]:
    passed = _passed(stats, earlier)
    counts = {
        "acquired": passed.acquired,
        "waited": passed.waited,
        "timed out": passed.timed_out,
        "refused": passed.refused + passed.shed,
        "opened": passed.opened,
        "closed": passed.closed,
        "errors": passed.connect_failures + passed.reset_failures + passed.returned_dead,
    }
    if earlier is None:
        return {name: f"{count:,}" for name, count in counts.items()} | {"": "so far"}
    return {name: _rate(count, seconds) for name, count in counts.items()} | {"": "per second"}


# ---- tables ----


def _loops(stats: PoolStats, earlier: PoolStats | None, seconds: float) -> Table:
    then = {} if earlier is None else {loop.loop: loop.counters.acquired for loop in earlier.loops}

    def row(loop: LoopStats) -> tuple[str, ...]:
        acquired = loop.counters.acquired
        count = f"{acquired:,}" if earlier is None else _rate(acquired - then.get(loop.loop, 0), seconds)
        return (*(f"{getattr(loop, name)}" for name in _STATES), count, in_one_line(loop.loop))

    return _table((*_STATES, "acquired"), ("loop",), map(row, stats.loops))


def _holders(leases: Sequence[ConnectionReport], place: int, *, has_loops: bool) -> Table:
    words = ("task", "acquired at", "loop") if has_loops else ("task", "acquired at")
    return _table(("held for", "fd"), words, (_holder(row, place) for row in leases))


def _table(figures: Sequence[str], words: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Make a table of columns that hold figures, and of columns that hold words and shrink first where it is narrow."""
    headers = [*figures, *words]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    for name in words:
        table.add_column(name, overflow="ellipsis")
    for row in rows:
        table.add_row(*(_cell(header, word) for header, word in zip(headers, row, strict=False)))
    return table


def _holder(row: ConnectionReport, place: int) -> tuple[str, ...]:
    lease = row.lease
    task = _UNKNOWN if lease is None else lease.task or "(has ended)"
    where = _UNKNOWN if lease is None or lease.where is None else in_one_line(lease.where)
    fd = _UNKNOWN if row.identity is None else f"{row.identity.fd}"
    shown = where if len(where) <= place else f"...{where[len(where) - place + 3 :]}"
    return _age(_held(row)), fd, in_one_line(task), shown, in_one_line(row.loop.partition(" ")[0])


def _held(row: ConnectionReport) -> float:
    return 0.0 if row.lease is None else row.lease.held_seconds


# ---- figures ----


def _passed(stats: PoolStats, earlier: PoolStats | None) -> Counters:
    """
    Count what has happened since *earlier*, on all loops.

    Never below zero: the numbers of a loop that is ending are, for a moment, in neither place.
    """
    return stats.totals.minus(Counters() if earlier is None else earlier.totals)


def _rate(count: int, seconds: float) -> str:
    rate = count / seconds
    return "0" if rate == 0 else f"{rate:.1f}" if rate < 10 else f"{rate:,.0f}"


def _mean(seconds: float, count: int) -> str:
    return _UNKNOWN if count <= 0 else _age(seconds / count)


def _age(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
