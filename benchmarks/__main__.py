"""`python -m benchmarks`: loopaware-pool against the drivers' own pools, on asyncio and on uvloop."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from benchmarks.lab import Lab
from benchmarks.questions import QUESTIONS
from benchmarks.report import as_json, make_tables_of, verdict
from loopaware_pool.cli.demo_show import make_console, make_progress, say, say_where
from loopaware_pool.cli.target import CONNECT_ERRORS, Target, Unusable, explain, open_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from benchmarks.lab import Finding, Question

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
QUICK_ROUNDS = 9
FULL_ROUNDS = 25


def main() -> int:
    """Run what the command line asks for, and return the exit code."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with open_target(options.dsn) as target:
            _run(options, target)
    except Unusable as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute or two in place of several")
    parser.add_argument("--rounds", type=_rounds, help=f"default {FULL_ROUNDS}, with --quick {QUICK_ROUNDS}")
    parser.add_argument("--loop", choices=LOOPS, help="one event loop; default both")
    names = [question.name for question in QUESTIONS]
    parser.add_argument("--only", choices=names, action="append", help="one question; may be repeated; default all")
    parser.add_argument("--json", metavar="FILE", type=_json_file, help="write the figures to FILE as well")
    parser.add_argument("--dsn", help="postgresql://user:password@host:port/database; default an embedded server")
    options = parser.parse_args()
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else FULL_ROUNDS)
    return options


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)


def _json_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a file in a folder that exists")
    return path


def _run(options: argparse.Namespace, target: Target) -> None:
    console = make_console()
    loops = [options.loop] if options.loop else list(LOOPS)
    say_where(console, target, " and ".join(loops))
    say(
        console,
        f"Pools of 10; both take turns, {options.rounds} rounds. Figures are medians; each ratio is the median of the "
        "rounds' ratios, with their range. A query is SELECT 1 with an acquire and a release of its own. CPU is that "
        "of this process, without the server. The longest wait is for 10 connections that each task holds for 20 ms.",
    )
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    say(
        console,
        f"Load average before the run: {load:.1f}; CPUs to run on: {cpus}. Speeds need an otherwise idle machine: "
        "where the server finds no free CPU for a reset, nothing is won by not waiting for it. Where client and server "
        "have a CPU each, one task's queries mostly wait for these to wake, in a virtual machine above all; `taskset "
        "-c 0 make bench` puts both on one, and shows the work alone.",
    )
    questions = [question for question in QUESTIONS if not options.only or question.name in options.only]
    findings = {}
    for loop in loops:
        try:
            findings[loop] = _answer(console, questions, loop, target.dsn, options)
        except CONNECT_ERRORS as error:
            raise Unusable(explain(error, target.dsn)) from None
        for table in make_tables_of(loop, findings[loop]):
            console.print(table)
        console.print(f"  {verdict(findings[loop])}")
    if options.json is not None:
        report = as_json(target.description, findings, rounds=options.rounds, is_quick=options.quick, load=load)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"Written to {options.json}.", markup=False)


def _answer(
    console: Console, questions: list[Question], loop: str, dsn: str, options: argparse.Namespace
) -> list[Finding]:
    """Ask all questions on a new loop."""
    findings: list[Finding] = []
    with make_progress(console) as progress, asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        total = options.rounds * sum(question.duels for question in questions)
        bar = progress.add_task(loop, total=total)

        def finish_round() -> None:
            progress.update(bar, advance=1, refresh=True)

        lab = Lab(dsn, options.rounds, options.quick, finish_round)
        for question in questions:
            findings += runner.run(_ask(question, lab))
    return findings


async def _ask(question: Question, lab: Lab) -> list[Finding]:
    return await question.ask(lab)


if __name__ == "__main__":
    sys.exit(main())
