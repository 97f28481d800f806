"""
`loopaware-pool demo [DSN]`: the pools beside the drivers' own, in less than a minute.

Without a DSN it runs on an embedded PostgreSQL, for which nothing needs to be installed or configured.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from loopaware_pool.cli.command import FINE, Unusable, run_command
from loopaware_pool.cli.target import CONNECT_ERRORS, explain, open_target

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "main", "run"]


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    return run_command("demo", lambda: (add_arguments, run), arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to *parser*."""
    parser.add_argument(
        "dsn",
        metavar="DSN",
        nargs="?",
        help="postgresql://user:password@host:port/database; without it, an embedded server that ends with the demo",
    )


def run(options: argparse.Namespace) -> int:
    """Do what *options*, made by arguments of `add_arguments`, say; return the exit code."""
    try:
        from loopaware_pool.cli import demo_show
    except ModuleNotFoundError as error:
        raise Unusable(f"{error.name} is not installed: pip install 'loopaware-pool[cli]'") from None
    with open_target(options.dsn) as target:
        try:
            demo_show.show(target)
        except CONNECT_ERRORS as error:
            raise Unusable(explain(error, target.dsn)) from None
    return FINE


if __name__ == "__main__":
    sys.exit(main())
