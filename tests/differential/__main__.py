"""The command: random programs for a time, on every kind of pool; prints the first that differ, shrunk."""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from differential.control import Control, server
from differential.intended import PROGRAMS
from differential.judge import Judge
from differential.mends import MENDS
from differential.program import Program
from differential.shrink import shrink
from differential.sides import KINDS
from differential.stage import HASTY, PATIENT
from differential.write import write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from differential.compare import Difference


def _arguments() -> Any:
    parser = argparse.ArgumentParser(prog="python -m differential", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="decides every program")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long, all kinds together")
    parser.add_argument("--programs", type=int, help="how many programs of each kind, in place of a time")
    parser.add_argument("--kind", action="append", choices=KINDS, help="which kind of pool; all unless told otherwise")
    parser.add_argument("--number", type=int, help="only this program of the seed")
    parser.add_argument("--replay", help="a file with a program, as a difference prints it; - for standard input")
    parser.add_argument("--dsn", help="the server; one of its own unless told otherwise; its other sessions are ended")
    parser.add_argument("--shrink-seconds", type=float, default=60.0, help="how long each program is shrunk")
    parser.add_argument("--most", type=int, default=5, help="how many differences end the search")
    parser.add_argument("--record", action="store_true", help="write down a program for each row that has none")
    parser.add_argument("--without", choices=MENDS, help="take a mend out, to see whether its defect is found")
    return parser.parse_args()


def _programs(asked: Any) -> Iterator[tuple[str, Program]]:
    """Programs of all kinds in turn, each with what it is called."""
    if asked.replay:
        yield asked.replay, Program.read(sys.stdin.read() if asked.replay == "-" else Path(asked.replay).read_text())
        return
    end = None if asked.programs else monotonic() + asked.minutes * 60
    number = asked.number or 0
    while (end is None or monotonic() < end) and (end is not None or number < asked.programs):
        for kind in asked.kind or KINDS:
            yield f"--seed {asked.seed} --kind '{kind}' --number {number}", write(asked.seed, number, kind)
        if asked.number is not None:
            return
        number += 1


def _shrunk(judge: Judge, difference: Difference, seconds: float) -> Difference:
    """The same difference by a smaller program, if that shows it as surely."""
    pace = HASTY if judge.glance(difference.program) == difference.signature else PATIENT
    smaller = shrink(difference.program, lambda one: judge.glance(one, pace) == difference.signature, seconds)
    again = judge.examine(smaller)
    return difference if again is None or again.signature != difference.signature else again


def _search(asked: Any, judge: Judge) -> int:
    """Returns how many differences were found, of which each cause is told once."""
    for name, program in _programs(asked):
        difference = judge.examine(program)
        if difference is None or difference.signature in judge.told:
            continue
        print(f"{name}:\n{_tell(_shrunk(judge, difference, asked.shrink_seconds))}", flush=True)
        judge.told.add(difference.signature)
        if len(judge.told) >= asked.most:
            break
    return len(judge.told)


def _record(asked: Any, judge: Judge) -> int:
    """Write a program down for each row, and each open defect, that has none."""
    for _, program in _programs(asked):
        for key in judge.keys(program, HASTY):
            page = PROGRAMS / f"{key}.json"
            if page.exists():
                continue
            smaller = shrink(program, lambda smaller, key=key: key in judge.keys(smaller, HASTY), asked.shrink_seconds)
            if key in judge.keys(smaller) and key in judge.keys(smaller):
                page.write_text(f"{smaller}\n")
                print(f"{page}:\n{smaller}", flush=True)
    return 0


def _tell(difference: Difference) -> str:
    return f"{difference}\n{difference.program}\n"


def main() -> int:
    """Returns 1 if something differs that is not meant to."""
    asked = _arguments()
    logging.disable(logging.CRITICAL)  # programs break connections: that is told, and is not news
    mend = MENDS[asked.without]() if asked.without else nullcontext()
    with mend, nullcontext() if asked.dsn else server() as own:
        control = Control(asked.dsn or own.dsn)
        judge, began = Judge(control), monotonic()
        found = (_record if asked.record else _search)(asked, judge)
        control.close()
    print(f"{judge.programs} programs in {monotonic() - began:.0f} s. Intended differences met: {judge.met}")
    print("No difference but those." if not found else f"{found} differences that are not intended.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
