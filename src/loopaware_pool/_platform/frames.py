"""Whom the calling function has interrupted; and what an error that is kept must not keep: others' variables."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["has_interrupted_a_decision", "let_go_of_frames"]

# The modules whose functions change what several things agree on.
_DECIDING: Final = frozenset(
    f"loopaware_pool._core.{name}"
    for name in ("acquire", "housekeeping", "parking", "permits", "runner", "shard", "slot", "wait_queue")
)


def has_interrupted_a_decision() -> bool:
    """
    Whether one of the functions that the calling one's caller was called from, or has interrupted, decides for a loop.

    A signal handler, or what the garbage collector calls, may come between any two lines.
    """
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001
    while frame is not None and frame.f_globals.get("__name__") not in _DECIDING:
        frame = frame.f_back
    return frame is not None


def let_go_of_frames(error: BaseException, handled: BaseException | None = None) -> None:
    """
    Let go of what the functions that *error* has passed through had in their variables.

    A connect that is cancelled leaves its socket to the garbage collector: a generator in one of those frames has it,
    and whoever keeps the exception keeps the socket. Besides, they have the password, and a report of an error may show
    its variables.

    Args:
        error: What they have raised.
        handled: What was being handled when they were called. Its frames are others': cleared, a coroutine that is
            suspended in one would be ended (Python 3.11 and 3.12).
    """
    seen = {id(handled)}
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            pending += (one.__cause__, one.__context__)
