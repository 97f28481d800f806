"""
The way out for all that commands print: nothing in it can command a terminal, or pass for something else.

Names, paths and a server's words are anybody's. So all text of a command goes through one place, which shows control
characters, those that reverse the order of a line, and what has no width, as in `\\u001b`. Inside JSON that is the same
string again. rich's own sequences are let through by `VisibleConsole`, which looks at what they are put around.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["OutputLost", "in_one_line", "silence", "unfiltered", "visible", "visible_output"]

# C0 but for tab and newline, DEL, C1, what has no width or turns the writing around, and halves of pairs, which stand
# for bytes of a file's name. Joiners (U+200C, U+200D) are left: languages are written with them.
_INVISIBLE: Final = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_BREAKS: Final = re.compile("[\t\n]")


class OutputLost(Exception):
    """What a command says cannot be written; the message says why."""


def visible(text: str) -> str:
    """Show what would not be seen, or would do something; lines stay lines."""
    return _INVISIBLE.sub(_escape, text)


def in_one_line(text: str) -> str:
    """The same, of something that is to stay within its line."""
    return _BREAKS.sub(_escape, visible(text))


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


class _Output:
    """A stream for text, whose errors are told from those of the work that is done meanwhile."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        encoding = self.stream.encoding or "utf-8"
        with _telling_loss():
            self.stream.write(self._shown(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with _telling_loss():
            self.stream.flush()

    def _shown(self, text: str) -> str:
        return text

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _VisibleOutput(_Output):
    def _shown(self, text: str) -> str:
        return visible(text)


@contextmanager
def _telling_loss() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # the reader has gone: no reason to complain
        raise
    except OSError as error:
        raise OutputLost(f"what it says cannot be written: {error.strerror or error}") from error


@contextmanager
def visible_output() -> Iterator[None]:
    """Have all that is printed in this block go through `visible`; to nowhere, where a stream is closed."""
    with ExitStack() as undo:
        for name in ("stdout", "stderr"):
            before: Any = getattr(sys, name)
            if isinstance(before, _Output):
                continue
            stream = undo.enter_context(open(os.devnull, "w")) if before is None else before
            setattr(sys, name, _VisibleOutput(stream))
            undo.callback(setattr, sys, name, before)
        yield


def unfiltered(stream: TextIO) -> TextIO:
    """*stream* for what brings sequences of its own, and makes visible what it puts them around."""
    return cast("TextIO", _Output(stream.stream)) if isinstance(stream, _Output) else stream


def silence(stream: TextIO) -> None:
    """Write no more to *stream*: Python flushes once more when it ends, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
