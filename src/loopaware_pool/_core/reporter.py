"""Tells what happens on one loop: to the listener, to the log, to whoever asks."""

from __future__ import annotations

import logging
import sys
from time import monotonic
from typing import TYPE_CHECKING

from loopaware_pool._core.leases import lease_of
from loopaware_pool._core.slot import Slot, SlotState
from loopaware_pool._platform.sockets import is_watched
from loopaware_pool.stats import (
    AcquireFailed,
    ConnectFailed,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReport,
    FdLeaked,
    FdLost,
    LeaseDropped,
    LeaseOverdue,
    LeaseReturned,
    LoopEnded,
    PoolEvent,
    RegistrationLeft,
    ResetFailed,
)

if TYPE_CHECKING:
    import asyncio

    from loopaware_pool._core.config import PoolConfig
    from loopaware_pool._platform.sockets import ClosedSocket, SocketIdentity
    from loopaware_pool.stats import LeaseInfo

__all__ = ["Reporter", "apart", "logger"]

logger = logging.getLogger("loopaware_pool")


class Reporter:
    """
    Speaks for one loop of a pool.

    Args:
        config: The pool's settings.
        label: What the loop is called.
    """

    def __init__(self, config: PoolConfig, label: str) -> None:
        self._config = config
        self.label = label

    def reconfigured(self, config: PoolConfig) -> None:
        """Go by other settings from now on."""
        self._config = config

    def opened(self, seconds: float) -> None:
        """Tell of a connection."""
        self._tell(ConnectionOpened, seconds)

    def connect_failed(self, error: BaseException) -> None:
        """Tell that there is none."""
        self._tell(ConnectFailed, error)

    def closed(self, slot: Slot, reason: str) -> None:
        """Tell that a connection left the pool."""
        self._tell(ConnectionClosed, reason, monotonic() - slot.opened_at)

    def reset_failed(self, error: BaseException) -> None:
        """Tell of a session that could not be reset."""
        self._tell(ResetFailed, error)

    def acquire_failed(self, error: BaseException | None, waited_seconds: float) -> None:
        """Tell of a caller that left without a connection."""
        self._tell(AcquireFailed, error, waited_seconds)

    def overdue(self, lease: LeaseInfo) -> None:
        """Tell of a lease that lasts too long, and log it."""
        logger.warning("%s: a connection is still held by %s", self._config.name, lease)
        self._tell(LeaseOverdue, lease)

    def came_back(self, lease: LeaseInfo) -> None:
        """Tell that a lease that was reported as overdue has ended, and log it."""
        logger.warning("%s: a connection came back that was held by %s", self._config.name, lease)
        self._tell(LeaseReturned, lease)

    def dropped(self, lease: LeaseInfo) -> None:
        """Tell of a lease that nobody will ever end, and log it."""
        logger.warning(
            "%s: closing a connection that was dropped without being returned by %s", self._config.name, lease
        )
        self._tell(LeaseDropped, lease)

    def loop_ended(self, connections: int) -> None:
        """Tell that the loop took connections along."""
        self._tell(LoopEnded, connections)

    def fd_leaked(self, found: ClosedSocket) -> None:
        """Tell of a socket that has outlived its connection, and log it."""
        logger.warning(
            "%s: fd %d is still open, %.1f s after its connection on %s was closed (%s)",
            *(self._config.name, found.identity.fd, monotonic() - found.closed_at, found.loop, found.reason),
        )
        self._tell(FdLeaked, found.identity, found.loop, found.reason)

    def fd_lost(self, identity: SocketIdentity) -> None:
        """Tell of a connection that has no socket any more, and log it."""
        logger.warning(
            "%s: fd %d of an idle connection is closed, or another file by now: somebody closes fds by number",
            *(self._config.name, identity.fd),
        )
        self._tell(FdLost, identity)

    def registration_left(self, found: ClosedSocket) -> None:
        """Tell of an entry in the selector that has outlived its connection, and log it."""
        logger.warning(
            "%s: %s still watches fd %d of a connection that was closed (%s)",
            *(self._config.name, self.label, found.identity.fd, found.reason),
        )
        self._tell(RegistrationLeft, found.identity, found.reason)

    def row(self, slot: Slot, loop: asyncio.AbstractEventLoop) -> ConnectionReport:
        """Describe a connection. From any thread: it may change meanwhile, or be gone, connected or not."""
        state, session = slot.state, getattr(slot, "session", None)
        identity = None if session is None else session.identity
        return ConnectionReport(
            identity=identity,
            loop=self.label,
            state=state.value,
            registered=None if identity is None else is_watched(loop, identity.fd),
            lease=lease_of(slot, monotonic()) if state is SlotState.LENT else None,
        )

    def _tell(self, kind: type[PoolEvent], *facts: object) -> None:
        listener = self._config.on_event
        if listener is None:
            return
        handled = sys.exception()
        try:
            listener(kind(self._config.name, self.label, *facts))
        except Exception as error:
            logger.exception("%s: on_event raised", self._config.name, exc_info=apart(error, handled))


def apart(error: BaseException, handled: BaseException | None) -> BaseException:
    """
    Part *error* from what was being handled when it was raised, so that a log tells of it alone.

    What a caller's block has failed with is his: it may quote the values he gave a query, and reaches him anyway.
    """
    one = error
    while one.__context__ is not None and one.__context__ is not handled:
        one = one.__context__
    one.__context__ = None
    return error
