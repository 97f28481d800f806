"""
Write the parts of the pages that are taken from the code: `python docs/make_pages.py`.

* docs/architecture.md, between two markers: what a connection's place can be, and become, as a diagram and as a table.
  Read from `TRANSITIONS` in `loopaware_pool._core.slot`.
* docs/options.md: every option of all flavours. Read from their `Options`.

With `--check` nothing is written. Exit code 0: the pages are up to date; 1: one is not, and was only looked at.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool import asyncpg, psycopg, sqlalchemy
from loopaware_pool._core.options import declared, sentence
from loopaware_pool._core.slot import TRANSITIONS, SlotState
from loopaware_pool.asyncpg.options import Options as AsyncpgOptions
from loopaware_pool.psycopg.options import Options as PsycopgOptions
from loopaware_pool.sqlalchemy.options import Options as SqlalchemyOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopaware_pool._core.options import SharedOptions

DOCS: Final = Path(__file__).parent
BEGIN: Final = "<!-- states: written by docs/make_pages.py -->\n"
END: Final = "<!-- end of states -->\n"

OPTIONS_PAGE: Final = """\
# Options

<!-- written by docs/make_pages.py -->

Give them by name. They are checked when the pool is made, before anything is opened. An error names the option, its
value, and what is expected. Times are in seconds.

## `create_pool`

`from loopaware_pool import create_pool`. The first argument is the DSN. Arguments that are not listed here are those of
`asyncpg.connect`. The [README](../README.md#which-reset) says more about `session_reset`.

{asyncpg}

## `AsyncConnectionPool`

`from loopaware_pool.psycopg import AsyncConnectionPool`. `AsyncNullConnectionPool` takes the same. Its `min_size` is 0,
its `max_size` may be 0 for any number, and `close_returns` has no effect.

{psycopg}

## `LoopAwareQueuePool`

For SQLAlchemy: `create_async_engine` takes these, and SQLAlchemy's own. There `timeout` is called `pool_timeout`, and
`use_lifo` is called `pool_use_lifo`. [More](sqlalchemy.md).

{sqlalchemy}
"""


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


def with_states(page: str) -> str:
    """
    Return the page of the architecture with the states as the code has them.

    Raises:
        ValueError: A marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks one of the markers {BEGIN.strip()!r} and {END.strip()!r}")
    return "\n".join([before + begin, *diagram(), "", *table(), "", end + after])


def options(taken_by: Any, kind: type[SharedOptions]) -> str:
    """List what a function, or a class, takes: a row for each option."""
    rows = ["| option | default | what it does |", "|---|---|---|"]
    parameters = inspect.signature(taken_by).parameters
    for field in declared(kind, taken_by):
        default = parameters[field.name].default
        shown = default.__name__ if isinstance(default, type) else repr(default)
        rows.append(f"| `{field.name}` | `{shown}` | {sentence(field)} |")
    return "\n".join(rows)


def pages() -> Iterator[tuple[Path, str]]:
    """Make each page as it should be."""
    architecture = DOCS / "architecture.md"
    yield architecture, with_states(architecture.read_text())
    yield (
        DOCS / "options.md",
        OPTIONS_PAGE.format(
            asyncpg=options(asyncpg.create_pool, AsyncpgOptions),
            psycopg=options(psycopg.AsyncConnectionPool, PsycopgOptions),
            sqlalchemy=options(sqlalchemy.LoopAwareQueuePool, SqlalchemyOptions),
        ),
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or look at them, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make_pages.py", description="Write into the pages what the code says.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    asked = parser.parse_args(arguments)
    is_current = True
    for page, text in pages():
        is_current &= page.exists() and page.read_text() == text
        if not asked.check:
            page.write_text(text)
    return int(asked.check and not is_current)


if __name__ == "__main__":
    sys.exit(main())
