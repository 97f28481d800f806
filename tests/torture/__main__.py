"""The command: storms for a time, on both flavours and both loops; prints what they have seen."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import json
import logging
import sys
import warnings
from contextlib import nullcontext
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import uvloop

from loopaware_pool.testing.embedded_server import EmbeddedServer
from torture.history import History, write
from torture.shrink import shrink
from torture.storm import Broken, Storm
from torture.surfaces import SURFACES
from torture.tally import Tally
from torture.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
# A round that takes longer hangs in a way that no deadline reaches.
ROUND_SECONDS = 120.0


def _arguments() -> Any:
    parser = _Parser(prog="python -m torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="decides everything that happens")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long, all kinds together")
    parser.add_argument("--rounds", type=int, help="how many rounds of each kind, in place of a time")
    parser.add_argument("--pool", action="append", choices=SURFACES, help="which; both of ours unless told otherwise")
    parser.add_argument("--loop", action="append", choices=LOOPS, help="which; both unless told otherwise")
    parser.add_argument("--dsn", help="the server; one of its own unless told otherwise")
    parser.add_argument("--through", help="the way that the pools take to it, such as a proxy; the same if left out")
    parser.add_argument("--round", type=int, help="only this round of the seed")
    parser.add_argument("--replay", help="a history, as a failure prints it")
    parser.add_argument("--patience", type=float, help="seconds after which whoever waits, waits for ever; 20, or 3")
    parser.add_argument("--shrink-seconds", type=float, default=90.0, help="how long a failing history is shortened")
    parser.add_argument("--json", action="store_true", help="for machines: a line after each round, the last counts")
    asked = parser.parse_args()
    for pool in asked.pool or ():
        if not SURFACES[pool].is_installed:
            parser.error(
                f"--pool {pool}: {SURFACES[pool].needs} is not installed; `make torture POOL={pool}` installs it"
            )
    return asked


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"torture: {message} (see --help)\n")


class Torture:
    """Storms of one kind of pool on one kind of loop."""

    def __init__(self, dsn: str, through: str, pool: str, loop: str, *, patience: float) -> None:
        self._dsn, self._loop_factory = through, LOOPS[loop]
        self._surface = SURFACES[pool]
        self._patience = patience
        self._witness = Witness(dsn)

    def storm(self, history: History) -> Storm:
        """Prepare one."""
        return Storm(
            self._surface,
            history,
            self._dsn,
            self._loop_factory,
            self._witness,
            is_strict=self._surface.is_ours,
            patience=self._patience,
        )

    def play(self, history: History, tally: Tally) -> Broken | None:
        """Let a history happen; what it broke first, if anything."""
        storm = self.storm(history)
        faulthandler.dump_traceback_later(ROUND_SECONDS, exit=True)
        gc.disable()  # it may not help
        try:
            storm.play()
        except Broken as broken:
            return broken
        finally:
            faulthandler.cancel_dump_traceback_later()
            tally.add(storm.tally)
            gc.enable()
            gc.collect()
        return None

    def rounds(self, seed: int, seconds: float | None, count: int | None) -> Iterator[tuple[int, History]]:
        """Write histories for a time, or so many."""
        end = None if seconds is None else monotonic() + seconds
        number = 0
        while (count is None or number < count) and (end is None or monotonic() < end):
            yield number, write(seed, number, self._surface.abilities)
            number += 1

    def close(self) -> None:
        """Let go of the server."""
        self._witness.close()


def _run(asked: Any, dsn: str, tell: Callable[[dict[str, Tally]], None]) -> tuple[dict[str, Tally], str]:
    """Returns what each kind has seen, and the first failure, in words; *tell* is told after each round."""
    pools, loops = asked.pool or ["ours-asyncpg", "ours-psycopg"], asked.loop or list(LOOPS)
    kinds = [(pool, loop) for pool in pools for loop in loops]
    seconds = None if asked.rounds else asked.minutes * 60 / len(kinds)
    tallies = {}
    for pool, loop in kinds:
        patience = asked.patience or (20.0 if SURFACES[pool].is_ours else 3.0)
        torture = Torture(dsn, asked.through or dsn, pool, loop, patience=patience)
        tally = tallies[f"{pool} on {loop}"] = Tally()
        try:
            for number, history in _histories(asked, torture, seconds):
                broken = torture.play(history, tally)
                tell(tallies)
                if broken is not None:
                    return tallies, _failure(torture, broken, history, f"{pool} on {loop}", asked, number)
        finally:
            torture.close()
    return tallies, ""


def _histories(asked: Any, torture: Torture, seconds: float | None) -> Iterator[tuple[int, History]]:
    if asked.replay:
        given = json.loads(asked.replay)
        yield 0, History(given["options"], tuple(given["steps"]), given["end"])
        return
    for number, history in torture.rounds(
        asked.seed, seconds, asked.rounds if asked.round is None else asked.round + 1
    ):
        if asked.round is None or number == asked.round:
            yield number, history


def _failure(torture: Torture, broken: Broken, history: History, kind: str, asked: Any, number: int) -> str:
    shortest = shrink(history, lambda shorter: torture.play(shorter, Tally()), broken, asked.shrink_seconds)
    steps = "\n".join(f"  {json.dumps(step)}" for step in shortest.steps)
    written = json.dumps({"options": shortest.options, "steps": shortest.steps, "end": shortest.end})
    return (
        f"{kind}, seed {asked.seed}, round {number}: {broken.promise}: {broken}\n"
        f"The shortest history found that does so, of {len(history.steps)} steps:\n"
        f"  {json.dumps(shortest.options)}\n{steps}\n  {shortest.end}\nreplay it with --replay '{written}'"
    )


def _tell_machines(seed: int, tallies: dict[str, Tally], failure: str = "") -> None:
    kinds = {kind: tally.as_dict() for kind, tally in tallies.items()}
    report = {"seed": seed, "total": _sum(tallies).as_dict(), "kinds": kinds, "failure": failure}
    print(json.dumps(report), flush=True)


def _sum(tallies: dict[str, Tally]) -> Tally:
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    return total


def main() -> int:
    """Returns 1 if a promise of this project's pools was broken."""
    asked = _arguments()
    warnings.simplefilter("always")
    logging.disable(logging.CRITICAL)  # the storm breaks connections: that is told, and is not news
    with nullcontext() if asked.dsn else EmbeddedServer() as server:
        began = monotonic()
        tell = partial(_tell_machines, asked.seed) if asked.json else lambda tallies: None
        tallies, failure = _run(asked, asked.dsn or server.dsn, tell)
    if asked.json:
        _tell_machines(asked.seed, tallies, failure)
    else:
        total = _sum(tallies)
        print(f"Seed {asked.seed}, {monotonic() - began:.0f} s: {', '.join(tallies)}.\n{total.text()}")
        print("Every promise was kept." if total.is_clean() else failure)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
