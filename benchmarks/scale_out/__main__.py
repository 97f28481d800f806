"""
`python -m benchmarks.scale_out measure`: what connections cost a real server. `... simulate`: where pools alone stop.

The simulation has no clock and needs no server; its parameters are what `measure` has found (`model.py`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.__main__ import folder, rounds
from benchmarks.scale_out.draw import draw
from benchmarks.scale_out.measure import QUERIES, SIZES, growth, measure, measure_proxy
from benchmarks.scale_out.scenarios import simulate
from loopaware_pool.cli.command import FINE, Parser, Unusable, attempt
from loopaware_pool.cli.demo.show import format_ratio, make_console, make_table, say
from loopaware_pool.cli.doctor.numbers import positive
from loopaware_pool.cli.measure import Spread, ratios
from loopaware_pool.testing.embedded_server import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.console import Console


def main() -> int:
    """Do what the command line asks for, and return the exit code."""

    def work() -> int:
        parser = Parser("python -m benchmarks.scale_out", __doc__ or "")
        parser.add_argument("what", choices=["measure", "simulate"])
        parser.add_argument("--rounds", type=rounds, default=7, help="of measure; default 7")
        parser.add_argument("--seconds", type=_seconds, help="of each turn; default 1 measured, 4 simulated")
        parser.add_argument("--seed", type=int, default=1, help="of simulate; the same one gives the same figures")
        parser.add_argument("--pgbouncer", metavar="PROGRAM", type=_program, help="measure what this one does, only")
        parser.add_argument("--out", metavar="FOLDER", type=folder, help="write figures, and plots, to FOLDER")
        options = parser.parse_args()
        console = make_console(sys.stdout)
        return _measure(options, console) if options.what == "measure" else _simulate(options, console)

    return attempt("scale_out", work)


def _seconds(text: str) -> float:
    try:
        return positive("", text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0") from None


def _program(text: str) -> Path:
    found = shutil.which(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a program that exists")
    return Path(found)


def _measure(options: argparse.Namespace, console: Console) -> int:
    if options.pgbouncer is not None:
        return _measure_proxy(options, console)
    try:
        report = measure(options.rounds, options.seconds or 1.0)
    except (EmbeddedServerError, OSError) as error:
        raise Unusable(str(error)) from None
    say(
        console,
        f"PostgreSQL {report['postgresql']}, {report['processors']} processors shared with the clients; medians of "
        f"{report['rounds']} rounds, and each round's ratio to {min(SIZES)} connections, with their range.",
    )
    for others in ("active", "idle"):
        for query in QUERIES:
            table = make_table(f"{query}, {others}", "queries/s", "CPU us", "queries/s ratio", "CPU ratio", "switches")
            speed, cost = (growth(report, others, query, one) for one in ("queries_per_second", "server_cpu_us"))
            for turn in report["turns"]:
                if (turn["others"], turn["query"]) == (others, query):
                    _add_turn(table, turn, speed, cost)
            console.print(table)
    table = make_table("MiB a connection", "fresh", "used", "page tables")
    for row in report["memory"]:
        table.add_row(*(str(row[name]) for name in ("connections", "fresh_mib", "used_mib", "page_tables_mib")))
    console.print(table)
    if options.out is not None:
        (options.out / "measured.json").write_text(json.dumps(report, indent=1) + "\n")
    return FINE


def _measure_proxy(options: argparse.Namespace, console: Console) -> int:
    try:
        report = measure_proxy(options.pgbouncer, options.rounds, options.seconds or 1.0)
    except (EmbeddedServerError, OSError) as error:
        raise Unusable(str(error)) from None
    for query in QUERIES:
        table = make_table(query, "queries/s", "CPU us", "queries/s ratio", "CPU ratio", "connections")
        turns = [turn for turn in report["turns"] if turn["query"] == query]
        first = turns[0]["figures"]
        for turn in turns:
            speed, cost, connections = turn["figures"].values()
            table.add_row(
                turn["way"],
                f"{Spread.of(speed).median:,.0f}",
                f"{Spread.of(cost).median:.1f}",
                format_ratio(ratios(speed, first["queries_per_second"])),
                format_ratio(ratios(cost, first["server_cpu_us"])),
                f"{Spread.of(connections).median:.0f}",
            )
        console.print(table)
    if options.out is not None:
        (options.out / "measured-proxy.json").write_text(json.dumps(report, indent=1) + "\n")
    return FINE


def _add_turn(table: Any, turn: Mapping[str, Any], speed: Mapping[int, Spread], cost: Mapping[int, Spread]) -> None:
    size, figures = turn["connections"], turn["figures"]
    medians = {name: Spread.of(several).median for name, several in figures.items()}
    table.add_row(
        str(size),
        f"{medians['queries_per_second']:,.0f}",
        f"{medians['server_cpu_us']:.1f}",
        format_ratio(speed[size]),
        format_ratio(cost[size]),
        f"{medians['switches']:.2f}",
    )


def _simulate(options: argparse.Namespace, console: Console) -> int:
    report = simulate(options.seed, options.seconds or 4.0)
    for part, first in (("more_machines", "machines"), ("larger_pools", "max_size")):
        for name, rows in report[part].items():
            figures = [figure for figure in rows[0] if figure != "size"]
            table = make_table(first, *(figure.replace("_", " ") for figure in figures))
            for row in rows:
                table.add_row(str(row["size"]), *(f"{row[figure]:,}" for figure in figures))
            console.print(f"\n{name}", markup=False)
            console.print(table)
    if options.out is not None:
        (options.out / "simulated.json").write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"Written to {options.out}: simulated.json", *draw(report, options.out), markup=False)
    return FINE


if __name__ == "__main__":
    sys.exit(main())
