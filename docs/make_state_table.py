"""
Write what a connection's place can be, and become, into docs/architecture.md: `python docs/make_state_table.py`.

The states and moves are read from `TRANSITIONS` in `loopaware_pool._core.slot`. They are written between two markers in
the page, as a diagram and as a table. With `--check` nothing is written. Exit code 0: the page is up to date; 1: it is
not, and was only looked at.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loopaware_pool._core.slot import TRANSITIONS, SlotState

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = Path(__file__).parent / "architecture.md"
BEGIN: Final = "<!-- states: written by docs/make_state_table.py -->\n"
END: Final = "<!-- end of states -->\n"


def diagram() -> Iterator[str]:
    """Draw the moves, in Mermaid's language."""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {SlotState.CONNECTING.name}"
    for state, moves in TRANSITIONS.items():
        for event, then in moves.items():
            yield f"    {state.name} --> {then.name}: {event.value}"
    yield f"    {SlotState.GONE.name} --> [*]"
    yield "```"


def table() -> Iterator[str]:
    """List the moves: a row for each state, the next state in brackets."""
    yield "| state | what can happen (and the state that follows) |"
    yield "|---|---|"
    for state, moves in TRANSITIONS.items():
        row = ", ".join(f"{event.value} ({then.name})" for event, then in moves.items())
        yield f"| {state.name} | {row or 'nothing'} |"


def updated(page: str) -> str:
    """
    Return *page* with the states as the code has them.

    Raises:
        ValueError: A marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks one of the markers {BEGIN.strip()!r} and {END.strip()!r}")
    return "\n".join([before + begin, *diagram(), "", *table(), "", end + after])


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or look at it, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make_state_table.py", description="Write the states into architecture.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    options = parser.parse_args(arguments)
    page = PAGE.read_text()
    new = updated(page)
    if options.check:
        return int(page != new)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
