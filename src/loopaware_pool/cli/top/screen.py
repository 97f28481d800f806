"""`top` by rich: look by look, or on a whole terminal until a key ends it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from time import monotonic
from typing import TYPE_CHECKING, Final

from rich.live import Live

from loopaware_pool.cli.command import PIECE_SECONDS, pause
from loopaware_pool.cli.console import VisibleConsole
from loopaware_pool.cli.top.page import Room, make_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopaware_pool.cli.top.source import Source
    from loopaware_pool.live.snapshot import Snapshot

__all__ = ["show", "watch"]

# What a pool takes besides its leases and loops: a title, four lines of figures, blank ones, headers, a footnote.
_LINES_OF_A_POOL: Final = 11
_LINES_OF_THE_HEAD: Final = 1
_FEWEST_HOLDERS: Final = 3
# What a row takes besides the place of its acquire, if names are not long.
_COLUMNS_OF_A_HOLDER: Final = 42
_SHORTEST_PLACE: Final = 20
# No line of what is read by another program is cut.
_UNBOUNDED: Final = 100_000


def show(source: Source, now: Snapshot, before: Snapshot | None) -> None:
    """Print one look: on a terminal as wide as that, and else in plain lines that leave nothing out."""
    console = VisibleConsole() if sys.stdout.isatty() else VisibleConsole(width=_UNBOUNDED, color_system=None)
    console.print(make_page(now, before, str(source.address), Room(sys.maxsize, _place(console.width))))


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
            hint = "" if keys is None else "q ends  "
            live.update(make_page(now, before, str(source.address), room, hint=hint), refresh=True)
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
