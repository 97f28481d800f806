"""Read the numbers of doctor's arguments."""

from __future__ import annotations

from typing import Final

__all__ = ["count", "positive"]

# More than any of them can be; sums over so many take no time that is noticed.
_MOST: Final = 1_000_000
# Wider than any rate, duration or size in use; products and quotients of two stay finite.
_LEAST_POSITIVE: Final = 1e-9
_MOST_POSITIVE: Final = 1e12


def count(name: str, text: str, least: int = 1) -> int:
    """
    Read a number of connections, or of processes.

    Raises:
        ValueError: It is none, or below *least*, or above a million; the message has *name*.
    """
    if not (text.isascii() and text.isdecimal()) or int(text[:20]) < least:
        raise ValueError(f"{name} {text}: expected a whole number, {least} or more")
    if int(text[:20]) > _MOST:
        raise ValueError(f"{name} {text[:20]}: expected a whole number, {_MOST} at most")
    return int(text[:20])


def positive(name: str, text: str) -> float:
    """
    Read a number.

    Raises:
        ValueError: It is none, or not above 0, or beyond 1e-9 to 1e12; the message has *name*.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} {text}: expected a number above 0")
    if not _LEAST_POSITIVE <= number <= _MOST_POSITIVE:
        raise ValueError(f"{name} {text}: expected a number from {_LEAST_POSITIVE:g} to {_MOST_POSITIVE:g}")
    return number
