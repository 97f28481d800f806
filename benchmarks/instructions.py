"""
`python -m benchmarks.instructions`: what a query costs this process, in instructions, as valgrind counts them.

Unlike time, instructions are nearly the same each time, whatever else the machine does. What the kernel does is not
counted, nor what the server does. Each contender is run for a few queries and for more, and the difference is divided.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.contenders import CONNECTIONS, CONTENDERS, Setting
from loopaware_pool._core import parking
from loopaware_pool.cli.target import Unusable, open_target

if TYPE_CHECKING:
    from benchmarks.contenders import Client

__all__ = ["DSN_VARIABLE", "count_instructions"]

DSN_VARIABLE = "LOOPAWARE_BENCH_DSN"

FEWER, MORE = 300, 1100


def main() -> int:
    """Count, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--tasks", type=int, default=10, help=f"on {CONNECTIONS} connections; default 10")
    parser.add_argument(
        "--dsn",
        default=os.environ.get(DSN_VARIABLE),
        help="postgresql://user:password@host:port/database; default an embedded server",
    )
    parser.add_argument("--run", nargs=2, metavar=("CONTENDER", "QUERIES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        contender, queries = options.run
        asyncio.run(_run(contender, options.dsn, int(queries), options.tasks))
        return 0
    try:
        with open_target(options.dsn) as target:
            for contender in CONTENDERS:
                if contender.needs is not None or options.tasks > (contender.max_tasks or options.tasks):
                    continue
                run = (target.dsn, "benchmarks.instructions", "--tasks", str(options.tasks), "--run", contender.name)
                fewer, more = (count_instructions(*run, str(number)) for number in (FEWER, MORE))
                print(f"{contender.name:20} {(more - fewer) / (MORE - FEWER):10,.0f} instructions a query", flush=True)
    except Unusable as error:
        print(f"benchmarks.instructions: {error}", file=sys.stderr)
        return 2
    return 0


def count_instructions(dsn: str, *arguments: str) -> int:
    """
    Run `python -m` with *arguments* under valgrind.

    Args:
        dsn: For the environment, as other accounts can read arguments.
        arguments: A module, and what it is to do.

    Raises:
        Unusable: There is no valgrind here.
    """
    if shutil.which("valgrind") is None:
        raise Unusable("valgrind is not installed")
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-m", *arguments]
    environment = os.environ | {DSN_VARIABLE: dsn}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    counted = re.search(r"Collected : (\d+)", ended.stderr)
    assert counted is not None, ended.stderr
    return int(counted[1])


async def _run(name: str, dsn: str, queries: int, tasks: int) -> None:
    contender = next(one for one in CONTENDERS if one.name == name)
    parking.PARK_SECONDS = 1e6  # type: ignore[misc]  # what passes in time is not to count: all is slower here
    async with contender.open(Setting(dsn), "instructions") as client:
        await asyncio.gather(*(_work(client, queries // tasks) for _ in range(tasks)))


async def _work(client: Client, queries: int) -> None:
    for _ in range(queries):
        await client.fetch("SELECT 1")


if __name__ == "__main__":
    sys.exit(main())
