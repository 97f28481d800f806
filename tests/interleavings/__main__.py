"""The command: plays every scenario in every order, within the limit given, and counts."""

from __future__ import annotations

import argparse
import json
import sys
from time import perf_counter

from interleavings.explore import explore, replay
from interleavings.scenarios import SCENARIOS
from interleavings.stage import Violation


def main() -> int:
    """Returns 1 if something happened that must never."""
    parser = argparse.ArgumentParser(prog="python -m interleavings", description=__doc__)
    parser.add_argument("--departures", type=int, help="at most so many departures from a real loop's order, in each")
    parser.add_argument("--scenario", default="", help="those whose name contains this")
    parser.add_argument("--replay", help="the choices of one order, separated by commas: shows what runs")
    parser.add_argument("--json", action="store_true", help="for machines")
    asked = parser.parse_args()
    scenarios = [scenario for scenario in SCENARIOS if asked.scenario in scenario.name]
    if asked.replay is not None:
        chosen = tuple(int(number) for number in asked.replay.split(",") if number)
        for scenario in scenarios[:1]:
            print(*replay(scenario, chosen), sep="\n")
        return 0
    began = perf_counter()
    counts, failures = {}, []
    for scenario in scenarios:
        try:
            counts[scenario.name] = explore(scenario, asked.departures).interleavings
        except Violation as violation:
            failures.append(str(violation))
        if not asked.json:
            print(f"{counts.get(scenario.name, 'VIOLATED'):>9}  {scenario.name}", flush=True)
    total, seconds = sum(counts.values()), perf_counter() - began
    if asked.json:
        print(json.dumps({"interleavings": total, "scenarios": counts, "violations": failures, "seconds": seconds}))
    else:
        print(*failures, sep="\n")
        print(
            f"{total} interleavings of {len(counts)} scenarios in {seconds:.0f} s; {len(failures)} violated a promise."
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
