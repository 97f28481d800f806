"""Calls the functions that users give in place of an argument of a connect, such as a password."""

from __future__ import annotations

import asyncio
import inspect
from types import NoneType
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool._platform.event_loops import is_cancelled
from loopaware_pool.errors import FUNCTION_GIVEN

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AskedPassword", "Asking"]

# How long a function may take. It is asyncpg's default for a whole connect.
ASK_SECONDS: Final = 60.0
# Of a server that asks for a password and gets none, or a wrong one.
_REFUSALS: Final = ("28P01", "28000")


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


class AskedPassword:
    """
    A function for a password, as asyncpg calls it: for each host.

    It may return None, as with asyncpg: a server may want no password.

    Args:
        asking: Asks it.
        name: The argument in whose place it was given.
        function: The user's.

    Attributes:
        is_answered: Whether it has given what it was last asked for. If not, no host is to blame for a timeout.
    """

    def __init__(self, asking: Asking, name: str, function: Callable[[], Any]) -> None:
        self.is_answered: bool = True
        self._asking = asking
        self._name = name
        self._function = function
        self._was_none = False

    async def __call__(self) -> str | None:
        self.is_answered = False
        password: str | None = await self._asking.ask(
            self._name, self._function, (str, NoneType), "a string, or None where the server asks for no password"
        )
        self.is_answered = True
        self._was_none = password is None
        return password

    def explain(self, error: Exception) -> None:
        """Note on a connect's error that there was no password, if the server has asked for one."""
        if self._was_none and getattr(error, "sqlstate", None) in _REFUSALS:
            error.add_note(f"{FUNCTION_GIVEN}{self._name} returned None")


def _name_argument(error: Exception, name: str) -> None:
    note = f"raised by {FUNCTION_GIVEN}{name}"
    if note not in getattr(error, "__notes__", ()):  # a function may raise the same error again
        error.add_note(note)
