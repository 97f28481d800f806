"""
`loopaware-pool demo [DSN]`: the pools beside the drivers' own, in less than a minute.

Without a DSN it runs on an embedded PostgreSQL, for which nothing needs to be installed or configured.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from loopaware_pool.cli.command import FINE, Unusable, run_command, waiting_for
from loopaware_pool.cli.demo import figures
from loopaware_pool.cli.target import CONNECT_ERRORS, explain, open_target

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from loopaware_pool.cli.target import Target

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
    parser.add_argument("--json", action="store_true", help="write the figures, an object, instead of tables")


def run(options: argparse.Namespace) -> int:
    """Do what *options*, made by arguments of `add_arguments`, say; return the exit code."""
    show = _write if options.json else _shower()
    with open_target(options.dsn) as target:
        try:
            show(target)
        except CONNECT_ERRORS as error:
            raise Unusable(explain(error, target.dsn)) from None
    return FINE


def _write(target: Target) -> None:
    with waiting_for("the demo, for up to a minute"):
        gathered = figures.gather(target)
    print(json.dumps(gathered, indent=2))


def _shower() -> Callable[[Target], None]:
    try:
        from loopaware_pool.cli.demo.show import show
    except ModuleNotFoundError as error:
        raise Unusable(f"{error.name} is not installed: pip install 'loopaware-pool[cli]'") from None
    return show


if __name__ == "__main__":
    sys.exit(main())
