"""`loopaware-pool audit`: find what a pool leaves open when many tasks use it, or what a script does."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool._platform.conninfo import hide_passwords
from loopaware_pool.audit import OpenFd, Registration
from loopaware_pool.cli.audit.apart import run_apart
from loopaware_pool.cli.audit.pools import OURS, POOLS, find_factory
from loopaware_pool.cli.command import FINE, FOUND, Unusable, run_command, say, waiting_for
from loopaware_pool.cli.output import in_one_line
from loopaware_pool.cli.target import open_target

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["add_arguments", "main", "run"]

ARTICLES_LEAK_PER_10K: Final = 5.0
DEFAULT_TIMEOUT_SECONDS: Final = 120.0
_SHOWN: Final = 20
_BURST: Final = {"queries": 10_000, "tasks": 50, "size": 10, "pool": "ours", "loop": "asyncio"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code: 0, 1 if something was left open, 2 if it could not look."""
    return run_command("audit", lambda: (add_arguments, run), arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to *parser*."""
    count = _number(int, 1, "a whole number, 1 or more")
    parser.add_argument(
        "arguments",
        metavar="DSN",
        nargs="*",
        help="the server; without it, an embedded one. With --script, the script's arguments, after -- if they begin "
        "with a dash",
    )
    parser.add_argument("--queries", type=count, metavar="N", help="how many to run (default: 10000)")
    parser.add_argument("--tasks", type=count, metavar="N", help="how many tasks run them (default: 50)")
    parser.add_argument("--size", type=count, metavar="N", help="connections of the pool (default: 10)")
    parser.add_argument("--pool", metavar="POOL", help=f"{', '.join(POOLS)}, or module:factory (default: ours)")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), help="the event loop (default: asyncio)")
    parser.add_argument(
        "--max-leak",
        type=_number(float, 0, "a number, 0 or more"),
        metavar="N",
        help=f"fds left open per 10,000 queries that are let pass (default: {ARTICLES_LEAK_PER_10K:g}; 0 for ours)",
    )
    parser.add_argument("--script", metavar="PATH", help="audit this Python script instead")
    parser.add_argument(
        "--timeout",
        type=_number(float, 0.1, "seconds, 0.1 or more"),
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"after which what is audited is killed (default: {DEFAULT_TIMEOUT_SECONDS:g})",
    )
    parser.add_argument("--json", action="store_true", help="write an object instead of text")


def _number(kind: Callable[[str], float], least: float, expected: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        with suppress(ValueError):
            number = kind(text)
            if least <= number < float("inf"):
                return number
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")

    return parse


def run(options: argparse.Namespace) -> int:
    """Do what *options*, made by arguments of `add_arguments`, say; return the exit code."""
    found = _audit_burst(options) if options.script is None else _audit_script(options)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _show(found)
    return FINE if found["passed"] else FOUND


# ---- what is audited ----


def _audit_burst(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in _BURST}
    burst: dict[str, Any] = {name: _BURST[name] if value is None else value for name, value in given.items()}
    if len(options.arguments) > 1:
        raise Unusable("more than one DSN was given; give one, or none for an embedded server")
    find_factory(burst["pool"])
    if burst["loop"] == "uvloop" and importlib.util.find_spec("uvloop") is None:
        raise Unusable("uvloop is not installed: pip install 'loopaware-pool[uvloop]'")
    what = f"the burst through {burst['pool']}"
    with open_target("".join(options.arguments), max_connections=burst["size"] + 20) as target, waiting_for(what):
        outcome = run_apart({**burst, "dsn": target.dsn}, what, timeout_seconds=options.timeout, is_quiet=options.json)
    max_leak = options.max_leak
    if max_leak is None:
        max_leak = 0.0 if burst["pool"] in OURS else ARTICLES_LEAK_PER_10K
    passed = outcome["leaked_per_10k"] <= max_leak and not outcome["stale_registrations"]
    return {**burst, "server": target.description, "max_leak": max_leak, **outcome, "passed": passed}


def _audit_script(options: argparse.Namespace) -> dict[str, Any]:
    path: str = options.script
    for name in ("max_leak", *_BURST):
        if getattr(options, name) is not None:
            raise Unusable(
                f"--{name.replace('_', '-')} is for a burst of queries, not for --script; give one of the two"
            )
    if not os.path.isfile(path):
        raise Unusable(f"--script {hide_passwords(path)}: there is no such file; give the path of a Python script")
    job = {"script": path, "arguments": options.arguments, "safe_path": sys.flags.safe_path}
    outcome = run_apart(job, path, timeout_seconds=options.timeout, is_quiet=options.json)
    passed = not outcome["leaked"] and not outcome["stale_registrations"]
    return {"script": path, **outcome, "passed": passed}


# ---- how it is told ----


def _show(found: dict[str, Any]) -> None:
    leaked, stale = found["leaked"], found["stale_registrations"]
    if "script" in found:
        print(in_one_line(found["script"]))
        print(f"  left open at its end: {len(leaked)}")
    else:
        print("{pool}: {queries:,} queries by {tasks} tasks on {size} connections; {loop}, {server}".format(**found))
        print("  fd delta: {fd_delta} ({fds_before} before, {fds_after} after)".format(**found))
        print("  left open per 10,000 queries: {leaked_per_10k:g} ({max_leak:g} let pass)".format(**found))
    for each in leaked[:_SHOWN]:
        print(f"    {in_one_line(str(OpenFd(**each)))}")
    if len(leaked) > _SHOWN:
        print(f"    and {len(leaked) - _SHOWN} more, which --json lists")
    print(f"  registrations left with a loop: {len(stale)}")
    for each in stale:
        print(f"    {in_one_line(str(Registration(**each)))}")
    for sentence in found["unseen"]:
        print(f"  not seen here: {sentence}")
    say("passed" if found["passed"] else "FAILED", style="green" if found["passed"] else "red")


if __name__ == "__main__":
    sys.exit(main())
