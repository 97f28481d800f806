"""
Write the parts of the pages that are taken from the code: `python docs/make_pages.py`.

* docs/architecture.md, between two markers: what a connection's place can be, and become, as a table.
  Read from `TRANSITIONS` in `loopaware_pool._core.slot`.
* docs/options.md: every option of all flavours. Read from their `Options`.
* docs/exceptions.md, docs/events.md, docs/statistics.md: every public class, with its attributes. Read from docstrings.
* docs/guide/life-cycle.svg: the states once more, drawn; docs/guide/lease.svg: the way of a lease.

With `--check` nothing is written. Exit code 0: the pages are up to date; 1: one is not, and was only looked at.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lease_sequence import draw_lease
from life_cycle import draw_life_cycle

from loopaware_pool import asyncpg, errors, psycopg, sqlalchemy, stats
from loopaware_pool._core.options import declared, sentence
from loopaware_pool._core.slot import TRANSITIONS
from loopaware_pool.asyncpg.driver import AsyncpgDriver
from loopaware_pool.asyncpg.options import Options as AsyncpgOptions
from loopaware_pool.psycopg.driver import PsycopgDriver
from loopaware_pool.psycopg.options import Options as PsycopgOptions
from loopaware_pool.sqlalchemy.driver import SqlalchemyDriver
from loopaware_pool.sqlalchemy.options import Options as SqlalchemyOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from loopaware_pool._core.options import SharedOptions

DOCS: Final = Path(__file__).parent
BEGIN: Final = "<!-- states: written by docs/make_pages.py -->\n"
END: Final = "<!-- end of states -->\n"
DRAWING: Final = "![the states, and what moves a slot from one to the next](guide/life-cycle.svg)"

OPTIONS_PAGE: Final = """\
# Options

<!-- written by docs/make_pages.py -->

Give them by name. They are checked when the pool is made, before anything is opened. An error names the option, its
value, and what is expected. Times are in seconds.

## `create_pool`

`from loopaware_pool import create_pool`. The first argument is the DSN. Arguments that are not listed here are those of
`asyncpg.connect`. [Which reset](choosing.md) says more about `session_reset`.

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

EXCEPTIONS_PAGE: Final = """\
# Exceptions

<!-- written by docs/make_pages.py -->

Every error of a pool is a `loopaware_pool.errors.PoolError`, names its pool in `error.pool`, and carries its data as
attributes. What a flavour raises is at the same time an exception of the pool that it replaces. So `except` clauses
that were written for that pool go on working.

```python
from loopaware_pool import create_pool
from loopaware_pool.errors import PoolError, PoolTimeout

async with create_pool("postgresql://postgres@localhost/postgres", min_size=0, max_size=1) as pool:
    async with pool.acquire():
        try:
            await pool.acquire(timeout=0.1)
        except PoolTimeout as error:
            print([(lease.task, lease.held_seconds, lease.where) for lease in error.holders])
        except PoolError as error:
            print(error.pool, error)
```

What the messages look like, and what to do: [Troubleshooting](troubleshooting.md).

{table}

Errors of the driver itself (a failed query, a refused connect) reach the caller as the driver raises them.

{classes}
"""

EVENTS_PAGE: Final = """\
# Events

<!-- written by docs/make_pages.py -->

A function that is given as `on_event` is called with each event, after the fact, on the loop concerned. What it raises
is logged and dropped. It must not block. Every event is a frozen dataclass of `loopaware_pool.stats`.

```python
from loopaware_pool import create_pool
from loopaware_pool.stats import ConnectionClosed, ConnectionOpened

seen = []
async with create_pool("postgresql://postgres@localhost/postgres", min_size=1, on_event=seen.append) as pool:
    await pool.execute("SELECT 1")

for event in seen:
    match event:
        case ConnectionOpened(seconds=seconds):
            print(f"opened in {{seconds:.3f}} s")
        case ConnectionClosed(reason=reason):
            print("closed:", reason)
```

Every event has these:

{base}

{classes}
"""

STATISTICS_PAGE: Final = """\
# Statistics

<!-- written by docs/make_pages.py -->

`pool.stats()` returns a `PoolStats`: frozen, taken at one moment, from any thread, without a pause of the pool.
[Metrics](metrics.md) shows how monitoring gets at it. All classes are in `loopaware_pool.stats`.

```python
from loopaware_pool import create_pool

async with create_pool("postgresql://postgres@localhost/postgres", min_size=1, max_size=5, name="shop") as pool:
    await pool.execute("SELECT 1")
    stats = pool.stats()
    assert (stats.name, stats.lent, stats.waiting, stats.totals.acquired) == ("shop", 0, 0, 1)
```

{classes}
"""

# The errors in the order of the page, and where an `ErrorFamily` has each.
ERRORS: Final = {
    "PoolTimeout": "timeout",
    "PoolClosed": "closed",
    "TooManyWaiting": "too_many_waiting",
    "Overloaded": "overloaded",
    "UnsupportedLoop": "unsupported_loop",
}


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
    return "\n".join([before + begin, DRAWING, "", *table(), "", end + after])


