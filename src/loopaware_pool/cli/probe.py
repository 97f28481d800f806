"""
`loopaware-pool probe DSN`: is the server alive? One connection, one query, within a time, nothing left.

Exit code 0: it answered, and no fd was seen left open; 1: it did not, or one was; 2: the DSN is not understood.
In a program: `(await probe(dsn, timeout=2)).is_alive`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Final

import asyncpg

from loopaware_pool.audit import AuditUnavailable, FdAudit
from loopaware_pool.cli.command import FINE, FOUND, Unusable, run_command
from loopaware_pool.cli.output import in_one_line
from loopaware_pool.cli.target import CONNECT_ERRORS, explain, is_unreadable, refuse_malformed, say_goodbye

if TYPE_CHECKING:
    import argparse

__all__ = ["ProbeResult", "add_arguments", "main", "probe", "run"]

DEFAULT_TIMEOUT_SECONDS: Final = 5.0
_MISUNDERSTOOD = (asyncpg.ClientConfigurationError, ValueError, OverflowError)
# What a loop needs to end, once the time is up.
_SLACK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """
    What a probe has found.

    Attributes:
        is_alive: Whether the server answered a query in time.
        seconds: How long that took, or until it was given up.
        reason: Why not, in one line without a password; None if it is alive.
        fds_left: How many fds the probe left open. None if unknown: the command looks, as it has a process of
            its own, unless its time is up first; in a program, others open fds meanwhile.
    """

    is_alive: bool
    seconds: float
    reason: str | None = None
    fds_left: int | None = None


async def probe(dsn: str, *, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> ProbeResult:
    """
    Ask a server whether it is alive: connect, `SELECT 1`, close.

    Args:
        dsn: `postgresql://user:password@host:port/database`.
        timeout: Seconds for all of it.

    Returns:
        The result; a server that is away, or refuses, is a result too.

    Raises:
        ValueError: The DSN is not understood, or *timeout* is not above zero. The message shows no password.

    Cancellation: the connection is closed at once.
    """
    _check(dsn, timeout)
    started = perf_counter()
    try:
        async with asyncio.timeout(timeout):
            await _ask(dsn, goodbye_seconds=min(1.0, timeout / 4))
    except (*CONNECT_ERRORS, *_MISUNDERSTOOD, TimeoutError) as error:
        if isinstance(error, _MISUNDERSTOOD) and not is_unreadable(error):
            raise ValueError(explain(error, dsn)) from None
        return ProbeResult(False, perf_counter() - started, _reason(error, dsn, timeout))
    return ProbeResult(True, perf_counter() - started)


def _check(dsn: str, timeout: float) -> None:
    if not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, not {timeout!r}")
    refuse_malformed(dsn)


async def _ask(dsn: str, *, goodbye_seconds: float) -> None:
    connection = await asyncpg.connect(dsn, statement_cache_size=0)
    try:
        await connection.fetchval("SELECT 1")
        await say_goodbye(connection, goodbye_seconds)
    finally:
        connection.terminate()


def _reason(error: BaseException, dsn: str, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        where = explain(error, dsn).partition(" within ")[0]
        return f"{where} within {timeout:g} s"
    if isinstance(error, asyncpg.TooManyConnectionsError):
        return f"the server has no connection to spare: {error}"
    return explain(error, dsn)


# ---- the command ----


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("probe", lambda: (add_arguments, run), arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to *parser*."""
    parser.add_argument("dsn", metavar="DSN", help="postgresql://user:password@host:port/database")
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"for all of it (default: {DEFAULT_TIMEOUT_SECONDS:g})",
    )
    parser.add_argument("--json", action="store_true", help="write an object instead of a line")


def run(options: argparse.Namespace) -> int:
    """Do what *options*, made by arguments of `add_arguments`, say; return the exit code."""
    try:
        _check(options.dsn, options.timeout)
    except ValueError as error:
        raise Unusable(str(error)) from None
    attempt = _Attempt(options.dsn, options.timeout)
    attempt.start()
    attempt.join(options.timeout + _SLACK_SECONDS)
    if attempt.misunderstood is not None:
        raise Unusable(attempt.misunderstood)
    print(json.dumps(asdict(attempt.result)) if options.json else in_one_line(_line(attempt.result)))
    code = FINE if attempt.result.is_alive and not attempt.result.fds_left else FOUND
    if attempt.is_alive():
        # A name is still being looked up, which cannot be called off: the interpreter would wait for it.
        sys.stdout.flush()
        os._exit(code)
    return code


class _Attempt(threading.Thread):
    """A probe on a loop of its own, in a thread that need not be waited for."""

    def __init__(self, dsn: str, timeout: float) -> None:
        super().__init__(daemon=True)
        self.misunderstood: str | None = None
        self.result = ProbeResult(False, timeout, f"no answer within {timeout:g} s")
        self._dsn = dsn
        self._timeout = timeout

    def run(self) -> None:
        try:
            self._audited()
        except ValueError as error:
            self.misunderstood = str(error)

    def _audited(self) -> None:
        audit = FdAudit(trace=True)
        try:
            audit.start()
        except AuditUnavailable:
            self.result = asyncio.run(probe(self._dsn, timeout=self._timeout))
            return
        try:
            self.result = asyncio.run(probe(self._dsn, timeout=self._timeout))
        finally:
            audit.finish()
        self.result = replace(self.result, fds_left=len(audit.leaked))


def _line(result: ProbeResult) -> str:
    spent = f"{result.seconds * 1000:.0f} ms"
    state = f"alive, {spent}" if result.is_alive else f"not alive: {result.reason}"
    left = result.fds_left
    return state if not left else f"{state}; {left} {'fd was' if left == 1 else 'fds were'} left open"


if __name__ == "__main__":
    sys.exit(main())
