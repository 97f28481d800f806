"""What the demo looks like, on a terminal and in a log."""

from __future__ import annotations

import asyncio
import platform
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, TextIO

import asyncpg
import psycopg
import psycopg_pool
from rich import box
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import loopaware_pool
from loopaware_pool.cli.console import VisibleConsole
from loopaware_pool.cli.demo import engines, scenes
from loopaware_pool.cli.demo.entrants import CONNECTIONS, QUERY, ROWS, STUCK_SECONDS, has_sqlalchemy, open_playground
from loopaware_pool.cli.measure import Burst, Spread, median_of, ratios

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from loopaware_pool.cli.demo.entrants import Entrant, Playground
    from loopaware_pool.cli.target import Target

__all__ = ["format_ratio", "make_console", "make_table", "say", "say_where", "show"]

LOG_WIDTH = 100


def make_console(file: TextIO | None = None) -> Console:
    """Make a console for *file*, by default the output; as wide as the terminal, or `LOG_WIDTH` where there is none."""
    console = VisibleConsole(file)
    return console if console.is_terminal else VisibleConsole(file, width=LOG_WIDTH)


def make_table(*headers: str) -> Table:
    """Make a table whose first column is text and whose others are figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=not number, overflow="fold")
    return table


def say(console: Console, text: str, *, indent: int = 0) -> None:
    """Print *text* as it is, in lines that are not too long to read, those after the first indented."""
    lines = textwrap.fill(text, min(console.width, LOG_WIDTH), subsequent_indent=" " * indent)
    console.print(lines, markup=False)


def say_where(console: Console, target: Target, loop: str) -> None:
    """Tell what everything runs on."""
    console.print(
        f"{escape(target.description)}, Python {platform.python_version()}, {loop},\n"
        f"asyncpg {asyncpg.__version__}, psycopg {psycopg.__version__} with psycopg_pool {psycopg_pool.__version__}, "
        f"loopaware-pool {loopaware_pool.__version__}"
    )


def format_ratio(spread: Spread, separator: str = " ") -> str:
    """Write a median with its range, as in `1.52x (1.44-1.60)`."""
    return f"{spread.median:.2f}x{separator}({spread.low:.2f}-{spread.high:.2f})"


def show(target: Target) -> None:
    """Run all scenes on *target*, one after the other, and print what they came to."""
    console = make_console()
    say_where(console, target, asyncio.run(_name_loop()))
    with open_playground(target.dsn) as playground:
        _show_burst(console, playground)
        _show_loops(console, playground)
        _show_psycopg(console, playground)
        _show_sqlalchemy(console, playground)


async def _name_loop() -> str:
    loop = asyncio.get_running_loop()
    selector = getattr(loop, "_selector", None)
    watcher = "" if selector is None else f" with {type(selector).__name__}"
    return f"asyncio's {type(loop).__name__.lstrip('_')}{watcher}"


def _title(console: Console, title: str, text: str) -> None:
    console.print(f"\n[bold]{title}[/bold]")
    say(console, text)
    console.print()


# ---- the burst ----


def _show_burst(console: Console, playground: Playground) -> None:
    _title(
        console,
        f"1. A burst: {scenes.QUERIES:,} queries, {scenes.TASKS} tasks, {CONNECTIONS} connections",
        f"Each query takes a connection from the pool and gives it back. It is {QUERY}, over {ROWS:,} "
        f"rows. Both pools take turns, {scenes.ROUNDS} rounds; ratios compare what ran in the same round.",
    )
    theirs, ours = playground.for_asyncpg()
    rounds = _run_rounds(console, theirs, ours, scenes.QUERIES)
    console.print(f"  FixedAsyncPGPool, as printed, is stopped after {STUCK_SECONDS:.0f} s if it gets stuck ...")
    deadlock = asyncio.run(scenes.run_article_design(playground))
    console.print(_burst_table(theirs, ours, rounds, deadlock))
    for paragraph in _burst_notes(deadlock):
        say(console, paragraph)


def _run_rounds(console: Console, theirs: Entrant, ours: Entrant, queries: int) -> list[tuple[Burst, Burst]]:
    rounds: list[tuple[Burst, Burst]] = []
    with make_progress(console) as progress:
        bar = progress.add_task("rounds", total=scenes.ROUNDS)

        def report(number: int, their_burst: Burst, our_burst: Burst) -> None:
            rounds.append((their_burst, our_burst))
            progress.console.print(
                f"  round {number}: {theirs.name} {their_burst.per_second:6,.0f}/s, "
                f"{ours.name} {our_burst.per_second:6,.0f}/s, {our_burst.per_second / their_burst.per_second:.2f}x"
            )
            progress.update(bar, completed=number, refresh=True)

        asyncio.run(scenes.run_rounds(theirs, ours, queries, report))
    return rounds


def make_progress(console: Console) -> Progress:
    """Make a bar that is gone in the end, costs nothing between updates, and is not there in a log."""
    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
    )


_FIGURES: tuple[tuple[str, str, Callable[[Burst], float]], ...] = (
    ("queries/s", "{:,.0f}", lambda burst: burst.per_second),
    ("CPU/query", "{:,.0f} us", lambda burst: burst.cpu_us),
    ("p50", "{:.1f} ms", lambda burst: burst.p50_ms),
    ("p99", "{:.1f} ms", lambda burst: burst.p99_ms),
)


def _burst_table(
    theirs: Entrant, ours: Entrant, rounds: list[tuple[Burst, Burst]], deadlock: scenes.Deadlock | None
) -> Table:
    their_bursts, our_bursts = ([pair[side] for pair in rounds] for side in (0, 1))
    table = make_table(
        f"medians of {len(rounds)} rounds",
        *(name for name, _, _ in _FIGURES),
        "idle, in\nselector",
        "fds left\nby close()",
    )
    table.add_row(theirs.name, *_medians(their_bursts), *_left_by(theirs))
    if deadlock is not None and deadlock.is_stuck:
        table.add_row("FixedAsyncPGPool,\nas printed", "[red]DEADLOCK[/red]", *"-----")
    table.add_row(f"[bold]{ours.name}[/bold]", *_medians(our_bursts), *_left_by(ours))
    table.add_row(
        "ours / theirs",
        *(
            format_ratio(ratios([figure(one) for one in our_bursts], [figure(one) for one in their_bursts]), "\n")
            for _, _, figure in _FIGURES
        ),
    )
    return table


def _medians(bursts: list[Burst]) -> list[str]:
    return [pattern.format(median_of(bursts, figure)) for _, pattern, figure in _FIGURES]


def _left_by(entrant: Entrant) -> tuple[str, str]:
    leftovers = asyncio.run(scenes.find_leftovers(entrant))
    return str(leftovers.watched), str(leftovers.fds)


def _burst_notes(deadlock: scenes.Deadlock) -> list[str]:
    notes = [
        f"With {scenes.TASKS} tasks on {CONNECTIONS} connections a query mostly waits for its turn. "
        "loopaware-pool serves first come, first served, so all wait alike. In asyncpg's pool a running task may "
        "overtake those that wait, which shortens some waits and lengthens others: hence its wide gap from p50 to p99.",
        f"The selector's entries are counted in the event loop's own map, while all {CONNECTIONS} connections "
        "are idle.",
    ]
    if deadlock.is_stuck:
        notes.append(
            f"FixedAsyncPGPool, as an article printed it, answered {deadlock.answered:,} queries in "
            f"{deadlock.last_answer_seconds * 1e3:.0f} ms, then none, and was stopped after {STUCK_SECONDS:.0f} s. Its "
            "acquire() waits for a connection while it holds the lock that release() needs: the first task that finds "
            "none stops them all."
        )
    return notes


# ---- five loops ----


def _show_loops(console: Console, playground: Playground) -> None:
    _title(
        console,
        "2. One pool object, five event loops",
        f"A program keeps one pool in a global, made at its first use. It runs {scenes.QUERIES_PER_LOOP} queries in "
        "each of three asyncio.run() calls and in two threads with loops of their own, then closes the pool. The very "
        "same program then runs on asyncpg's pool. Sockets are counted in this process, sessions on the server "
        "(pg_stat_activity).",
    )
    theirs, ours = playground.for_asyncpg()
    _show_program(console, ours, playground)
    _show_program(console, theirs, playground)


def _show_program(console: Console, entrant: Entrant, playground: Playground) -> None:
    steps: list[scenes.Step] = []
    scenes.use_from_five_loops(playground, entrant, steps.append)
    _show_steps(console, entrant, steps)
    console.print(f"  {_answered(steps)}; left in the end: {steps[-1].sockets} sockets, {steps[-1].sessions} sessions.")


def _show_steps(console: Console, entrant: Entrant, steps: list[scenes.Step]) -> None:
    table = make_table(entrant.name, "queries", "answered", "errors", "sockets left", "sessions left")
    for step in steps:
        asked, answered = (str(step.asked), str(step.answered)) if step.asked else ("", "")
        table.add_row(step.name, asked, answered, str(step.errors.total()), str(step.sockets), str(step.sessions))
    console.print(table)
    errors = sum((step.errors for step in steps), Counter[str]())
    if errors:
        console.print("  The errors, as printed:")
    for error, count in errors.most_common():
        say(console, f"{count:7} x {error}", indent=10)
    if errors:
        console.print()


def _answered(steps: list[scenes.Step]) -> str:
    answered, asked = (sum(getattr(step, what) for step in steps) for what in ("answered", "asked"))
    return f"{answered:,} of {asked:,} queries answered"


# ---- psycopg ----


def _show_psycopg(console: Console, playground: Playground) -> None:
    theirs, ours = playground.for_psycopg()
    _title(
        console,
        "3. The same for psycopg",
        f"The burst again, {scenes.PSYCOPG_QUERIES:,} queries a round, on psycopg_pool's AsyncConnectionPool and ours; "
        f"then the program with five loops. Both pools have a timeout of {STUCK_SECONDS:.0f} s.",
    )
    console.print(_burst_table(theirs, ours, _run_rounds(console, theirs, ours, scenes.PSYCOPG_QUERIES), None))
    for entrant in (ours, theirs):
        _show_program(console, entrant, playground)
    _title(
        console,
        "4. A query that still runs when its connection is given back",
        "A task outlives the block that lent it a connection. The pool closes that connection, and sooner or later the "
        f"kernel gives its number to another socket: here at once. {scenes.MESSAGES} messages are sent to that socket.",
    )
    table = make_table("", "messages its reader was called for", "the query ended with")
    for entrant in (theirs, ours):
        reuse = asyncio.run(scenes.give_back_under_query(entrant))
        table.add_row(
            entrant.name, f"{reuse.heard} of {scenes.MESSAGES}", escape(reuse.query) or "nothing: it waits on"
        )
    console.print(table)


# ---- SQLAlchemy ----


def _show_sqlalchemy(console: Console, playground: Playground) -> None:
    _title(
        console,
        "5. One engine of SQLAlchemy's",
        f"An async engine is made once, on asyncpg. {engines.TASKS} tasks ask it in each of three asyncio.run() calls, "
        f"then {engines.TASKS} tasks in each of two threads that connect first, then {engines.TESTS} tests that each "
        f"have a loop of their own. At last {engines.KILLED} connections are ended by the server while they are idle, "
        "without pool_pre_ping. Each program has an engine of its own. What is left is counted after engine.dispose().",
    )
    if not has_sqlalchemy():
        say(console, f"Not shown: SQLAlchemy is not installed. To install it: {engines.INSTALL}")
        return
    theirs, ours = playground.for_sqlalchemy(engines.KILLED)
    for entrant in (ours, theirs):
        steps: list[scenes.Step] = []
        engines.use_engines(playground, entrant, steps.append)
        _show_steps(console, entrant, steps)
        sockets, sessions = (sum(getattr(step, what) for step in steps) for what in ("sockets", "sessions"))
        console.print(f"  {_answered(steps)}; left by the four engines: {sockets} sockets, {sessions} sessions.")
