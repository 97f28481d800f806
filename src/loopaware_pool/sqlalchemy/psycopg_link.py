"""A psycopg connection of SQLAlchemy's, seen from below."""

from __future__ import annotations

from typing import Final

from psycopg import pq

from loopaware_pool.psycopg.link import PsycopgLink
from loopaware_pool.psycopg.socket_waiter import ConnectionUse

__all__ = ["LentPsycopgLink"]

# Bound once: see shard.py.
_USED, _UNUSED = ConnectionUse.USED, ConnectionUse.IDLE
_USELESS: Final = (pq.TransactionStatus.ACTIVE, pq.TransactionStatus.UNKNOWN)


class LentPsycopgLink(PsycopgLink):
    """psycopg's connection, lent without its own pool's protocol: SQLAlchemy rolls back itself."""

    __slots__ = ()

    is_parked = needs_care = True  # its reader is removed, and it may not be used, whenever no caller has it

    def lend(self) -> None:
        """Let the connection be used."""
        self._watch.use = _USED

    def take_back(self) -> bool:
        """Let the connection not be used, and tell whether it is open and no query runs."""
        self._watch.detach_others()
        self._watch.use = _UNUSED
        return self._pgconn.transaction_status not in _USELESS and not self._watch.is_waited_for()
