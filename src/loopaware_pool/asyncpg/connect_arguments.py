"""What each connect is made with: the arguments as they were given, and those that functions of the user's return."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from loopaware_pool._core.asking import AskedPassword
from loopaware_pool._core.checks import check_secret

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from loopaware_pool._core.asking import Asking

__all__ = ["ConnectArguments", "Credentials", "Dsn", "check_connect_arguments"]

Credentials: TypeAlias = Callable[[], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]
Dsn: TypeAlias = str | Callable[[], str | Awaitable[str]]

# Arguments that the pool itself passes to a connect.
TAKEN: Final = ("loop", "connection_class", "record_class")


class ConnectArguments:
    """
    The arguments of `asyncpg.connect`, or of the user's own `connect`.

    Args:
        args: The positional ones; the DSN, if any, is the first.
        kwargs: The others.
        credentials: Returns some that are used in their place; None for none.

    Raises:
        TypeError: The DSN is neither a string nor a function.

    Attributes:
        args, kwargs: As given.
    """

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any], credentials: Credentials | None) -> None:
        dsn = args[0] if args else kwargs.get("dsn")
        check_secret("dsn", dsn, (str, NoneType), "a string, a function that returns one, or None")
        self.args = args
        self.kwargs = kwargs
        self._credentials = credentials

    def have_functions(self) -> bool:
        """Whether any of them is asked for at each connect."""
        dsn = self.args[0] if self.args else self.kwargs.get("dsn")
        return callable(dsn) or callable(self.kwargs.get("password")) or self._credentials is not None

    async def now(self, asking: Asking, *, has_hook: bool) -> tuple[list[Any], dict[str, Any]]:
        """
        Return what the next connect is to be made with.

        Args:
            asking: Asks the functions.
            has_hook: Whether connecting is a function of the user's. That gets a function for a password as it is.

        Raises:
            Exception: As `Asking.ask`.
        """
        args, kwargs = list(self.args), self.kwargs
        if self._credentials is not None:
            fresh = await asking.ask("credentials", self._credentials, Mapping, "a dict")
            args, kwargs = _replaced(args, kwargs, fresh, has_hook=has_hook)
        dsn = args[0] if args else kwargs.get("dsn")
        if callable(dsn):
            dsn = await asking.ask("dsn", dsn, str, "a string")
            args, kwargs = _replaced(args, kwargs, {"dsn": dsn}, has_hook=True)
        password = kwargs.get("password")
        if callable(password) and not has_hook:  # asyncpg itself asks it, for each host
            kwargs = {**kwargs, "password": AskedPassword(asking, "password", password)}
        return args, kwargs


def _replaced(
    args: list[Any], kwargs: dict[str, Any], fresh: Mapping[str, Any], *, has_hook: bool
) -> tuple[list[Any], dict[str, Any]]:
    try:
        check_connect_arguments(fresh, takes_any=has_hook, taken=TAKEN)
    except TypeError as error:
        raise TypeError(f"credentials: {error}") from None
    fresh = dict(fresh)
    if args and "dsn" in fresh:
        args = [fresh.pop("dsn"), *args[1:]]
    return args, {**kwargs, **fresh}


def check_connect_arguments(
    given: Mapping[str, object], *, takes_any: bool, own: Collection[str] = (), taken: Collection[str] = ()
) -> None:
    """
    Refuse arguments that no connect takes, and a password of another type, without showing a value.

    Args:
        given: What is passed to each connect, besides the DSN.
        takes_any: Whether connecting is a function of the user's.
        own: The pool's own arguments, to suggest one that may have been meant.
        taken: Arguments that the pool passes itself.

    Raises:
        TypeError: There is such an argument.
    """
    if not takes_any:
        check_secret(
            "password", given.get("password"), (str, NoneType), "a string, a function that returns one, or None"
        )
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"expected names of arguments, not {type(name).__name__}")
        if name in taken:
            raise TypeError(f"{name}: the pool was made with this argument, and it cannot be changed")
    known = inspect.signature(asyncpg.connect).parameters
    is_traced = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())  # a tracer's wrapper
    for name in [] if takes_any or is_traced else given:
        if name not in known:
            takers = "asyncpg.connect does not take it" if not own else "neither the pool nor asyncpg.connect takes it"
            near = difflib.get_close_matches(name, [*own, *known], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"unexpected argument {name!r}: {takers}{hint}")
