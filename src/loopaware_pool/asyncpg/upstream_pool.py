"""The private attributes of asyncpg's pool that programs and its tests read."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg import pool as upstream

from loopaware_pool._core.slot import SlotState
from loopaware_pool._core.state import PoolState
from loopaware_pool._core.surface import PoolSurface
from loopaware_pool._platform.event_loops import running

if TYPE_CHECKING:
    import weakref
    from asyncio import AbstractEventLoop

    from loopaware_pool._core.pool import PoolCore
    from loopaware_pool.asyncpg.driver import AsyncpgDriver
    from loopaware_pool.asyncpg.session import AsyncpgSession

__all__ = ["UpstreamPool"]


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


class UpstreamPool(PoolSurface, upstream.Pool):
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
    _connect_args = property(attrgetter("_driver.arguments.args"))
    _connect_kwargs = property(attrgetter("_driver.arguments.kwargs"))
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
