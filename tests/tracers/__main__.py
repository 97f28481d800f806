"""
Runs one workload under each tracer, on the drivers' own pools and on ours, and compares: `make tracers`.

It prints the tables of docs/tracing.md. Exit code 1: something differs that is not known to, or a lease that nobody
returns is not found.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from compare import what_differs
from kinds import TRACERS
from workloads import FLAVOURS

from loopaware_pool.testing.embedded_server import EmbeddedServer

PROGRAM = Path(__file__).with_name("program.py")
SECONDS = 120
HEAD = """\
| tracer | pool | imported first | spans, theirs | spans, ours | what differs |
|---|---|---|---|---|---|"""
DROPPED_HEAD = """
| tracer | pool | taken away while in use | found |
|---|---|---|---|"""


def run(dsn, tracer, flavour, whose, first):
    """What the program has printed."""
    done = subprocess.run(
        [sys.executable, PROGRAM, tracer, flavour, whose, first],
        env={**os.environ, "DSN": dsn},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        return {"error": f"exit code {done.returncode}: {done.stderr[-1000:]}", "spans": [], "outcome": None}
    return json.loads(done.stdout.splitlines()[-1])


def rows(dsn, tracer, flavour):
    """Yield a row for each order of imports, or one if both give the same, and whether it is as expected."""
    runs = {
        first: [run(dsn, tracer, flavour, whose, first) for whose in ("theirs", "ours")] for first in ("tracer", "pool")
    }
    if runs["tracer"] == runs["pool"]:
        runs = {"either": runs["tracer"]}
    for first, (theirs, ours) in runs.items():
        known, is_other = what_differs(tracer, flavour, theirs, ours)
        if is_other:
            known.append(f"**more**: {theirs['error'] or 'no error'} / {ours['error'] or 'no error'}")
        counts = f"{len(theirs['spans'])} | {len(ours['spans'])}"
        name = f"{tracer} {version(TRACERS[tracer].package)}"
        yield f"| {name} | {flavour} | {first} | {counts} | {'; '.join(known) or 'nothing'} |", not is_other


def dropped_row(dsn, tracer, flavour):
    """A row about leases that nobody returns, and whether it is as expected."""
    done = run(dsn, tracer, flavour, "dropped", "tracer")
    outcome = done["outcome"] or {"taken away": done["error"], "found": done["error"]}
    row = f"| {tracer} | {flavour} | {'yes' if outcome['taken away'] else 'no'} | {outcome['found']} |"
    return row, outcome == {"taken away": False, "found": "in the request"}


def main():
    parser = argparse.ArgumentParser(prog="make tracers", description="Run a workload under tracers, on both pools.")
    parser.add_argument("--only", metavar="TEXT", default="", help="tracers whose name has TEXT in it")
    asked = parser.parse_args()
    tracers = [tracer for tracer in TRACERS if asked.only in tracer]
    wrong = 0
    versions = ", ".join(f"{name} {version(name.lower())}" for name in ("asyncpg", "psycopg", "SQLAlchemy"))
    with EmbeddedServer() as server:
        print(versions, HEAD, sep="\n\n", flush=True)
        for tracer, flavour in itertools.product(tracers, FLAVOURS):
            for row, is_right in rows(server.dsn, tracer, flavour):
                print(row, flush=True)
                wrong += not is_right
        print(DROPPED_HEAD, flush=True)
        for tracer, flavour in itertools.product(tracers, FLAVOURS[:2]):
            row, is_right = dropped_row(server.dsn, tracer, flavour)
            print(row, flush=True)
            wrong += not is_right
    print("\nAll as expected." if not wrong else f"\n{wrong} not as expected.")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
