"""
The audited process of `audit`: a burst or a script, in a process that can be ended at any time.

It is told what to do on its standard input, and answers in the file whose number it is started with; both in JSON.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import runpy
import sys
import sysconfig
import traceback
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool._platform.conninfo import hide_passwords
from loopaware_pool.audit import AuditUnavailable, FdAudit
from loopaware_pool.cli.audit.pools import find_factory, open_pool
from loopaware_pool.cli.command import Unusable
from loopaware_pool.cli.measure import run_burst
from loopaware_pool.cli.target import CONNECT_ERRORS, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from loopaware_pool.audit import OpenFd

__all__ = ["main"]

# Queries of each task before the count starts.
_WARM_UP: Final = 3
# Where code lives that is not the audited program's: ours, Python's, and what is installed.
_LIBRARIES: Final = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


def main() -> None:
    """Do what the object on standard input says, and answer."""
    answer = int(sys.argv[1])
    os.set_inheritable(answer, False)
    job = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with suppress(ImportError):  # the audit traces what is imported when it begins
        import uvloop  # noqa: F401
    try:
        if "script" in job:
            _Script(job, lambda outcome: _write(answer, outcome)).run()
        else:
            _write(answer, _audit_burst(job))
    except AuditUnavailable as error:
        _write(answer, {"error": str(error)})


def _write(answer: int, outcome: dict[str, Any]) -> None:
    with os.fdopen(os.dup(answer), "w") as file:
        json.dump(outcome, file)


# ---- a burst ----


def _audit_burst(job: dict[str, Any]) -> dict[str, Any]:
    try:
        factory = find_factory(job["pool"])
        with asyncio.Runner(loop_factory=_loop_factory(job["loop"])) as runner:
            return runner.run(_burst(factory, job["dsn"], job["queries"], job["tasks"], job["size"]))
    except Unusable as error:
        return {"error": str(error)}
    except AuditUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - a pool that is not ours may raise anything
        return {"error": _explain(error, job)}


def _loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if loop == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


async def _burst(factory: Callable[..., Any], dsn: str, queries: int, tasks: int, size: int) -> dict[str, Any]:
    async with FdAudit(trace=True) as whole, open_pool(factory, dsn, size) as query:
        await run_burst(query, operations=3 * tasks, tasks=tasks)
        # A pool that opens its connections one by one may still do so.
        still_to_open = max(size - len(whole.leaked), 0)
        async with FdAudit(trace=True) as burst:
            await run_burst(query, operations=queries, tasks=tasks)
        lost = burst.leaked[still_to_open:]
    leaked = _rows([*lost, *whole.leaked])
    return {
        "leaked_per_10k": len(leaked) * 10_000 / (queries + _WARM_UP * tasks),
        "fds_before": len(whole.before),
        "fds_after": len(whole.after),
        "fd_delta": whole.delta,
        "leaked": leaked,
        "stale_registrations": [asdict(each) for each in dict.fromkeys([*burst.registrations, *whole.registrations])],
        "unseen": list(whole.unseen),
    }


def _rows(fds: Iterable[OpenFd]) -> list[dict[str, Any]]:
    return [asdict(each) for each in {(each.fd, each.inode): each for each in fds}.values()]


def _explain(error: Exception, job: dict[str, Any]) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, CONNECT_ERRORS):
        return explain(error, job["dsn"])
    return f"the pool {job['pool']} failed with {_say(error)}"


def _say(error: BaseException) -> str:
    """Say what an error is, and which line of the audited program it came through, in one line without a password."""
    said = hide_passwords(" ".join(f"{type(error).__qualname__}: {error}".split()))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    if isinstance(error, SyntaxError) or not frames:
        return said
    # The innermost line is mostly a library's, which says nothing of what to mend.
    frame = next((each for each in reversed(frames) if not each.filename.startswith(_LIBRARIES)), frames[-1])
    return f"{said} ({frame.filename}:{frame.lineno})"


# ---- a script ----


class _Script:
    """
    Runs a script as `python PATH` does, and answers when this process ends.

    By then its threads have ended and its own exit functions have run.
    """

    def __init__(self, job: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        self._path: str = job["script"]
        self._arguments: list[str] = job["arguments"]
        self._safe_path: bool = job["safe_path"]
        self._answer = answer
        self._audit = FdAudit(trace=True)
        self._error: str | None = None
        self._globals: dict[str, Any] = {}

    def run(self) -> None:
        self._audit.start()
        atexit.register(self._finish)
        # Exit functions run in reverse: loggers are to close their files before we look.
        atexit.unregister(logging.shutdown)
        atexit.register(logging.shutdown)
        sys.argv[:] = [self._path, *self._arguments]
        if not self._safe_path:
            sys.path.insert(0, os.path.dirname(os.path.abspath(self._path)))
        try:
            # Kept until we have looked: at the end of a program, its globals are still there.
            self._globals = runpy.run_path(self._path, run_name="__main__")
        except SystemExit as end:
            if end.code is not None and end.code != 0:
                self._error = f"{self._path} exited with {hide_passwords(repr(end.code))}; audit a run that succeeds"
        except BaseException as error:  # noqa: BLE001 - a script may raise anything
            self._error = f"{self._path} raised {_say(error)}; mend that first"

    def _finish(self) -> None:
        self._audit.finish()
        if self._error is not None:
            self._answer({"error": self._error})
            return
        self._answer(
            {
                "leaked": _rows([*self._audit.orphaned, *self._audit.leaked]),
                "stale_registrations": [asdict(each) for each in self._audit.registrations],
                "unseen": list(self._audit.unseen),
            }
        )


if __name__ == "__main__":
    main()
