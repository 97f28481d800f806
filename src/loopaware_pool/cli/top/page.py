"""What `top` tells of a snapshot, and of the one before it: tables of words. Pure: what is given is all it knows."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.output import in_one_line
from loopaware_pool.stats import Counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loopaware_pool.live.snapshot import PoolSnapshot, Snapshot
    from loopaware_pool.stats import ConnectionReport, LoopStats, PoolStats

__all__ = ["Page", "Room", "Table", "as_text", "heading", "make_pages"]

_GAP: Final = "  "
_UNKNOWN: Final = "-"
_STATES: Final = ("lent", "idle", "connecting", "resetting", "closing", "waiting")
_EVENTS: Final = ("acquired", "waited", "timed out", "refused", "opened", "closed", "errors")


@dataclass(frozen=True, slots=True)
class Table:
    """
    Words in rows and columns.

    Attributes:
        headers: One for each column.
        rows: As many words each.
        words: How many columns, from the last, hold words; those before them hold figures.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """
    What is to be shown of one pool.

    Attributes:
        title: One line.
        tables: States, what has happened, loops if there are several, and who holds connections.
        footnote: What the last table leaves out; empty if nothing.
    """

    title: str
    tables: tuple[Table, ...]
    footnote: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """
    How much there is room for.

    Attributes:
        holders: How many leases of a pool are listed.
        place: How many characters of a file, line and function; the end tells more.
    """

    holders: int
    place: int


def make_pages(now: Snapshot, before: Snapshot | None, room: Room) -> list[Page]:
    """
    Tell of all pools.

    Args:
        now: As they are.
        before: As they were; None if nobody looked. Then what has happened is counted since each pool was made.
        room: How much there is room for.
    """
    seconds = now.monotonic - before.monotonic if before is not None else 0.0
    return [_make_page(pool, earlier, seconds, room) for pool, earlier in _pairs(now, before)]


def heading(now: Snapshot, address: str) -> str:
    """Tell in a line whose pools these are."""
    at = time.strftime("%H:%M:%S", time.localtime(now.time))
    return f"{at}  process {now.pid} at {in_one_line(address)}" + ("" if now.pools else ": no pool is left")


def as_text(page: Page) -> str:
    """Write *page* in plain lines."""
    blocks = ["\n".join(_lines(table)) for table in page.tables]
    return "\n\n".join([page.title, *blocks]) + (f"\n{page.footnote}" if page.footnote else "")


# ---- pages ----


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


def _make_page(pool: PoolSnapshot, before: PoolSnapshot | None, seconds: float, room: Room) -> Page:
    earlier = before.stats if before is not None and seconds > 0 else None
    leases = sorted((row for row in pool.connections if row.lease is not None), key=_held, reverse=True)
    tables = [_states(pool.stats, earlier), _activity(pool.stats, earlier, seconds)]
    if len(pool.stats.loops) > 1:
        tables.append(_loops(pool.stats, earlier, seconds))
    if leases:
        tables.append(_holders(leases[: room.holders], room.place, has_loops=len(pool.stats.loops) > 1))
    left_out = len(leases) - room.holders
    footnote = f"and {left_out} more" if left_out > 0 else "" if leases else "no connection is lent"
    return Page(f"pool {in_one_line(pool.stats.name)}", tuple(tables), footnote)


# ---- tables ----


def _states(stats: PoolStats, earlier: PoolStats | None) -> Table:
    passed = _passed(stats, earlier)
    ended = passed.acquired - stats.lent + (0 if earlier is None else earlier.lent)
    counts = (
        f"{stats.lent}/{stats.max_size}",
        *(f"{sum(getattr(loop, name) for loop in stats.loops)}" for name in _STATES[1:]),
        _mean(passed.waited_seconds, passed.waited),
        _mean(passed.used_seconds, ended),
    )
    return Table((*_STATES, "mean wait", "mean use"), (counts,))


def _activity(stats: PoolStats, earlier: PoolStats | None, seconds: float) -> Table:
    passed = _passed(stats, earlier)
    counts = (
        passed.acquired,
        passed.waited,
        passed.timed_out,
        passed.refused + passed.shed,
        passed.opened,
        passed.closed,
        passed.connect_failures + passed.reset_failures + passed.returned_dead,
    )
    if earlier is None:
        return Table((*_EVENTS, ""), ((*(f"{count:,}" for count in counts), "so far"),), words=1)
    return Table((*_EVENTS, ""), ((*(_rate(count, seconds) for count in counts), "per second"),), words=1)


def _loops(stats: PoolStats, earlier: PoolStats | None, seconds: float) -> Table:
    then = {} if earlier is None else {loop.loop: loop.counters.acquired for loop in earlier.loops}

    def row(loop: LoopStats) -> tuple[str, ...]:
        acquired = loop.counters.acquired
        count = f"{acquired:,}" if earlier is None else _rate(acquired - then.get(loop.loop, 0), seconds)
        return (*(f"{getattr(loop, name)}" for name in _STATES), count, in_one_line(loop.loop))

    return Table((*_STATES, "acquired", "loop"), tuple(map(row, stats.loops)), words=1)


def _holders(leases: Sequence[ConnectionReport], place: int, *, has_loops: bool) -> Table:
    words = 3 if has_loops else 2
    rows = tuple(_holder(row, place)[: 2 + words] for row in leases)
    return Table(("held for", "fd", "task", "acquired at", "loop")[: 2 + words], rows, words)


def _holder(row: ConnectionReport, place: int) -> tuple[str, ...]:
    lease = row.lease
    task = _UNKNOWN if lease is None else lease.task or "(has ended)"
    where = _UNKNOWN if lease is None or lease.where is None else lease.where
    fd = _UNKNOWN if row.identity is None else f"{row.identity.fd}"
    return (
        _age(_held(row)),
        fd,
        in_one_line(task),
        _shorten(in_one_line(where), place),
        in_one_line(row.loop.partition(" ")[0]),
    )


def _held(row: ConnectionReport) -> float:
    return 0.0 if row.lease is None else row.lease.held_seconds


# ---- figures ----


def _passed(stats: PoolStats, earlier: PoolStats | None) -> Counters:
    """
    Count what has happened since *earlier*, on all loops.

    Never below zero: the numbers of a loop that is ending are, for a moment, in neither place.
    """
    now, then = _total(stats), Counters() if earlier is None else _total(earlier)
    return Counters(**{name: max(getattr(now, name) - getattr(then, name), 0) for name in _names()})


def _total(stats: PoolStats) -> Counters:
    parts = [stats.ended, *(loop.counters for loop in stats.loops)]
    return Counters(**{name: sum(getattr(part, name) for part in parts) for name in _names()})


def _names() -> Iterable[str]:
    return (field.name for field in fields(Counters))


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


# ---- words ----


def _shorten(place: str, length: int) -> str:
    """Keep the end."""
    return place if len(place) <= length else "..." + place[len(place) - length + 3 :]


def _lines(table: Table) -> list[str]:
    rows = (table.headers, *table.rows)
    widths = [max(len(row[number]) for row in rows) for number in range(len(table.headers))]
    figures = len(widths) - table.words

    def line(row: tuple[str, ...]) -> str:
        cells = (
            word.rjust(width) if number < figures else word.ljust(width)
            for number, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        return _GAP.join(cells).rstrip()

    return [line(row) for row in rows]
