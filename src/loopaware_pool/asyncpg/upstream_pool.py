"""asyncpg's error messages and the private attributes of its pool that programs and its tests read."""

from __future__ import annotations

import difflib
import inspect
from asyncio import AbstractEventLoop
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NoReturn

import asyncpg
from asyncpg import pool as upstream
from asyncpg.connection import Connection

from loopaware_pool._core.config import check_callbacks, check_number, check_whole
from loopaware_pool._core.slot import SlotState
from loopaware_pool._core.state import PoolState
from loopaware_pool._platform.event_loops import running

if TYPE_CHECKING:
    import weakref
    from collections.abc import Collection, Mapping

    from loopaware_pool._core.pool import PoolCore
    from loopaware_pool.asyncpg.driver import AsyncpgDriver
    from loopaware_pool.asyncpg.session import AsyncpgSession

__all__ = ["Uncopied", "UpstreamPool", "check_connect_arguments", "check_kinds", "check_sizes"]


def check_sizes(
    min_size: int, init_size: int, max_size: int, max_queries: float, max_inactive_connection_lifetime: float
) -> None:
    """
    Raise asyncpg's errors, in its order and its words. For wrong types, which asyncpg does not check, the words are
    ours.
    """
    check_whole("max_size", max_size)
    check_whole("min_size", min_size)
    check_whole("init_size", init_size)
    check_number("max_queries", max_queries)
    check_number("max_inactive_connection_lifetime", max_inactive_connection_lifetime)
    for is_wrong, complaint in (
        (max_size <= 0, "max_size is expected to be greater than zero"),
        (min_size < 0, "min_size is expected to be greater or equal to zero"),
        (min_size > max_size, "min_size is greater than max_size"),
        (init_size < 0, "init_size is expected to be greater or equal to zero"),
        (init_size > max_size, "init_size is greater than max_size"),
        (init_size < min_size, "init_size is smaller than min_size"),
        (max_queries <= 0, "max_queries is expected to be greater than zero"),
        (
            max_inactive_connection_lifetime < 0,
            "max_inactive_connection_lifetime is expected to be greater or equal to zero",
        ),
    ):
        if is_wrong:
            raise ValueError(complaint)


def check_kinds(
    connection_class: type, record_class: type, loop: AbstractEventLoop | None, **callbacks: object
) -> None:
    """Raise asyncpg's errors for classes. For the rest, which asyncpg does not check at first, the words are ours."""
    if not _is_subclass(connection_class, Connection):
        raise TypeError(
            f"connection_class is expected to be a subclass of asyncpg.Connection, got {connection_class!r}"
        )
    if not _is_subclass(record_class, asyncpg.Record):
        raise TypeError(f"record_class is expected to be a subclass of asyncpg.Record, got {record_class!r}")
    given: object = loop
    if given is not None and not isinstance(given, AbstractEventLoop):
        raise TypeError(f"loop={loop!r}: expected an event loop, or None")
    check_callbacks(**callbacks)


def check_connect_arguments(
    given: Mapping[str, object], *, takes_any: bool, own: Collection[str] = (), taken: Collection[str] = ()
) -> None:
    """
    Refuse arguments that no connect takes, without showing a value, which may be a password.

    Args:
        given: What is passed to each connect, besides the DSN.
        takes_any: Whether connecting is a function of the user's.
        own: The pool's own arguments, to suggest one that may have been meant.
        taken: Arguments that the pool passes itself.

    Raises:
        TypeError: There is such an argument.
    """
    for name in given:
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


def _is_subclass(kind: object, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


class FreeHolder:
    """Stands for a connection that could still be opened."""

    _con = None
    _in_use = None
    _inactive_callback = None

    @staticmethod
    def is_connected() -> bool:
        return False

    @staticmethod
    def is_idle() -> bool:
        return True


FREE_HOLDER: Final = FreeHolder()


class FreeSlots:
    """Tells how many more connections could be lent, in the form of a queue."""

    def __init__(self, count: int, maxsize: int) -> None:
        self._count = count
        self.maxsize = maxsize

    def qsize(self) -> int:
        return self._count

    def empty(self) -> bool:
        return self._count == 0

    def full(self) -> bool:
        return self._count == self.maxsize


class Uncopied:
    """
    A pool that cannot be pickled or copied: connections belong to one pool of one process, and a password must not be
    stored.
    """

    def __reduce__(self: Any) -> NoReturn:
        """Refuse."""
        raise TypeError(f"pool {self.name!r} cannot be pickled or copied: make another with the same arguments")


class UpstreamPool(Uncopied, upstream.Pool):
    """The part of a pool that asyncpg's connections and its tests use."""

    _core: PoolCore[AsyncpgSession]
    _driver: AsyncpgDriver
    _home: weakref.ref[AbstractEventLoop] | None

    def _sessions(self) -> list[AsyncpgSession]:
        slots = self._core.slots(SlotState.CONNECTING, SlotState.CLOSING)
        return [slot.session for slot in slots if slot.session.is_connected()]

    def _drop_statement_cache(self) -> None:
        self._core.for_each_session(lambda session: _con(session)._drop_local_statement_cache())

    def _drop_type_cache(self) -> None:
        self._core.for_each_session(lambda session: _con(session)._drop_local_type_cache())

    # Programs read these, as for a pool's size or its server.
    _initsize = property(attrgetter("_core.shared.config.init_size"))
    _minsize = property(attrgetter("_core.shared.config.min_size"))
    _maxsize = property(attrgetter("_core.shared.config.max_size"))
    _generation = property(attrgetter("_core.shared.generation"))
    _connect_args = property(attrgetter("_driver.args"))
    _connect_kwargs = property(attrgetter("_driver.kwargs"))
    _connection_class = property(attrgetter("_driver.connection_class"))
    _record_class = property(attrgetter("_driver.record_class"))
    _init = property(attrgetter("_driver.init"))
    _reset = property(attrgetter("_driver.reset_hook"))
    _max_queries = property(attrgetter("_driver.max_queries"))

    @property
    def _connect(self) -> Any:
        return self._driver.connect_hook or asyncpg.connect

    @property
    def _loop(self) -> AbstractEventLoop | None:
        """The loop that was given; else the running one, as any will do."""
        return running() if self._home is None else self._home()

    @property
    def _holders(self) -> list[AsyncpgSession | FreeHolder]:
        sessions = self._sessions()
        return [*sessions, *[FREE_HOLDER] * (self._core.shared.config.max_size - len(sessions))]

    @property
    def _queue(self) -> FreeSlots:
        max_size = self._core.shared.config.max_size
        taken = sum(len(runner.shard.slots) - runner.shard.idle_size for runner in self._core.runners())
        return FreeSlots(max_size - taken, max_size)

    _maintenance_task = None

    @property
    def _initializing(self) -> bool:
        return self._core.state is PoolState.OPENING

    @property
    def _initialized(self) -> bool:
        return self._core.state not in (PoolState.NEW, PoolState.OPENING)

    @property
    def _closed(self) -> bool:
        return self._core.state is PoolState.CLOSED

    @property
    def _closing(self) -> bool:
        return self._core.state is PoolState.CLOSING


def _con(session: Any) -> Any:
    return session._con
