"""What the demo looks like, on a terminal and in a log."""

from __future__ import annotations

import asyncio
import platform
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

import asyncpg
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import loopaware_pool
from loopaware_pool.cli import demo_scenes as scenes
from loopaware_pool.cli.measure import Burst, Spread, median_of, ratios

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool.cli.target import Target

__all__ = ["format_ratio", "make_console", "make_table", "say", "say_where", "show"]

LOG_WIDTH = 100


def make_console() -> Console:
    """Make a console that is as wide as the terminal, or `LOG_WIDTH` columns where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=LOG_WIDTH)


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
        f"{escape(target.description)}, Python {platform.python_version()}, asyncpg {asyncpg.__version__}, "
        f"loopaware-pool {loopaware_pool.__version__},\n{loop}"
    )


def format_ratio(spread: Spread, separator: str = " ") -> str:
    """Write a median with its range, as in `1.52x (1.44-1.60)`."""
    return f"{spread.median:.2f}x{separator}({spread.low:.2f}-{spread.high:.2f})"


def show(target: Target) -> None:
    """Run all scenes on *target*, one after the other, and print what they came to."""
    console = make_console()
    say_where(console, target, asyncio.run(_name_loop()))
    with scenes.open_playground(target.dsn) as playground:
        _show_burst(console, playground)
        _show_loops(console, playground)


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


def _show_burst(console: Console, playground: scenes.Playground) -> None:
    _title(
        console,
        f"1. A burst: {scenes.QUERIES:,} queries, {scenes.TASKS} tasks, {scenes.CONNECTIONS} connections",
        f"Each query takes a connection from the pool and gives it back. It is {scenes.QUERY}, over {scenes.ROWS:,} "
        f"rows. Both pools take turns, {scenes.ROUNDS} rounds; ratios compare what ran in the same round.",
    )
    rounds = _run_rounds(console, playground)
    console.print(f"  the article's design is stopped after {scenes.STUCK_SECONDS:.0f} s if it gets stuck ...")
    deadlock = asyncio.run(scenes.run_article_design(playground))
    left = [asyncio.run(scenes.find_leftovers(make)) for make in (playground.asyncpg_pool, playground.our_pool)]
    console.print(_burst_table(rounds, deadlock, *left))
    for paragraph in _burst_notes(deadlock):
        say(console, paragraph)


def _run_rounds(console: Console, playground: scenes.Playground) -> list[tuple[Burst, Burst]]:
    rounds: list[tuple[Burst, Burst]] = []
    with make_progress(console) as progress:
        bar = progress.add_task("rounds", total=scenes.ROUNDS)

        def report(number: int, theirs: Burst, ours: Burst) -> None:
            rounds.append((theirs, ours))
            progress.console.print(
                f"  round {number}: asyncpg's pool {theirs.per_second:6,.0f}/s, "
                f"loopaware-pool {ours.per_second:6,.0f}/s, {ours.per_second / theirs.per_second:.2f}x"
            )
            progress.update(bar, completed=number, refresh=True)

        asyncio.run(scenes.run_rounds(playground, report))
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
    rounds: list[tuple[Burst, Burst]],
    deadlock: scenes.Deadlock,
    their_leftovers: scenes.Leftovers,
    our_leftovers: scenes.Leftovers,
) -> Table:
    theirs, ours = ([pair[side] for pair in rounds] for side in (0, 1))
    table = make_table(
        f"medians of {len(rounds)} rounds",
        *(name for name, _, _ in _FIGURES),
        "idle, in\nselector",
        "fds left\nby close()",
    )
    table.add_row("asyncpg's pool", *_medians(theirs), *_left(their_leftovers))
    if deadlock.is_stuck:
        table.add_row("the article's design", "[red]DEADLOCK[/red]", *"-----")
    table.add_row("[bold]loopaware-pool[/bold]", *_medians(ours), *_left(our_leftovers))
    table.add_row(
        "ours / asyncpg",
        *(
            format_ratio(ratios([figure(burst) for burst in ours], [figure(burst) for burst in theirs]), "\n")
            for _, _, figure in _FIGURES
        ),
    )
    return table


def _medians(bursts: list[Burst]) -> list[str]:
    return [pattern.format(median_of(bursts, figure)) for _, pattern, figure in _FIGURES]


def _left(leftovers: scenes.Leftovers) -> tuple[str, str]:
    return str(leftovers.watched), str(leftovers.fds)


def _burst_notes(deadlock: scenes.Deadlock) -> list[str]:
    notes = [
        f"With {scenes.TASKS} tasks on {scenes.CONNECTIONS} connections a query mostly waits for its turn. "
        "loopaware-pool serves first come, first served, so all wait alike. In asyncpg's pool a running task may "
        "overtake those that wait, which shortens some waits and lengthens others: hence its wide gap from p50 to p99.",
        f"The selector's entries are counted in the event loop's own map, while all {scenes.CONNECTIONS} connections "
        "are idle.",
    ]
    if deadlock.is_stuck:
        notes.append(
            f"The article's design answered {deadlock.answered:,} queries in {deadlock.last_answer_seconds * 1e3:.0f} "
            f"ms, then none, and was stopped after {scenes.STUCK_SECONDS:.0f} s. Its acquire() waits for a connection "
            "while it holds the lock that release() needs: the first task that finds none stops them all."
        )
    return notes


# ---- five loops ----


def _show_loops(console: Console, playground: scenes.Playground) -> None:
    _title(
        console,
        "2. One pool object, five event loops",
        f"A program keeps one pool in a global, made at its first use. It runs {scenes.QUERIES_PER_LOOP} queries in "
        "each of three asyncio.run() calls and in two threads with loops of their own, then closes the pool. The very "
        "same program then runs on asyncpg's pool. Sockets are counted in this process, sessions on the server "
        "(pg_stat_activity).",
    )
    _show_program(console, "loopaware-pool", playground, playground.our_pool)
    _show_program(console, "the same on asyncpg's pool", playground, playground.asyncpg_pool)


def _show_program(console: Console, name: str, playground: scenes.Playground, make_pool: Callable[[], Any]) -> None:
    steps: list[scenes.Step] = []
    scenes.use_from_five_loops(playground, make_pool, steps.append)
    table = make_table(name, "queries", "answered", "errors", "sockets left", "sessions left")
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
    answered, asked = (sum(getattr(step, what) for step in steps) for what in ("answered", "asked"))
    console.print(
        f"  {answered:,} of {asked:,} queries answered; left in the end: {steps[-1].sockets} sockets, "
        f"{steps[-1].sessions} sessions."
    )
