"""`loopaware-pool bench`: the benchmarks, which are no part of the library, but come with it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool.cli.command import Unusable, run_command

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "main", "run"]

_HERE: Final = Path(__file__).resolve()
# In an installed package, and in a clone.
_PLACES: Final = (_HERE.parents[1] / "_shipped", _HERE.parents[3])


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench", lambda: (add_arguments, run), arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks' arguments to *parser*."""
    _benchmarks().add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Do what *options*, made by arguments of `add_arguments`, say; return the exit code."""
    code: int = _benchmarks().run(options)
    return code


def _benchmarks() -> Any:
    """Import our benchmarks; a folder of that name in the way, as in the user's own project, is passed over."""
    place = next((str(place) for place in _PLACES if (place / "benchmarks" / "__main__.py").is_file()), None)
    if place is None:
        raise Unusable("the benchmarks are not there: install loopaware-pool from its wheel, or use a clone")
    if sys.path[0] != place:
        sys.path.insert(0, place)
    try:
        return importlib.import_module("benchmarks.__main__")
    except ModuleNotFoundError as error:
        raise Unusable(f"{error.name} is not installed: pip install 'loopaware-pool[bench]'") from error
