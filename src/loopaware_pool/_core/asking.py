"""Calls the functions that users give in place of an argument of a connect, such as a password."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool._platform.event_loops import is_cancelled
from loopaware_pool.errors import RAISED_FOR

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Asking"]

# How long a function may take. It is asyncpg's default for a whole connect.
ASK_SECONDS: Final = 60.0


class Asking:
    """
    The functions of one pool that are asked at the moment.

    No answer is kept, and no error shows one: it may be a password.

    Args:
        stray: The class of the error for a function that raises a `CancelledError`.
    """

    def __init__(self, stray: type[Exception]) -> None:
        self._stray = stray
        self._unanswered: dict[object, str] = {}

    @property
    def unanswered(self) -> list[str]:
        """The arguments whose functions have not answered yet, on all loops."""
        return sorted(set(self._unanswered.values()))

    def forked(self) -> None:
        """Forget, in a child process, what the parent has asked."""
        self._unanswered.clear()

    async def ask(self, name: str, function: Callable[[], Any], kinds: type | tuple[type, ...], expected: str) -> Any:
        """
        Call a function, plain or async, and return its answer.

        Args:
            name: The argument in whose place it was given.
            function: Called without arguments.
            kinds: What the answer may be.
            expected: The same in words.

        Raises:
            TypeError: The answer is of another type.
            TimeoutError: There has been no answer for `ASK_SECONDS`.
            Exception: *stray*: it has raised a `CancelledError`, although nothing has cancelled the connect.
            Exception: What the function raises, with a note that names the argument.
        """
        call = object()
        self._unanswered[call] = name
        timer = asyncio.timeout(ASK_SECONDS)
        try:
            async with timer:
                answer = function()
                if inspect.isawaitable(answer):
                    answer = await answer
        except asyncio.CancelledError as stray:
            if is_cancelled():
                raise
            raise self._stray(f"{name}: the function, or what it awaits, raised CancelledError") from stray
        except TimeoutError as error:
            if timer.expired():
                raise TimeoutError(f"{name}: the function has not answered for {ASK_SECONDS:g} s") from error
            _name_argument(error, name)
            raise
        except Exception as error:
            _name_argument(error, name)
            raise
        finally:
            self._unanswered.pop(call, None)
        if not isinstance(answer, kinds):
            raise TypeError(f"{name}: the function returned {type(answer).__name__}, expected {expected}")
        return answer


def _name_argument(error: Exception, name: str) -> None:
    note = f"{RAISED_FOR}{name}"
    if note not in getattr(error, "__notes__", ()):  # a function may raise the same error again
        error.add_note(note)
