"""Functions in place of a password, or of all the arguments of a connect, for an engine of ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from sqlalchemy import exc

from loopaware_pool._core.asking import AskedPassword, Asking

__all__ = ["ConnectArgs", "with_functions"]

ConnectArgs: TypeAlias = Mapping[str, Any] | Callable[[], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]

_CREATOR: Final = "async_creator_fn"  # SQLAlchemy's dialects take it, and pass on all that is not for them
_PSYCOPG: Final = ("psycopg", "psycopg_async")
_PASSWORD: Final = 'connect_args["password"]'


def with_functions(given: ConnectArgs, *, driver: str) -> dict[str, Any]:
    """
    Return *given* as SQLAlchemy takes it: a dict, and a password that is no function.

    Args:
        given: The engine's `connect_args`, or a function that returns them.
        driver: SQLAlchemy's name of the driver that makes the connections.
    """
    connect_args = {} if callable(given) else dict(given)
    if driver not in (*_PSYCOPG, "asyncpg"):  # the engine is refused when it is made
        return connect_args
    connect = connect_args.setdefault(_CREATOR, _connect_of(driver))
    if callable(given) or callable(connect_args.get("password")):
        function = given if callable(given) else None
        connect_args[_CREATOR] = _asking(function, connect, is_psycopg=driver in _PSYCOPG)
    return connect_args


def _connect_of(driver: str) -> Callable[..., Awaitable[Any]]:
    """Return what our pools connect with."""
    if driver in _PSYCOPG:
        from loopaware_pool.psycopg import LoopAwareConnection

        return LoopAwareConnection.connect
    from loopaware_pool.asyncpg.hosts import HostOrder

    return HostOrder().connect


def _asking(
    function: Any, connect: Callable[..., Awaitable[Any]], *, is_psycopg: bool
) -> Callable[..., Awaitable[Any]]:
    asking = Asking(exc.InvalidRequestError)

    async def create(*args: Any, **kwargs: Any) -> Any:
        if function is not None:
            kwargs = {**kwargs, **await asking.ask("connect_args", function, Mapping, "a dict")}
        password = kwargs.get("password")
        if callable(password):
            if is_psycopg:
                kwargs["password"] = await asking.ask(_PASSWORD, password, str, "a string")
            else:
                kwargs["password"] = password = AskedPassword(asking, _PASSWORD, password)
        try:
            return await connect(*args, **kwargs)
        except Exception as error:
            if isinstance(password, AskedPassword):
                password.explain(error)
            raise

    return create
