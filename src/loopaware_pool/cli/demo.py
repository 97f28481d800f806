"""
`python -m loopaware_pool.cli.demo [DSN]`: the pools beside the drivers' own, in less than a minute.

Without a DSN it runs on an embedded PostgreSQL, for which nothing needs to be installed or configured.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import NoReturn

from loopaware_pool.cli.target import CONNECT_ERRORS, Unusable, explain, open_target
from loopaware_pool.dsn import hide_passwords

__all__ = ["main"]

_CANNOT_RUN = 2
_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Repeats what it does not understand, but no password."""

    def error(self, message: str) -> NoReturn:
        super().error(hide_passwords(message))


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return the exit code: 0, 2 if there is no server to run on, 130 if interrupted."""
    dsn = _parse(arguments)
    # A CI job that is cancelled gets SIGTERM: end as for Ctrl-C, server, table and all.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        _run(dsn)
    except Unusable as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("\nInterrupted; everything the demo started is gone.", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has gone, as `| head` does
        return 0
    return 0


def _parse(arguments: list[str] | None) -> str | None:
    parser = _Parser(
        prog="python -m loopaware_pool.cli.demo",
        description="Show loopaware-pool at work beside the drivers' own pools.",
    )
    parser.add_argument(
        "dsn",
        metavar="DSN",
        nargs="?",
        help="postgresql://user:password@host:port/database; without it, an embedded server that ends with the demo",
    )
    dsn: str | None = parser.parse_args(arguments).dsn
    return dsn


def _run(dsn: str | None) -> None:
    try:
        from loopaware_pool.cli import demo_show
    except ModuleNotFoundError as error:
        raise Unusable(f"{error.name} is not installed: pip install 'loopaware-pool[demo]'") from None
    with open_target(dsn) as target:
        try:
            demo_show.show(target)
        except CONNECT_ERRORS as error:
            raise Unusable(explain(error, target.dsn)) from None


def _complain(message: str) -> int:
    print(f"demo: {message}", file=sys.stderr)
    return _CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main())
