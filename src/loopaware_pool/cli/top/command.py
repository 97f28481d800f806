"""
`loopaware-pool top ADDRESS`: watch the pools of a running process, which serves a live view there.

Exit code 0: it was ended by q or Ctrl-C, or has done what it was asked for; 2: there is no view, or none any more.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.command import FINE, Unusable, pause, run_command
from loopaware_pool.cli.top.source import NoView, Source

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from loopaware_pool.live.snapshot import Snapshot

__all__ = ["add_arguments", "main", "run"]

DEFAULT_INTERVAL_SECONDS: Final = 1.0
DEFAULT_TIMEOUT_SECONDS: Final = 5.0
_LONGEST_SECONDS: Final = 86400.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("top", lambda: (add_arguments, run), arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to *parser*."""
    parser.add_argument(
        "address", metavar="ADDRESS", help="what the program gave serve_live(): a Unix socket's path, or host:port"
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=DEFAULT_INTERVAL_SECONDS,
        metavar="SECONDS",
        help=f"from one look to the next (default: {DEFAULT_INTERVAL_SECONDS:g})",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"that an answer may take (default: {DEFAULT_TIMEOUT_SECONDS:g})",
    )
    parser.add_argument("--once", action="store_true", help="look once; what has happened is counted from the start")
    parser.add_argument("--json", action="store_true", help="write an object, in one line, for each look")


def run(options: argparse.Namespace) -> int:
    """Do what *options*, made by arguments of `add_arguments`, say; return the exit code."""
    try:
        for name in ("interval", "timeout"):
            _check_seconds(name, getattr(options, name))
        _watch(Source(options.address, options.timeout), options)
        sys.stdout.flush()
    except (ValueError, NoView) as error:
        raise Unusable(str(error)) from None
    except KeyboardInterrupt:
        return FINE
    except BrokenPipeError:  # the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FINE


def _watch(source: Source, options: argparse.Namespace) -> None:
    if options.json:
        _repeat(source, options, lambda now, before: print(now.to_json()))
        return
    try:
        from loopaware_pool.cli.top import screen
    except ModuleNotFoundError:
        raise Unusable("rich is not installed: pip install 'loopaware-pool[cli]', or look with --json") from None
    if sys.stdout.isatty() and not options.once:
        screen.watch(source, options.interval)
    else:
        _repeat(source, options, partial(screen.show, source))


def _repeat(source: Source, options: argparse.Namespace, show: Callable[[Snapshot, Snapshot | None], None]) -> None:
    before = None
    while True:
        now = source.fetch()
        show(now, before)
        sys.stdout.flush()
        if options.once:
            return
        before = now
        pause(options.interval)


def _check_seconds(name: str, value: float) -> None:
    if not 0 < value <= _LONGEST_SECONDS:
        raise ValueError(f"--{name} {value:g}: expected seconds above 0, {_LONGEST_SECONDS:g} at most")


if __name__ == "__main__":
    sys.exit(main())