def options(taken_by: Any, kind: type[SharedOptions]) -> str:
    """List what a function, or a class, takes: a row for each option."""
    rows = ["| option | default | what it does |", "|---|---|---|"]
    parameters = inspect.signature(taken_by).parameters
    for field in declared(kind, taken_by):
        default = parameters[field.name].default
        shown = default.__name__ if isinstance(default, type) else repr(default)
        rows.append(f"| `{field.name}` | `{shown}` | {sentence(field)} |")
    return "\n".join(rows)


def sections(docstring: str) -> tuple[str, dict[str, str]]:
    """Take a docstring apart: what it says, and the attributes that it describes."""
    told, _, rest = inspect.cleandoc(docstring).partition("\nAttributes:\n")
    listed = re.split(r"^(?=\S)", rest, maxsplit=1, flags=re.MULTILINE)[0]
    described: dict[str, str] = {}
    for names, text in re.findall(r"^    (\w[\w, ]*): ((?:.|\n {5,})+)", listed, re.MULTILINE):
        described |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return told.strip(), described


def class_section(kind: type, inherited: Iterable[str] = (), level: int = 2) -> str:
    """Describe a class: its name, its docstring, and a row for each attribute that is not *inherited*."""
    told, described = sections(kind.__doc__ or "")
    rows = [(name, text) for name, text in described.items() if name not in inherited]
    for name, member in vars(kind).items():
        if isinstance(member, property):
            rows.append((name, inspect.getdoc(member) or ""))
    table = ["", "| attribute | type | meaning |", "|---|---|---|"]
    for name, text in rows:
        table.append(f"| `{name}` | {_annotation(kind, name)} | {' '.join(text.split())} |")
    return "\n".join([f"{'#' * level} `{kind.__name__}`", "", told, *(table if rows else [])])


def _annotation(kind: type, name: str) -> str:
    member = inspect.getattr_static(kind, name, None)
    getter = getattr(member, "fget", None)
    written = [vars(base).get("__annotations__", {}).get(name) for base in kind.__mro__]
    told = inspect.signature(getter).return_annotation if getter else next(filter(None, written), "")
    told = re.sub(r"^ClassVar\[(.*)\]$", r"\1", str(told)).replace("|", "\\|")
    return f"`{told}`" if told else ""


def exceptions_table() -> str:
    """List what else the errors of each flavour are."""
    families = (AsyncpgDriver.errors, PsycopgDriver.errors, SqlalchemyDriver.errors)
    rows = [
        "| error | asyncpg flavour: is also | psycopg flavour: is also | SQLAlchemy: is also |",
        "|---|---|---|---|",
    ]
    for name, place in ERRORS.items():
        cells = [_theirs(getattr(family, place)) for family in families]
        rows.append(f"| [`{name}`](#{name.lower()}) | {' | '.join(cells)} |")
    cells = [_theirs(errors.WrongLoop), _theirs(psycopg.WrongLoop), "(the driver's own error)"]
    rows.append(f"| [`WrongLoop`](#wrongloop) | {' | '.join(cells)} |")
    return "\n".join(rows)


def _theirs(kind: type) -> str:
    """Name the exceptions of others that a class is: of each package, the one that says most."""
    found: dict[str, str] = {}
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        if package != "loopaware_pool" and base not in (Exception, BaseException, object):
            found.setdefault(package, base.__name__ if package == "builtins" else f"{package}.{base.__name__}")
    return ", ".join(f"`{name}`" for name in found.values()) or "-"


def public_exceptions() -> Iterator[type]:
    """Yield every public exception, in the order of the table."""
    for name in ("PoolError", *ERRORS, "WrongLoop"):
        yield getattr(errors, name)


def public_events() -> Iterator[type]:
    """Yield every kind of event, in the order in which the module has them."""
    for kind in vars(stats).values():
        if isinstance(kind, type) and issubclass(kind, stats.PoolEvent) and kind is not stats.PoolEvent:
            yield kind


def public_statistics() -> Iterator[type]:
    """Yield every class of figures, the pool's first."""
    kinds = [getattr(stats, name) for name in stats.__all__]
    figures = [kind for kind in kinds if dataclasses.is_dataclass(kind) and not issubclass(kind, stats.PoolEvent)]
    yield from sorted(figures, key=lambda kind: kind is not stats.PoolStats)


def classes(kinds: Iterable[type], inherited: Iterable[str] = ()) -> str:
    """Describe each class in a section of its own."""
    return "\n\n".join(class_section(kind, inherited) for kind in kinds)


def pages() -> Iterator[tuple[Path, str]]:
    """Make each page as it should be."""
    yield DOCS / "guide" / "life-cycle.svg", draw_life_cycle()
    yield DOCS / "guide" / "lease.svg", draw_lease()
    yield DOCS / "exceptions.md", EXCEPTIONS_PAGE.format(table=exceptions_table(), classes=classes(public_exceptions()))
    base = class_section(stats.PoolEvent).partition("\n\n| ")[2]
    yield DOCS / "events.md", EVENTS_PAGE.format(base=f"| {base}", classes=classes(public_events(), ("pool", "loop")))
    yield DOCS / "statistics.md", STATISTICS_PAGE.format(classes=classes(public_statistics()))
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
