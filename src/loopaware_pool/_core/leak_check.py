"""
Finds fds that have outlived their connections, and connections that have lost their fds. A timer does, if `fd_check` is
set.

Each loop remembers the sockets of the connections it has closed until it has seen them gone. A loop that ends leaves
the rest to the next loop that checks. Lending and returning cost nothing. A check costs one fstat for each idle
connection, and one for each connection closed since the last check.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from loopaware_pool._platform.sockets import ClosedSocket, SocketIdentity, local_address, open_fd_count, selector_keys

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from loopaware_pool._core.reporter import Reporter
    from loopaware_pool._core.shard import Shard

__all__ = ["LeakCheck", "Ledger"]


class Ledger:
    """
    What the loops of a pool share for their checks.

    Attributes:
        orphans: Sockets whose loops ended before they were seen gone.
        process_fds: How many fds the process had open at the last check; None if there was none.
    """

    def __init__(self) -> None:
        self.orphans: deque[ClosedSocket] = deque()
        self.process_fds: int | None = None


class LeakCheck:
    """
    Checks the fds of one loop's connections.

    Args:
        loop: The loop.
        shard: The loop's shard, which has the connections.
        reporter: Reports what is found.
        ledger: What the pool's loops share.
        seconds: Time between two checks, and the time a closed socket has to go away; None never checks.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        shard: Shard[Any],
        reporter: Reporter,
        ledger: Ledger,
        seconds: float | None,
    ) -> None:
        self._loop = loop
        self._shard = shard
        self._reporter = reporter
        self._ledger = ledger
        self._seconds = seconds
        self._closed: list[ClosedSocket] = []
        self._lost: set[SocketIdentity] = set()
        self._addresses: dict[int, object] = {}
        self._timer: asyncio.TimerHandle | None = None

    def remember_opened(self, identity: SocketIdentity | None) -> None:
        """Note a new connection; the first one starts the timer. *identity* is None if the driver hides the socket."""
        if self._seconds is None or identity is None:
            return
        if not identity.inode:
            self._addresses[identity.fd] = local_address(identity.fd)
        if self._timer is None:
            self._look(self._seconds)

    def remember_closed(self, identity: SocketIdentity | None, reason: str) -> None:
        """Note the socket of a connection that has been closed."""
        if self._seconds is None or identity is None:
            return
        self._lost.discard(identity)
        registration = (selector_keys(self._loop) or {}).get(identity.fd)
        address = self._addresses.pop(identity.fd, None)
        self._closed.append(ClosedSocket(identity, address, registration, monotonic(), self._reporter.label, reason))

    def stop(self) -> None:
        """Stop checking: the loop ends. Sockets not seen gone are left to other loops."""
        if self._timer is not None:
            self._timer.cancel()
        self._ledger.orphans.extend(one._replace(registration=None) for one in self._closed)
        self._closed.clear()

    def _look(self, seconds: float) -> None:
        if not self._shard.is_open:
            return
        now = monotonic()
        self._closed = [one for one in self._to_look_at() if not self._is_settled(one, now - seconds)]
        self._find_lost()
        self._ledger.process_fds = open_fd_count()
        self._timer = self._loop.call_later(seconds, _look, weakref.ref(self), seconds)

    def _to_look_at(self) -> Iterator[ClosedSocket]:
        yield from self._closed
        with contextlib.suppress(IndexError):  # another loop may take them at the same time
            while True:
                yield self._ledger.orphans.popleft()

    def _is_settled(self, one: ClosedSocket, due: float) -> bool:
        """
        Whether a socket needs no more checks: it is gone, or it was closed before *due* and is now reported as left
        behind.
        """
        is_open = one.is_open()
        if not is_open and not self._is_watched(one):
            return True
        if one.closed_at > due:
            return False
        if is_open:
            self._shard.counters.fds_leaked += 1
            self._reporter.emit_fd_leaked(one)
        else:
            self._shard.counters.registrations_left += 1
            self._reporter.emit_registration_left(one)
        return True

    def _is_watched(self, one: ClosedSocket) -> bool:
        """
        Whether the selector still has the same entry: if the number was registered again since, the entry is another.
        """
        keys = selector_keys(self._loop)
        return one.registration is not None and keys is not None and keys.get(one.identity.fd) is one.registration

    def _find_lost(self) -> None:
        """Find idle connections whose number is closed, or means another file. Lent ones are up to their callers."""
        identities = {slot.session.identity for slot in self._shard.idle} - {None} - self._lost
        for identity in identities:
            if identity is not None and not identity.is_open():
                self._lost.add(identity)
                self._shard.counters.fds_lost += 1
                self._reporter.emit_fd_lost(identity)


def _look(check: weakref.ref[LeakCheck], seconds: float) -> None:
    alive = check()
    if alive is not None:
        alive._look(seconds)  # noqa: SLF001 - its own timer
