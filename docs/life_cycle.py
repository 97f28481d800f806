"""Draws the life of a connection, for `make_pages.py`: every move of `TRANSITIONS`, on a light ground of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from loopaware_pool._core.slot import TRANSITIONS, SlotState

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GROUND", "INK", "LINE", "draw_life_cycle"]


class Move(NamedTuple):
    """How a move is drawn: a path, and where its label stands."""

    path: str
    x: int
    y: int
    anchor: str = "middle"


WIDTH: Final = 880
HEIGHT: Final = 430
BOX: Final = (124, 40)
INK, LINE, GROUND = "#1f2933", "#52606d", "#f7f9fb"
# Where each state stands, and its colour: with a caller, with the pool, or neither.
PLACES: Final = {
    SlotState.CONNECTING: (82, 130, "#ffe8b8"),
    SlotState.IDLE: (300, 130, "#cdeed6"),
    SlotState.RESERVED: (540, 50, "#cfe2fb"),
    SlotState.LENT: (780, 130, "#cfe2fb"),
    SlotState.RESETTING: (540, 220, "#ffe8b8"),
    SlotState.CLOSING: (540, 330, "#f3d5d5"),
    SlotState.GONE: (780, 330, "#e1e5ea"),
}
MOVES: Final = {
    ("CONNECTING", "connected"): Move("M144,130 L232,130", 188, 122),
    ("CONNECTING", "connect failed"): Move("M82,150 L82,404 L780,404 L780,356", 660, 398),
    ("IDLE", "taken"): Move("M362,124 L712,124", 455, 117),
    ("IDLE", "reserved"): Move("M345,110 C390,75 420,58 472,54", 394, 68, "end"),
    ("IDLE", "reset started"): Move("M345,150 C395,185 420,200 472,212", 428, 188, "start"),
    ("IDLE", "close started"): Move("M270,150 C272,270 380,320 472,330", 282, 285, "end"),
    ("RESERVED", "claimed"): Move("M602,54 C660,60 700,75 738,106", 706, 70, "start"),
    ("RESERVED", "abandoned"): Move("M500,30 C440,0 310,10 300,104", 360, 20, "end"),
    ("RESERVED", "close started"): Move("M580,70 C630,140 640,250 584,306", 612, 100, "start"),
    ("LENT", "returned"): Move("M718,138 L368,138", 455, 154),
    ("LENT", "reset started"): Move("M745,150 C715,200 680,216 608,220", 664, 238, "start"),
    ("LENT", "close started"): Move("M780,150 C782,260 720,312 608,324", 784, 262, "start"),
    ("RESETTING", "reset finished"): Move("M478,230 C400,232 325,215 312,156", 400, 240, "end"),
    ("RESETTING", "close started"): Move("M540,240 L540,304", 532, 276, "end"),
    ("CLOSING", "closed"): Move("M602,336 L712,336", 655, 352),
}


def draw_life_cycle() -> str:
    """
    Return the drawing, as SVG.

    Raises:
        ValueError: The code has a move that is not drawn here, or the other way round.
    """
    there = {(state.name, event.value) for state, moves in TRANSITIONS.items() for event in moves}
    if there != set(MOVES) or set(PLACES) != set(SlotState):
        raise ValueError(f"drawn otherwise than the code has it: {sorted(there ^ set(MOVES))}")
    return "\n".join([*_head(), *map(_move, MOVES.items()), *_boxes(), *_legend(), "</svg>", ""])


def _head() -> Iterator[str]:
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    yield '  font-family="system-ui, Helvetica, Arial, sans-serif" font-size="13">'
    yield "<title>The states of a connection, and what moves it from one to the next</title>"
    yield '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    yield f'  <path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>'
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="{GROUND}"/>'


def _move(drawn: tuple[tuple[str, str], Move]) -> str:
    (_, event), move = drawn
    label = f'<text x="{move.x}" y="{move.y}" text-anchor="{move.anchor}" fill="{LINE}">{event}</text>'
    return f'<path d="{move.path}" fill="none" stroke="{LINE}" stroke-width="1.4" marker-end="url(#tip)"/>{label}'


def _boxes() -> Iterator[str]:
    width, height = BOX
    for state, (x, y, colour) in PLACES.items():
        yield (
            f'<rect x="{x - width // 2}" y="{y - height // 2}" width="{width}" height="{height}" rx="8" '
            f'fill="{colour}" stroke="{INK}" stroke-width="1.2"/>'
            f'<text x="{x}" y="{y + 5}" text-anchor="middle" font-weight="600" fill="{INK}">{state.name}</text>'
        )


def _legend() -> Iterator[str]:
    kinds = [("#cdeed6", "free"), ("#cfe2fb", "a caller's"), ("#ffe8b8", "the pool's"), ("#f3d5d5", "on its way out")]
    for place, (colour, meaning) in enumerate(kinds):
        x = 110 + 125 * place if place < 3 else 485
        yield f'<rect x="{x}" y="370" width="14" height="14" rx="3" fill="{colour}" stroke="{INK}"/>'
        yield f'<text x="{x + 21}" y="382" fill="{INK}">{meaning}</text>'
