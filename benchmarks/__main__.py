"""`python -m benchmarks`, or `loopaware-pool bench`: our pools against what else a user may pick, on both loops."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import uvloop

from benchmarks import plots
from benchmarks.contenders import CONNECTIONS, CONTENDERS, Setting
from benchmarks.lab import Lab, NotHere
from benchmarks.questions import QUESTIONS
from benchmarks.report import as_json, goals_table, heat_table
from loopaware_pool.cli.command import COMMANDS, FINE, Parser, Unusable, attempt
from loopaware_pool.cli.demo.show import make_console, make_progress, say, say_where
from loopaware_pool.cli.target import CONNECT_ERRORS, Target, explain, open_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from benchmarks.lab import Heat, Question

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
# How glibc's malloc is set, by the numbers that mallopt(3) has for M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD, in
# bytes. By default it depends on chance whether asyncio's read buffers of 256 KiB are mapped anew each time.
HEAPS: dict[str, dict[int, int]] = {
    "steady": {-3: 4 << 20, -1: 8 << 20, -2: 4 << 20},
    "mapped": {-3: 128 << 10},
}
QUICK_ROUNDS, FULL_ROUNDS = 3, 9
QUICK_EFFORT = 0.2
# All contenders are open at once, and some questions are asked of pools of 50 more.
SERVER_CONNECTIONS = CONNECTIONS * len(CONTENDERS) + 80


def main() -> int:
    """Run what the command line asks for, and return the exit code."""

    def work() -> int:
        parser = Parser("python -m benchmarks", COMMANDS["bench"])
        add_arguments(parser)
        return run(parser.parse_args())

    return attempt("benchmarks", work)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to *parser*."""
    questions, names = [question.name for question in QUESTIONS], [contender.name for contender in CONTENDERS]
    parser.add_argument("--quick", action="store_true", help="three minutes in place of fourteen")
    parser.add_argument("--rounds", type=rounds, help=f"default {FULL_ROUNDS}, with --quick {QUICK_ROUNDS}")
    parser.add_argument("--loop", choices=LOOPS, help="one event loop; default both, with --quick asyncio")
    parser.add_argument("--heap", choices=HEAPS, help="whether read buffers of 256 KiB stay in the heap")
    parser.add_argument("--only", choices=questions, action="append", help="one question; may be repeated")
    parser.add_argument("--contender", choices=names, action="append", help="one contender; may be repeated")
    parser.add_argument("--out", metavar="FOLDER", type=folder, help="write figures.json and plots to FOLDER")
    parser.add_argument("--json", action="store_true", help="write an object; what people read is on the error output")
    parser.add_argument("--dsn", help="postgresql://user:password@host:port/database; default an embedded server")


def run(options: argparse.Namespace) -> int:
    """Do what *options*, made by arguments of `add_arguments`, say; return the exit code."""
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else FULL_ROUNDS)
    options.effort = QUICK_EFFORT if options.quick else 1.0
    _set_heap(options.heap)
    options.contender = options.contender or [contender.name for contender in CONTENDERS]
    with open_target(options.dsn, max_connections=SERVER_CONNECTIONS + 20) as target:
        asyncio.run(_refuse_without_room(target.dsn))
        _run(options, target)
    return FINE


def _set_heap(name: str | None) -> None:
    """
    Set malloc so that large buffers are always, or never, mapped.

    Raises:
        Unusable: The C library is another than glibc.
    """
    for number, size in HEAPS.get(name or "", {}).items():
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is None or not set_option(number, size):
            raise Unusable(f"--heap {name}: this C library's malloc cannot be set")


def rounds(text: str) -> int:
    """Read a number of rounds."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)


def folder(text: str) -> Path:
    """Read the name of a folder that is there."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a folder that exists")
    return path


async def _refuse_without_room(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        room = await connection.fetchval(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int "
            "- count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        )
    finally:
        await connection.close()
    if room < SERVER_CONNECTIONS:
        raise Unusable(
            f"the server has room for {room} connections, and {SERVER_CONNECTIONS} are needed; raise max_connections"
        )


def _run(options: argparse.Namespace, target: Target) -> None:
    console = make_console(sys.stderr if options.json else sys.stdout)
    loops = [options.loop] if options.loop else ["asyncio"] if options.quick else list(LOOPS)
    load = os.getloadavg()[0]
    _say_what(console, target, loops, options, load)
    heats: dict[str, list[Heat]] = {}
    for loop in loops:
        questions = [one for one in QUESTIONS if loop in one.loops and (not options.only or one.name in options.only)]
        try:
            heats[loop] = _answer(console, questions, loop, target.dsn, options)
        except CONNECT_ERRORS as error:
            raise Unusable(explain(error, target.dsn)) from None
    for loop in loops:
        goals = goals_table(loop, heats[loop])
        if goals is not None:
            console.print(goals)
    report = as_json(
        target.description, heats, rounds=options.rounds, effort=options.effort, load=load, heap=options.heap
    )
    if options.json:
        print(json.dumps(report, indent=1))
    if options.out is not None:
        (options.out / "figures.json").write_text(json.dumps(report, indent=1) + "\n")
        written = plots.draw(report, options.out)
        console.print(f"Written to {options.out}: figures.json {' '.join(written)}", markup=False)


def _say_what(console: Console, target: Target, loops: Sequence[str], options: argparse.Namespace, load: float) -> None:
    say_where(console, target, " and ".join(loops))
    say(
        console,
        f"Pools of {CONNECTIONS}, which take turns in {options.rounds} rounds (3 at most of what takes seconds). "
        "Figures are medians of the rounds, those of p99.9 and of the server's CPU are of all rounds together; a ratio "
        "is the median of the rounds' ratios, with their range. Each query has an acquire and a release of its own. "
        "CPU is this process's, per query. Contenders of asyncpg reset the session at each release unless it says "
        "otherwise, bare connections and those of psycopg do not; SQLAlchemy begins and rolls back a transaction.",
    )
    say(
        console,
        f"Load average before the run: {load:.1f}; CPUs to run on: {len(os.sched_getaffinity(0))}. Speeds need an "
        "otherwise idle machine. Where client and server have a CPU each, one task's queries mostly wait for these to "
        "wake, in a virtual machine above all; `taskset -c 0 make bench` puts both on one, and shows the work alone.",
    )
    if options.heap:
        say(console, f"The heap is {options.heap}: see --heap.")
    for contender in CONTENDERS:
        if contender.name in options.contender and not contender.is_installed:
            say(console, f"{contender.name} does not take part: {contender.needs} is not installed.")


def _answer(
    console: Console, questions: Sequence[Question], loop: str, dsn: str, options: argparse.Namespace
) -> list[Heat]:
    """Ask all questions, each on a new loop, and show what each comes to."""
    heats: list[Heat] = []
    with make_progress(console) as progress:
        bar = progress.add_task(loop, total=len(questions))
        for question in questions:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                lab = Lab(Setting(dsn), options.rounds, options.effort, options.contender, options.heap)
                try:
                    answers = runner.run(_ask(question, lab))
                except NotHere as error:
                    console.print(f"{question.name} ({loop}): not measured: {error}", markup=False)
                    answers = []
            progress.update(bar, advance=1, refresh=True)
            for heat in answers:
                if heat.rounds:
                    heats.append(heat)
                    console.print(f"\n{heat.title} ({loop})", markup=False)
                    console.print(heat_table(heat))
                    if heat.note:
                        say(console, heat.note, indent=2)
    return heats


async def _ask(question: Question, lab: Lab) -> list[Heat]:
    return await question.ask(lab)


if __name__ == "__main__":
    sys.exit(main())
