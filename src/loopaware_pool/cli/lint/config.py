"""What `lint` is told in a project's `pyproject.toml`, under `[tool.loopaware-pool.lint]`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool.cli.command import Unusable
from loopaware_pool.cli.lint.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["LintConfig", "LintConfigError", "find_config", "read_config"]

_TABLE: Final = "tool.loopaware-pool.lint"


class LintConfigError(Unusable):
    """The configuration cannot be used; the message says in one line why."""


@dataclass(frozen=True, slots=True)
class LintConfig:
    """
    Which rules hold where.

    Attributes:
        select: Codes, or beginnings of codes, to look for.
        ignore: Codes, or beginnings of codes, to leave out; stronger than *select*.
        exclude: Patterns of paths, or names of folders and files, that are not looked at when their folder is.
        per_file_ignores: Codes to leave out, by pattern of path.
    """

    select: Sequence[str] = ("LAP",)
    ignore: Sequence[str] = ()
    exclude: Sequence[str] = ()
    per_file_ignores: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def wants(self, code: str, path: Path) -> bool:
        """Whether findings of *code* in *path* are to be told."""
        ignored = [code for pattern, codes in self.per_file_ignores.items() if is_like(path, pattern) for code in codes]
        return code.startswith(tuple(self.select)) and not code.startswith((*self.ignore, *ignored))

    def excludes(self, path: Path) -> bool:
        """Whether *path* is to be passed over."""
        return any(path.name == pattern or is_like(path, pattern) for pattern in self.exclude)


def is_like(path: Path, pattern: str) -> bool:
    """Whether *path*, or its end, is like *pattern*: `tests/*` is like any path in any folder `tests`."""
    return fnmatch(path.as_posix(), pattern) or fnmatch(path.as_posix(), f"*/{pattern}")


def find_config(start: Path) -> Path | None:
    """Find the nearest `pyproject.toml` in *start* or above; None if there is none."""
    for folder in (start, *start.parents):
        candidate = folder / "pyproject.toml"
        if candidate.is_file():
            return candidate
    return None


def read_config(path: Path | None) -> LintConfig:
    """
    Read what is said in a `pyproject.toml`.

    Args:
        path: The file; None for none, and the defaults.

    Raises:
        LintConfigError: It cannot be read, or says something that is not understood.
    """
    if path is None:
        return LintConfig()
    try:
        table: Any = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise LintConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LintConfigError(f"{path} is not TOML: {error}") from None
    for key in _TABLE.split("."):
        table = table.get(key, {}) if isinstance(table, dict) else {}
    try:
        return _config_of(table)
    except LintConfigError as error:
        raise LintConfigError(f"[{_TABLE}] in {path}: {error}") from None


def _config_of(table: Any) -> LintConfig:
    known = {each.name.replace("_", "-"): each.name for each in fields(LintConfig)}
    settings: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise LintConfigError(f"{key!r} is unknown: there are {', '.join(known)}")
        settings[known[key]] = _ignores(value) if key == "per-file-ignores" else _strings(key, value)
    for key in ("select", "ignore"):
        check_codes(key, settings.get(key, ()))
    return LintConfig(**settings)


def _ignores(value: Any) -> Mapping[str, Sequence[str]]:
    if not isinstance(value, dict):
        raise LintConfigError("'per-file-ignores' must be a table of patterns and lists of codes")
    for pattern, codes in value.items():
        check_codes(f"per-file-ignores.{pattern!r}", _strings(pattern, codes))
    return value


def _strings(key: str, value: Any) -> Sequence[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise LintConfigError(f"{key!r} must be a list of strings")
    return value


def check_codes(key: str, codes: Sequence[str]) -> None:
    """Raise LintConfigError for what is no code, nor the beginning of one."""
    for code in codes:
        if not code or not any(known.startswith(code) for known in RULES):
            raise LintConfigError(f"{key}: {code!r} is no code: there are {', '.join(RULES)}")
