"""
`loopaware-pool lint PATHS`: find, in source, how programs come to leak connections and registrations.

It reads files; it imports none. Exit code 0: nothing found; 1: something was; 2: it could not look.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from loopaware_pool.cli.command import FINE, FOUND, Unusable, run_command
from loopaware_pool.cli.lint.checker import check_source
from loopaware_pool.cli.lint.output import FORMATS
from loopaware_pool.cli.lint.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from loopaware_pool.cli.lint.rules import Finding

__all__ = ["add_arguments", "lint_paths", "main", "run"]

# Never looked into unless named: what is in there is other people's, or generated.
_PASSED_OVER: Final = frozenset({"__pycache__", "build", "dist", "node_modules", "site-packages", "venv"})


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code: 0, 1 if something was found, 2 if it could not look."""
    return run_command("lint", lambda: (add_arguments, run), arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to *parser*."""
    parser.add_argument("paths", metavar="PATH", nargs="*", help="files and folders; the current folder by default")
    parser.add_argument("--format", choices=FORMATS, default="text", help="how findings are written (default: text)")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    parser.add_argument("--ignore", type=_codes, default=(), metavar="CODES", help="not these, separated by commas")
    parser.add_argument("--rules", action="store_true", help="list the codes and end")


def _codes(text: str) -> list[str]:
    codes = [code.strip().upper() for code in text.split(",")]
    for code in codes:
        if code not in RULES:
            raise argparse.ArgumentTypeError(f"{code!r} is no code: there are {', '.join(RULES)}")
    return codes


def run(options: argparse.Namespace) -> int:
    """Do what *options*, made by arguments of `add_arguments`, say; return the exit code."""
    if options.rules:
        print("\n".join(f"{rule.code}  {rule.title}" for rule in RULES.values()))
        return FINE
    findings, files = lint_paths([Path(path) for path in options.paths or ["."]], options.ignore)
    written = FORMATS[options.format](findings, files)
    if written:
        print(written)
    return FOUND if findings else FINE


def lint_paths(paths: Sequence[Path], ignore: Collection[str] = ()) -> tuple[list[Finding], int]:
    """
    Check files, and all Python files in folders.

    Args:
        paths: Files and folders. A file is checked whatever it is called.
        ignore: Codes that are not told.

    Returns:
        What was found, and how many files were looked at.

    Raises:
        Unusable: A path is not there, or cannot be read.
    """
    files = list(dict.fromkeys(file for path in paths for file in _files(path)))
    findings = [found for file in files for found in _check(file)]
    return [found for found in findings if found.code not in ignore], len(files)


def _check(file: Path) -> list[Finding]:
    try:
        return check_source(file.read_bytes(), file.as_posix())
    except OSError as error:
        raise Unusable(f"{file} cannot be read: {error.strerror}") from None


def _files(path: Path) -> Iterator[Path]:
    if os.path.isdir(path):
        yield from _files_in(path)
    elif os.path.exists(path):
        yield path
    else:
        raise Unusable(f"{path} is not there: give a file or a folder")


def _files_in(path: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _PASSED_OVER)
        files = (Path(folder, name) for name in sorted(names) if name.endswith(".py") and not name.startswith("."))
        yield from filter(Path.is_file, files)


def _refuse(error: OSError) -> NoReturn:
    raise Unusable(f"{error.filename} cannot be read: {error.strerror}")


if __name__ == "__main__":
    sys.exit(main())
