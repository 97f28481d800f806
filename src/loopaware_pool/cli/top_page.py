"""What `top` tells of a snapshot, and of the one before it: tables of words. Pure: what is given is all it knows."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from loopaware_pool.stats import Counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loopaware_pool.live_snapshot import PoolSnapshot, Snapshot
    from loopaware_pool.stats import ConnectionReport, LoopStats, PoolStats

__all__ = ["Page", "Table", "as_text", "make_page"]

_GAP: Final = "  "
_UNKNOWN: Final = "-"
_LONGEST_PLACE: Final = 60


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


def make_page(pool: PoolSnapshot, before: PoolSnapshot | None, seconds: float, *, most_holders: int) -> Page:
    """
    Tell of one pool.

    Args:
        pool: As it is now.
        before: As it was; None if nobody looked. Then all numbers are since the pool was made.
        seconds: How long ago that was.
        most_holders: How many leases are listed.
    """
    earlier = before.stats if before is not None else None
    if seconds <= 0:
        earlier = None
    leases = sorted((row for row in pool.connections if row.lease is not None), key=_held, reverse=True)
    tables = [_states(pool.stats), _activity(pool.stats, earlier, seconds)]
    if len(pool.stats.loops) > 1:
        tables.append(_loops(pool.stats, earlier, seconds))
    if leases:
        tables.append(_holders(leases[:most_holders]))
    left_out = len(leases) - most_holders
    return Page(
        f"pool {_printable(pool.stats.name)}",
        tuple(tables),
        f"and {left_out} more" if left_out > 0 else "" if leases else "no connection is lent",
    )


def pairs(now: Snapshot, before: Snapshot | None) -> list[tuple[PoolSnapshot, PoolSnapshot | None]]:
    """Put each pool beside what it was before: those of one process that have the same name, in their order."""
    left = [*before.pools] if before is not None and before.pid == now.pid else []
    found: list[tuple[PoolSnapshot, PoolSnapshot | None]] = []
    for pool in now.pools:
        match = next((other for other in left if other.stats.name == pool.stats.name), None)
        if match is not None:
            left.remove(match)
        found.append((pool, match))
    return found


def make_pages(now: Snapshot, before: Snapshot | None, *, most_holders: int) -> list[Page]:
    """Tell of all pools; see `make_page`."""
    seconds = now.monotonic - before.monotonic if before is not None else 0.0
    return [make_page(pool, earlier, seconds, most_holders=most_holders) for pool, earlier in pairs(now, before)]


def heading(now: Snapshot, address: str) -> str:
    """Tell in a line whose pools these are."""
    at = time.strftime("%H:%M:%S", time.localtime(now.time))
    return f"{at}  process {now.pid} at {address}" + ("" if now.pools else ": no pool is left")


def as_text(page: Page) -> str:
    """Write *page* in plain lines."""
    blocks = ["\n".join(_lines(table)) for table in page.tables]
    return "\n\n".join([page.title, *blocks]) + (f"\n{page.footnote}" if page.footnote else "")


# ---- tables ----


def _states(stats: PoolStats) -> Table:
    counts = (
        f"{stats.lent}/{stats.max_size}",
        *(f"{sum(getattr(loop, name) for loop in stats.loops)}" for name in _STATES[1:]),
    )
    return Table(_STATES, (counts,))


_STATES: Final = ("lent", "idle", "connecting", "resetting", "closing", "waiting")
_EVENTS: Final = ("acquired", "waited", "timed out", "refused", "cancelled", "opened", "closed", "errors")


def _activity(stats: PoolStats, earlier: PoolStats | None, seconds: float) -> Table:
    now, then = _total(stats), Counters() if earlier is None else _total(earlier)
    passed = _difference(now, then)
    ended = passed.acquired - stats.lent + (0 if earlier is None else earlier.lent)
    counts = (
        passed.acquired,
        passed.waited,
        passed.timed_out,
        passed.refused + passed.shed,
        passed.cancelled,
        passed.opened,
        passed.closed,
        passed.connect_failures + passed.reset_failures + passed.returned_dead,
    )
    figures = (
        *(f"{count:,}" if earlier is None else _rate(count, seconds) for count in counts),
        _mean(passed.waited_seconds, passed.waited),
        _mean(passed.used_seconds, ended),
    )
    unit = "" if earlier is None else "/s"
    return Table((*(f"{name}{unit}" for name in _EVENTS), "mean wait", "mean use"), (figures,))


def _loops(stats: PoolStats, earlier: PoolStats | None, seconds: float) -> Table:
    then = {} if earlier is None else {loop.loop: loop.counters.acquired for loop in earlier.loops}

    def row(loop: LoopStats) -> tuple[str, ...]:
        acquired = loop.counters.acquired
        count = f"{acquired:,}" if earlier is None else _rate(acquired - then.get(loop.loop, 0), seconds)
        return (*(f"{getattr(loop, name)}" for name in _STATES), count, _printable(loop.loop))

    unit = "" if earlier is None else "/s"
    return Table((*_STATES, f"acquired{unit}", "loop"), tuple(map(row, stats.loops)), words=1)


def _holders(leases: Sequence[ConnectionReport]) -> Table:
    return Table(("held for", "fd", "task", "acquired at", "loop"), tuple(map(_holder, leases)), words=3)


def _holder(row: ConnectionReport) -> tuple[str, ...]:
    lease = row.lease
    task = _UNKNOWN if lease is None else lease.task or "(has ended)"
    where = _UNKNOWN if lease is None or lease.where is None else lease.where
    fd = _UNKNOWN if row.identity is None else f"{row.identity.fd}"
    return _age(_held(row)), fd, _printable(task), _shorten(_printable(where)), _printable(row.loop)


def _held(row: ConnectionReport) -> float:
    return 0.0 if row.lease is None else row.lease.held_seconds


# ---- figures ----


def _total(stats: PoolStats) -> Counters:
    parts = [stats.ended, *(loop.counters for loop in stats.loops)]
    return Counters(**{name: sum(getattr(part, name) for part in parts) for name in _names()})


def _difference(now: Counters, then: Counters) -> Counters:
    """Never below zero: the numbers of a loop that is ending are, for a moment, in neither place."""
    return Counters(**{name: max(getattr(now, name) - getattr(then, name), 0) for name in _names()})


def _names() -> Iterable[str]:
    return (field.name for field in fields(Counters))


def _rate(count: int, seconds: float) -> str:
    rate = max(count, 0) / seconds
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


def _printable(text: str) -> str:
    """Let no name of a task send commands to the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _shorten(place: str) -> str:
    """Keep the end, which tells more: the line and the function."""
    return place if len(place) <= _LONGEST_PLACE else "..." + place[3 - _LONGEST_PLACE :]


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
