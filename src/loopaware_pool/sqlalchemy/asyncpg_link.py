"""An asyncpg connection of SQLAlchemy's, seen from below."""

from __future__ import annotations

from typing import Any

from loopaware_pool.asyncpg.link import AsyncpgLink

__all__ = ["LentAsyncpgLink"]


class LentAsyncpgLink(AsyncpgLink):
    """
    asyncpg's connection, lent without a proxy: SQLAlchemy has its own.

    A program may use asyncpg's connection after SQLAlchemy has returned it, or wait for notifications. With the fd out
    of the selector, nothing would read the answer. So a connection with listeners is not parked, and one that is parked
    goes back into the selector when anything is written. uvloop's transports do not let that be noticed; they are not
    parked.
    """

    __slots__ = ()

    needs_care = False

    def park(self) -> None:
        """Take the fd out of the selector, until something is written."""
        con, transport = self._con, self._internals.transport
        if con is None or con._listeners or con._log_listeners or not hasattr(transport, "__dict__"):
            return
        super().park()
        if self.is_parked:
            for name in ("write", "writelines"):
                setattr(transport, name, self._unparking(name))

    def _unparking(self, name: str) -> Any:
        def write(data: Any) -> None:
            self._let_writes_be()
            # The garbage collector, or the end of the loop, may have closed the socket before asyncpg says goodbye.
            if not self._loop.is_closed() and self._identity is not None and self._identity.is_open():
                self.unpark()
            getattr(self._internals.transport, name)(data)

        return write

    def _let_writes_be(self) -> None:
        for name in ("write", "writelines"):
            vars(self._internals.transport).pop(name, None)

    def unpark(self) -> None:
        """Put the fd back."""
        if self.is_parked:
            self._let_writes_be()
            super().unpark()

    def lend(self) -> None:
        """Put the fd back."""
        self.unpark()

    def take_back(self) -> bool:
        """Tell whether the connection is open. asyncpg itself makes the next query wait for a cancelled one."""
        return self._internals.is_connected()
