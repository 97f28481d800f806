"""An asyncpg connection of SQLAlchemy's, seen from below."""

from __future__ import annotations

from typing import Final

from loopaware_pool.asyncpg.link import AsyncpgLink
from loopaware_pool.driver import Liveness

__all__ = ["LentAsyncpgLink"]

_DEAD: Final = Liveness.DEAD  # bound once: see shard.py


class LentAsyncpgLink(AsyncpgLink):
    """asyncpg's connection, lent without a proxy: SQLAlchemy has its own."""

    __slots__ = ()

    needs_care = False

    def lend(self) -> None:
        """Put the fd back into the selector."""
        self.unpark()

    def take_back(self) -> bool:
        """Tell whether the connection is open. asyncpg itself makes the next query wait for a cancelled one."""
        return self._internals.is_connected()
