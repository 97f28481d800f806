"""`top` on a terminal, by rich: once, or until a key ends it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from time import monotonic
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from loopaware_pool.cli.command import PIECE_SECONDS, pause
from loopaware_pool.cli.console import VisibleConsole
from loopaware_pool.cli.top.page import Room, Table, heading, make_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from loopaware_pool.cli.top.page import Page
    from loopaware_pool.cli.top.source import Source
    from loopaware_pool.live.snapshot import Snapshot

__all__ = ["print_once", "watch"]

# What a pool's page takes besides its leases and loops: a title, four lines of tables, blank ones, headers, a footnote.
_LINES_OF_A_POOL: Final = 11
_LINES_OF_THE_HEAD: Final = 1
_FEWEST_HOLDERS: Final = 3
# What a row takes besides the place of its acquire, if names are not long.
_COLUMNS_OF_A_HOLDER: Final = 42
_SHORTEST_PLACE: Final = 20
_WORRYING: Final = ("waiting", "timed out", "refused", "errors")
_NOTHING: Final = ("0", "-")
_GAP: Final = 2
# A table that has as many columns of words gives their room to its figures.
_WORDS_THAT_SHRINK: Final = 2


def print_once(source: Source) -> None:
    """Print what there is to see now."""
    console = VisibleConsole()
    console.print(_render(source, source.fetch(), None, Room(sys.maxsize, _place(console.width)), console.width))


def watch(source: Source, interval: float) -> None:
    """
    Show the pools on the whole terminal, until q is pressed.

    Args:
        source: Where to look.
        interval: Seconds from one look to the next.

    Raises:
        NoView: There is none, or none any more. The terminal is as it was.
    """
    now, before = source.fetch(), None
    console = VisibleConsole()
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            room = Room(_holders(console.height, now), _place(console.width))
            view = _render(source, now, before, room, console.width, has_keys=keys is not None)
            live.update(view, refresh=True)
            if _is_ended(keys, interval):
                return
            now, before = source.fetch(), now


def _holders(height: int, now: Snapshot) -> int:
    """How many leases of each pool there is room for."""
    loops = sum(len(pool.stats.loops) + 2 for pool in now.pools if len(pool.stats.loops) > 1)
    lines = (height - _LINES_OF_THE_HEAD - loops) // max(len(now.pools), 1)
    return max(lines - _LINES_OF_A_POOL, _FEWEST_HOLDERS)


def _place(width: int) -> int:
    return max(width - _COLUMNS_OF_A_HOLDER, _SHORTEST_PLACE)


# ---- looks ----


def _render(
    source: Source, now: Snapshot, before: Snapshot | None, room: Room, width: int, *, has_keys: bool = False
) -> RenderableType:
    keys = "q ends  " if has_keys else ""
    head = Text(keys + heading(now, str(source.address)), style="dim", no_wrap=True, overflow="ellipsis")
    return Group(head, *(part for page in make_pages(now, before, room) for part in _page(page, width)))


def _page(page: Page, width: int) -> Iterator[RenderableType]:
    yield Text()
    yield Text(page.title, style="bold cyan")
    for number, table in enumerate(page.tables):
        if number:
            yield Text()
        for part in _parts(table, width):
            yield _table(part)
    if page.footnote:
        yield Text(page.footnote, style="dim")


def _parts(table: Table, width: int) -> Iterator[Table]:
    """Cut a table of figures into such as fit, one below the other: a figure of which a part is missing is none."""
    columns = [*zip(table.headers, *table.rows, strict=True)]
    begin, used = 0, 0
    for number, column in enumerate(columns):
        widest = max(map(len, column)) + _GAP
        if used + widest > width + _GAP and used and table.words < _WORDS_THAT_SHRINK:
            yield Table(table.headers[begin:number], tuple(row[begin:number] for row in table.rows))
            begin, used = number, 0
        used += widest
    yield Table(table.headers[begin:], tuple(row[begin:] for row in table.rows), table.words)


def _table(table: Table) -> RichTable:
    made = RichTable(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    figures = len(table.headers) - table.words
    for number, header in enumerate(table.headers):
        # Where it is narrow, rich takes from columns that may wrap; the cells of these have an ellipsis instead.
        least = max(map(len, (header, *(row[number] for row in table.rows)))) if number < figures else None
        made.add_column(
            header, justify="right" if number < figures else "left", no_wrap=number < figures, min_width=least
        )
    for row in table.rows:
        made.add_row(*(_cell(header, word) for header, word in zip(table.headers, row, strict=True)))
    return made


def _cell(header: str, word: str) -> Text:
    is_worrying = header.startswith(_WORRYING) and word not in _NOTHING
    return Text(word, style="bold red" if is_worrying else "", no_wrap=True, overflow="ellipsis")


# ---- keys ----


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Have the terminal hand over keys one by one, unechoed; None if there is none to do so."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        yield None
        return
    if not sys.stdin.isatty():
        yield None
        return
    terminal = sys.stdin.fileno()
    attributes = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, attributes)


def _is_ended(keys: int | None, seconds: float) -> bool:
    """Let *seconds* pass, unless a key ends it all: whether one did."""
    if keys is None:
        pause(seconds)
        return False
    end = monotonic() + seconds
    while (left := end - monotonic()) > 0:
        if select.select([keys], [], [], min(left, PIECE_SECONDS))[0] and os.read(keys, 1) in (b"q", b"Q", b""):
            return True
    return False
