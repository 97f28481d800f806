"""
`python -m torture.report`: all that can be counted of how reliable the pools are, as one table and one JSON file.

Storms with given seeds on both flavours and on what else a user may pick, every order of the small stories, the
fuzzing, and the overload of `benchmarks`. Each runs in a process of its own, so that one that hangs, or dies, is
counted and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn
from xml.etree import ElementTree as ET

from torture.surfaces import SURFACES
from torture.table import as_markdown
from torture.tally import Tally

ROOT = Path(__file__).parents[2]
KINDS = (
    *((pool, loop) for pool in ("ours-asyncpg", "ours-psycopg") for loop in ("asyncio", "uvloop")),
    *((pool, "asyncio") for pool in ("ours-sqlalchemy", "ours-sqlalchemy-psycopg")),
    *((pool, "asyncio") for pool in ("asyncpg", "psycopg_pool", "sqlalchemy", "sqlalchemy-psycopg")),
)
PACKAGES = {"asyncpg": "asyncpg", "psycopg": "psycopg", "psycopg_pool": "psycopg-pool", "sqlalchemy": "sqlalchemy"}
# A failing history is shortened for 90 s, a round that hangs is ended after 120 s.
STORM_EXTRA_SECONDS = 300.0


@dataclass
class Stormed:
    """
    What storms on one kind of pool came to.

    Attributes:
        tally: What they have seen.
        seeds: With which seeds.
        hung: How many did not end: the process was ended, or died.
        failures: Of ours, the shortest histories that broke a promise.
    """

    tally: Tally = field(default_factory=Tally)
    seeds: list[int] = field(default_factory=list)
    hung: int = 0
    failures: list[str] = field(default_factory=list)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"torture.report: {message} (see --help)\n")


def _arguments() -> Any:
    parser = _Parser(prog="python -m torture.report", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/reliability"), help="a folder; made if it is not there")
    parser.add_argument("--minutes", type=_positive(float), default=1.0, help="of storms on each kind of pool")
    parser.add_argument(
        "--seed", type=int, action="append", help="may be repeated, and they share the time; default 1, 2, 3"
    )
    parser.add_argument("--examples", type=_positive(int), default=5000, help="how many of each kind are fuzzed")
    parser.add_argument("--rounds", type=_positive(int), default=3, help="of the overload")
    asked = parser.parse_args()
    asked.seed = asked.seed or [1, 2, 3]
    for pool, _ in KINDS:
        if not SURFACES[pool].is_installed:
            parser.error(f"{SURFACES[pool].needs} is not installed; `make reliability` installs it")
    if asked.out.exists() and not asked.out.is_dir():
        parser.error(f"--out {asked.out}: is not a folder")
    return asked


def _positive(kind: type) -> Any:
    def read(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            number = 0
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
        return number

    return read


def _run(*arguments: str, seconds: float | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT), *sys.path[1:]])} | environment
    return subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True, timeout=seconds)


# ---- the parts ----


def storms(pool: str, loop: str, seeds: list[int], minutes: float) -> Stormed:
    """
    Let storms loose on one kind of pool.

    Args:
        pool: A name of `SURFACES`.
        loop: `"asyncio"` or `"uvloop"`.
        seeds: A process for each.
        minutes: How long, all seeds together.
    """
    found = Stormed()
    for seed in seeds:
        options = [
            "--pool",
            pool,
            "--loop",
            loop,
            "--seed",
            str(seed),
            "--minutes",
            str(minutes / len(seeds)),
            "--json",
        ]
        try:
            ended = _run("torture", *options, seconds=minutes * 60 + STORM_EXTRA_SECONDS)
            output, is_over = ended.stdout, ended.returncode in (0, 1)
        except subprocess.TimeoutExpired as expired:
            output, is_over = (expired.stdout or b"").decode(), False
        note(found, seed, output, is_over=is_over)
    return found


def note(found: Stormed, seed: int, output: str, *, is_over: bool) -> None:
    """Take down what a process has printed of its storms; *is_over* if it ended by itself."""
    found.seeds.append(seed)
    reports = [json.loads(line) for line in output.splitlines() if line.startswith("{") and line.endswith("}")]
    is_over &= bool(reports)
    found.hung += not is_over
    if reports:
        found.tally.add(Tally(**reports[-1]["total"]))
        found.failures += filter(None, [reports[-1]["failure"]])


def interleavings() -> dict[str, Any]:
    """Play every order of the small stories."""
    ended = _run("interleavings", "--json")
    report: dict[str, Any] = json.loads(ended.stdout)
    return {
        "interleavings": report["interleavings"],
        "scenarios": len(report["scenarios"]),
        "failure": "\n".join(report["violations"]),
    }


def fuzzing(examples: int, out: Path) -> dict[str, Any]:
    """Feed the parser and every argument with *examples* each that nobody has seen yet."""
    results = out / "fuzzing.xml"
    options = ["-q", "-p", "no:cacheprovider", "-o", "junit_family=legacy", f"--junitxml={results}"]
    ended = _run("pytest", "tests/test_fuzz.py", *options, LOOPAWARE_TEST_EXPLORE=str(examples))
    counted: dict[str, Any] = {"bytes fuzzed": 0, "argument combinations tried": 0}
    for seen in ET.parse(results).iter("property"):
        counted[seen.attrib["name"]] += int(seen.attrib["value"])
    return counted | {"failure": "" if ended.returncode == 0 else ended.stdout}


def overload(rounds: int, out: Path) -> dict[str, Any]:
    """Have `benchmarks` send three times the work that can be done."""
    out.mkdir(exist_ok=True)
    options = ["--only", "overload", "--loop", "asyncio", "--rounds", str(rounds), "--out", str(out)]
    ended = _run("benchmarks", *options)
    if ended.returncode:
        return {"loops": {}, "failure": ended.stderr}
    return {**json.loads((out / "figures.json").read_text()), "failure": ""}


# ---- the report ----


def main() -> int:
    """Write the report, and return 1 if a promise of this project's pools was broken."""
    asked = _arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for pool, loop in KINDS:
        what = f"storms on {pool}, {loop}"
        found[f"{pool} on {loop}"] = _timed(what, partial(storms, pool, loop, asked.seed, asked.minutes))
    report = {
        "minutes_of_each": asked.minutes,
        "seeds": asked.seed,
        "python": platform.python_version(),
        "versions": {name: version(package) for name, package in PACKAGES.items()},
        "storms": {kind: asdict(stormed) for kind, stormed in found.items()},
        "interleavings": _timed("interleavings", interleavings),
        "fuzzing": _timed("fuzzing", partial(fuzzing, asked.examples, asked.out)),
        "overload": _timed("overload", partial(overload, asked.rounds, asked.out / "overload")),
    }
    (asked.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    table = as_markdown(report)
    (asked.out / "report.md").write_text(table)
    sys.stdout.writelines(f"{failure}\n" for failure in failures(report))
    sys.stdout.write(f"\n{table}\nWritten to {asked.out}: report.json report.md\n")
    return 1 if failures(report) else 0


def _timed(what: str, work: Any) -> Any:
    began = monotonic()
    sys.stdout.write(f"{what} ... ")
    sys.stdout.flush()
    outcome = work()
    sys.stdout.write(f"{monotonic() - began:.0f} s\n")
    return outcome


def failures(report: dict[str, Any]) -> list[str]:
    """What this project's pools have failed at, in words; empty if they kept every promise."""
    found = [report[part]["failure"] for part in ("interleavings", "fuzzing", "overload") if report[part]["failure"]]
    for kind, stormed in report["storms"].items():
        if kind.startswith("ours"):
            found += stormed["failures"]
            found += [f"{kind}: {stormed['hung']} processes hung or died"] if stormed["hung"] else []
    return found


if __name__ == "__main__":
    sys.exit(main())
