"""
`python -m benchmarks.anatomy`: what the parts of an acquire and a release cost, in instructions, by valgrind.

Each part is taken out in turn, and what the whole then costs less is the part's. A lease of asyncpg's flavour, with
nothing in it and nothing to reset. `--bytecodes` tells instead, function by function, what the interpreter executes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import loopaware_pool
from benchmarks.instructions import DSN_VARIABLE, count_instructions
from loopaware_pool._core import parking, slot
from loopaware_pool.asyncpg import session as asyncpg_session
from loopaware_pool.cli.target import Unusable, open_target
from loopaware_pool.driver import Liveness, ReturnCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import FrameType

FEWER, MORE = 500, 2500
BYTECODE_CYCLES = 100
SESSION = asyncpg_session.AsyncpgSession


def main() -> int:
    """Count, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anatomy", description=__doc__)
    parser.add_argument(
        "--dsn",
        default=os.environ.get(DSN_VARIABLE),
        help="postgresql://user:password@host:port/database; default an embedded server",
    )
    parser.add_argument("--bytecodes", action="store_true", help="count what the interpreter executes")
    parser.add_argument("--run", nargs=2, metavar=("PART", "CYCLES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        part, cycles = options.run
        PARTS[part]()
        asyncio.run(_run(options.dsn, int(cycles)))
        return 0
    try:
        with open_target(options.dsn) as target:
            if options.bytecodes:
                asyncio.run(_run(target.dsn, BYTECODE_CYCLES, counted=_count_bytecodes))
                return 0
            whole = _cost(target.dsn, "whole")
            print(f"{whole:10,.0f} instructions an acquire and a release")
            for part in list(PARTS)[1:]:
                print(f"{whole - _cost(target.dsn, part):10,.0f} of them: {part}", flush=True)
    except Unusable as error:
        print(f"benchmarks.anatomy: {error}", file=sys.stderr)
        return 2
    return 0


def _cost(dsn: str, part: str) -> float:
    arguments = (dsn, "benchmarks.anatomy", "--run", part)
    fewer, more = (count_instructions(*arguments, str(cycles)) for cycles in (FEWER, MORE))
    return (more - fewer) / (MORE - FEWER)


async def _run(
    dsn: str, cycles: int, counted: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext()
) -> None:
    parking.PARK_SECONDS = 1e6  # type: ignore[misc]  # what passes in time is not to count: all is slower here
    async with loopaware_pool.create_pool(dsn, min_size=1, max_size=1, session_reset="never") as pool:
        await asyncio.sleep(0.3)
        with counted(cycles):
            for _ in range(cycles):
                connection = await pool.acquire()
                await pool.release(connection)


@contextmanager
def _count_bytecodes(cycles: int) -> Iterator[None]:
    """Print how many the interpreter executes in the block, by function and cycle."""
    calls: Counter[str] = Counter()
    bytecodes: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "call":
            calls[frame.f_code.co_qualname] += 1
        elif event == "opcode":
            bytecodes[frame.f_code.co_qualname] += 1
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)
    print(f"{bytecodes.total() / cycles:10,.0f} bytecodes an acquire and a release")
    for name, count in bytecodes.most_common():
        if count >= cycles:
            print(f"{count / cycles:10,.0f} of them: {name}, called {calls[name] / cycles:.1f} times")


def _out(kind: Any, name: str, instead: Callable[..., object]) -> Callable[[], None]:
    return lambda: setattr(kind, name, instead)


PARTS: dict[str, Callable[[], None]] = {
    "whole": lambda: None,
    "who holds it, and from which line": _out(slot.Slot, "lent_to", lambda *_: None),
    "whether it is alive": _out(SESSION, "liveness", lambda _: Liveness.ALIVE),
    "whether it can be taken back as it is": _out(SESSION, "take_back", lambda _: ReturnCheck.READY),
    "cursors, statements, listeners it left": _out(SESSION, "invalidate_derivatives", lambda _: None),
    "having it parked if it stays idle": _out(parking.Parking, "park_when_idle", lambda *_: None),
}


if __name__ == "__main__":
    sys.exit(main())
