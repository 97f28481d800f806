"""What a value given to a pool must be. Each check names the argument, the value, and what is expected."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, get_args

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = [
    "Check",
    "check_callback",
    "check_name",
    "check_number",
    "check_secret",
    "check_whole",
    "choice",
    "count",
    "fraction",
    "number",
    "or_none",
    "seconds",
]

Check = Callable[[str, Any], None]
"""Raises `TypeError` or `ValueError` unless the argument of that name may have that value."""

_INFINITY: Final = float("inf")
_LARGEST: Final = sys.float_info.max


def check_number(name: str, value: object, what: str = "a number") -> None:
    """
    Refuse a value that is not a number; *what* says which kind is expected.

    Raises:
        TypeError: It is of another type.
        ValueError: It is NaN, or a whole number too large for arithmetic with seconds.
    """
    if not _is_number(value):
        raise TypeError(f"{name}={value!r}: expected {what}")
    if value != value:  # noqa: PLR0124 - only NaN is not itself
        raise ValueError(f"{name}={value!r}: expected {what}")
    if _INFINITY > abs(value) > _LARGEST:  # arithmetic with seconds would raise OverflowError, somewhere
        raise ValueError(f"{name} is too large: expected {what}, at most {_LARGEST}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_whole(name: str, value: object) -> None:
    """Refuse a value that is not a whole number, with a `TypeError`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: expected a whole number")


def check_callback(name: str, value: object) -> None:
    """Refuse a value that is neither None nor callable, with a `TypeError`."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r}: expected a callable, or None")


def check_name(name: str, value: object) -> None:
    """Refuse a value that is no name of a pool, with a `TypeError`."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name}={value!r}: expected a non-empty string, or None")


def check_secret(name: str, value: object, kinds: tuple[type, ...], what: str) -> None:
    """
    Refuse a value that is of none of the *kinds* and not callable. The error does not show it: it may hold a password.

    Raises:
        TypeError: It is of another type.
    """
    if not isinstance(value, kinds) and not callable(value):
        raise TypeError(f"{name}: expected {what}, not {type(value).__name__}")


def number(expected: str, is_right: Callable[[float], bool]) -> Check:
    """Make a check for numbers of one kind; *expected* says which."""

    def check(name: str, value: Any) -> None:
        check_number(name, value, expected)
        if not is_right(value):
            raise ValueError(f"{name}={value!r}: expected {expected}")

    return check


def count(least: int) -> Check:
    """Make a check for whole numbers, from *least* on."""

    def check(name: str, value: Any) -> None:
        check_whole(name, value)
        if value < least:
            raise ValueError(f"{name}={value!r}: expected {least} or more")

    return check


def seconds(off: str) -> Check:
    """Make a check for numbers of seconds, of which *off* says how to turn the limit off."""
    return number(f"a finite number of seconds, 0 or more; {off}", lambda value: 0 <= value < _INFINITY)


def or_none(check: Check) -> Check:
    """Make a check that also accepts None."""
    return lambda name, value: None if value is None else check(name, value)


def check_query(name: str, query: object) -> None:
    """Check that a statement of the user's is text, and can be sent."""
    if not isinstance(query, str):
        raise TypeError(f"{name}={query!r}: expected SQL as a string, or None")
    if "\0" in query:
        raise ValueError(f"{name}={query!r}: SQL cannot have a null character")
    if not query.isascii() and query != query.encode(errors="ignore").decode():
        raise ValueError(f"{name}={query!r}: SQL cannot have a lone surrogate")
    if query and not query.strip(" \t\r\n;"):  # asyncpg fails over the answer
        raise ValueError(f"{name}={query!r}: expected a statement, or '' for nothing")


def choice(literal: Any) -> Check:
    """Make a check for the values of a `Literal`."""

    def check(name: str, value: Any) -> None:
        if value not in get_args(literal):
            raise ValueError(f"{name}={value!r}: expected one of {get_args(literal)}")

    return check


fraction: Final = number("a fraction, 0 <= x < 1", lambda value: 0 <= value < 1)
