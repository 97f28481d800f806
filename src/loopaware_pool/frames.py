"""What an error that is kept must not keep: the variables of the functions it has passed through."""

from __future__ import annotations

import traceback

__all__ = ["let_go_of_frames"]


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
