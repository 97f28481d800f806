"""Looks at frames: what the calling function has interrupted, and which variables a kept error must not keep alive."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["has_interrupted_a_decision", "let_go_of_frames"]

# The modules whose functions change state that several objects share.
_DECIDING: Final = frozenset(
    f"loopaware_pool._core.{name}"
    for name in ("acquire", "housekeeping", "parking", "permits", "runner", "shard", "slot", "wait_queue")
)


def has_interrupted_a_decision() -> bool:
    """
    Whether the function that called the calling one is part of a decision of a loop, or has interrupted one.

    A signal handler, or a finalizer that the garbage collector runs, may come between any two lines.
    """
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001
    while frame is not None and frame.f_globals.get("__name__") not in _DECIDING:
        frame = frame.f_back
    return frame is not None


def let_go_of_frames(error: BaseException, handled: BaseException | None = None) -> None:
    """
    Clear the local variables of the functions that *error* has passed through.

    A connect that is cancelled leaves its socket to the garbage collector: a generator in one of those frames has it,
    so anybody who keeps the exception keeps the socket. The frames also hold the password, and an error report may show
    variables.

    Args:
        error: The exception they raised.
        handled: The exception that was being handled when they were called. Its frames belong to others: clearing them
            would end a coroutine suspended in one (Python 3.11 and 3.12).
    """
    seen = {id(handled)}
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            pending += (one.__cause__, one.__context__)
