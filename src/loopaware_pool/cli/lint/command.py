"""
`loopaware-pool lint PATHS`: find, in source, how programs come to leak connections and registrations.

It reads files; it imports none. Exit code 0: nothing found; 1: something was; 2: it could not look.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.command import FINE, FOUND, run_command
from loopaware_pool.cli.lint.checker import check_source
from loopaware_pool.cli.lint.config import LintConfig, LintConfigError, check_codes, find_config, read_config
from loopaware_pool.cli.lint.output import FORMATS
from loopaware_pool.cli.lint.rules import RULES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from loopaware_pool.cli.lint.rules import Finding

__all__ = ["add_arguments", "lint_paths", "main", "run"]

# Never looked into unless named: what is in there is somebody else's, or made.
_PASSED_OVER: Final = frozenset({"__pycache__", "build", "dist", "node_modules", "site-packages", "venv"})


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code: 0, 1 if something was found, 2 if it could not look."""
    return run_command("lint", lambda: (add_arguments, run), arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to *parser*."""
    parser.add_argument("paths", metavar="PATH", nargs="*", help="files and folders; the current folder by default")
    parser.add_argument("--format", choices=FORMATS, default="text", help="how findings are written (default: text)")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    parser.add_argument("--select", type=_codes, metavar="CODES", help="only these codes, separated by commas")
    parser.add_argument("--ignore", type=_codes, metavar="CODES", help="not these codes, separated by commas")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a pyproject.toml; by default the nearest")
    parser.add_argument("--rules", action="store_true", help="list the codes and end")


def run(options: argparse.Namespace) -> int:
    """Do what *options*, made by arguments of `add_arguments`, say; return the exit code."""
    if options.rules:
        print("\n".join(f"{rule.code}  {rule.title}" for rule in RULES.values()))
        return FINE
    findings, files = lint_paths([Path(path) for path in options.paths or ["."]], _config(options))
    written = FORMATS[options.format](findings, files)
    if written:
        print(written)
    return FOUND if findings else FINE


def lint_paths(paths: Sequence[Path], config: LintConfig | None = None) -> tuple[list[Finding], int]:
    """
    Check files, and all Python files in folders.

    Args:
        paths: Files and folders. A file is checked whatever it is called.
        config: Which rules hold where; None for all, everywhere.

    Returns:
        What was found, and how many files were looked at.

    Raises:
        LintConfigError: A path is not there, or cannot be read.
    """
    config = LintConfig() if config is None else config
    findings: list[Finding] = []
    files = list(dict.fromkeys(_files(paths, config)))
    for path in files:
        try:
            source = path.read_bytes()
        except OSError as error:
            raise LintConfigError(f"{path} cannot be read: {error.strerror}") from None
        findings += [found for found in check_source(source, path.as_posix()) if config.wants(found.code, path)]
    return findings, len(files)


def _files(paths: Sequence[Path], config: LintConfig) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from _files_in(path, config)
        elif path.exists():
            yield path
        else:
            raise LintConfigError(f"{path} is not there: give a file or a folder")


def _files_in(folder: Path, config: LintConfig) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise LintConfigError(f"{folder} cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _PASSED_OVER or config.excludes(entry):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _files_in(entry, config)
        elif entry.suffix == ".py" and entry.is_file():
            yield entry


def _config(options: argparse.Namespace) -> LintConfig:
    config = read_config(options.config or find_config(Path.cwd()))
    for key in ("select", "ignore"):
        codes = getattr(options, key)
        if codes is not None:
            check_codes(f"--{key}", codes)
            config = replace(config, **{key: codes})
    return config


def _codes(text: str) -> list[str]:
    return [code.strip().upper() for code in text.split(",") if code.strip()]


if __name__ == "__main__":
    sys.exit(main())
