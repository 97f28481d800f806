"""Draws the way of a lease, for `make_pages.py`: who calls whom, from the acquire to the parked socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from life_cycle import GROUND, INK, LINE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["draw_lease"]

ACTORS: Final = ("Caller", "Pool (flavour)", "Shard", "ShardRunner", "Session")
# A step: from whom, to whom, and what. With one actor, something that it does itself; without any, a heading.
STEPS: Final = (
    (0, 1, "acquire()"),
    (1, 2, "take(now)"),
    (2, 4, "liveness()"),
    (None, None, "a connection is idle and alive"),
    (2, 1, "slot, IDLE to LENT"),
    (None, None, "none is"),
    (1, 2, "enqueue(future), which may decide to open one"),
    (1, 3, "act()"),
    (3, 3, "connect, in a task of the pool; the caller awaits the future"),
    (2, 1, "slot, RESERVED"),
    (1, 2, "claim(slot), RESERVED to LENT"),
    (None, None, "in both cases"),
    (1, 0, "a new proxy"),
    (0, 4, "queries"),
    (0, 1, "release()"),
    (1, 4, "take_back(), which sends the reset"),
    (1, 2, "returned(slot, check)"),
    (None, None, "the next lease may begin"),
    (2, 2, "to the first waiter, or onto the idle stack"),
    (None, None, "the reset's answer must come first"),
    (2, 2, "RESETTING"),
    (4, 3, "settled()"),
    (3, 2, "reset_answered(slot)"),
    (None, None, "in both cases"),
    (1, 3, "act(), if anything is queued"),
    (3, 4, "park(), before the loop polls"),
)
WIDTH: Final = 880
GAP: Final = 185
ROW: Final = 27
TOP: Final = 66


def draw_lease() -> str:
    """Return the drawing, as SVG."""
    height = TOP + ROW * len(STEPS) + 20
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"',
        '  font-family="system-ui, Helvetica, Arial, sans-serif" font-size="13">',
        "<title>The way of a lease</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
        f'  <path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="{GROUND}"/>',
    ]
    for place, name in enumerate(ACTORS):
        x = _x(place)
        drawn += [
            f'<path d="M{x},46 L{x},{height - 14}" stroke="#c3ccd5" stroke-width="1.2"/>',
            f'<rect x="{x - 60}" y="14" width="120" height="32" rx="8" fill="#cfe2fb" stroke="{INK}"/>',
            f'<text x="{x}" y="35" text-anchor="middle" font-weight="600" fill="{INK}">{name}</text>',
        ]
    for row, step in enumerate(STEPS):
        drawn += _step(TOP + ROW * row, *step)
    return "\n".join([*drawn, "</svg>", ""])


def _x(place: int) -> int:
    return 75 + GAP * place


def _step(y: int, origin: int | None, target: int | None, what: str) -> Iterator[str]:
    if origin is None or target is None:
        yield f'<path d="M15,{y + 5} L{WIDTH - 15},{y + 5}" stroke="#c3ccd5" stroke-dasharray="4 4"/>'
        yield f'<rect x="15" y="{y - 5}" width="{len(what) * 7 + 16}" height="20" rx="4" fill="#ffe8b8"/>'
        yield f'<text x="23" y="{y + 9}" fill="{INK}" font-style="italic">{what}</text>'
        return
    start, end = _x(origin), _x(target)
    if origin == target:
        yield f'<circle cx="{start}" cy="{y + 6}" r="4" fill="{LINE}"/>'
        left, anchor = (start + 10, "start") if origin < 3 else (start - 10, "end")
        yield _label(left, y + 10, anchor, what)
        return
    end += -3 if end > start else 3
    yield _label((start + end) // 2, y + 7, "middle", what)
    yield f'<path d="M{start},{y + 12} L{end},{y + 12}" stroke="{LINE}" stroke-width="1.4" marker-end="url(#tip)"/>'


def _label(x: int, y: int, anchor: str, what: str) -> str:
    """Write on a ground of its own, so that no line runs through the words."""
    width = len(what) * 6.6 + 6
    left = {"start": x - 3, "middle": x - width / 2, "end": x - width + 3}[anchor]
    ground = f'<rect x="{left:.0f}" y="{y - 11}" width="{width:.0f}" height="14" fill="{GROUND}"/>'
    return f'{ground}<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{INK}">{what}</text>'
