"""`loopaware-pool COMMAND`, or `python -m loopaware_pool COMMAND`. A command is imported when it is asked for."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool import __version__
from loopaware_pool.cli.command import COMMANDS, Parser, Unusable, run_command

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

# The other commands are packages.
_ONE_MODULE: Final = frozenset({"bench", "probe"})


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command that is asked for.

    Args:
        arguments: Its name and what follows; None for those of this process.

    Returns:
        The exit code: 0: fine; 1: it found something; 2: it could not do it; 130: interrupted.
    """
    options = _parser().parse_args(arguments)
    return run_command(options.command, lambda: _load(options.command), options.arguments)


def _parser() -> Parser:
    listed = "\n".join(f"  {name:<8} {purpose}" for name, purpose in COMMANDS.items())
    parser = Parser(
        "loopaware-pool", f"Connection pools that know their event loop, and what they leave open.\n\n{listed}"
    )
    parser.add_argument("--version", action="version", version=f"loopaware-pool {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of the above")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="as COMMAND --help tells")
    return parser


def _load(name: str) -> tuple[Any, Any]:
    try:
        module = import_module(f"loopaware_pool.cli.{name if name in _ONE_MODULE else name + '.command'}")
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise Unusable(f"something is not installed ({reason}): pip install 'loopaware-pool[cli]'") from error
    return module.add_arguments, module.run


if __name__ == "__main__":
    sys.exit(main())
