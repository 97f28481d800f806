"""Reports what happens on one loop: to the listener, to the log, and on request."""

from __future__ import annotations

import asyncio
import logging
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

from loopaware_pool._core.leases import lease_of
from loopaware_pool._core.slot import Slot, SlotState
from loopaware_pool._platform.log_fields import error_type, fields
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
    from collections.abc import Callable, Mapping

    from loopaware_pool._core.state import SharedState
    from loopaware_pool._platform.sockets import ClosedSocket, SocketIdentity
    from loopaware_pool.stats import LeaseInfo

__all__ = ["Reporter", "logger", "without_context"]

logger = logging.getLogger("loopaware_pool")


class Reporter:
    """
    Reports for one loop of a pool.

    Args:
        shared: What the pool's loops share, its settings among it.
        label: The loop's name for people.
        counts: Counts the pool's connections and callers, for the log.
    """

    def __init__(self, shared: SharedState, label: str, counts: Callable[[], Mapping[str, Any]] = dict) -> None:
        self._shared = shared
        self.label = label
        self._counts = counts

    def emit_opened(self, seconds: float) -> None:
        """Report a new connection, which took *seconds* to open."""
        self._emit(ConnectionOpened, seconds)

    def emit_connect_failed(self, error: BaseException) -> None:
        """Report that a connection could not be opened."""
        self._emit(ConnectFailed, error)

    def emit_closed(self, slot: Slot, reason: str) -> None:
        """Report that a connection left the pool."""
        self._emit(ConnectionClosed, reason, monotonic() - slot.opened_at)

    def emit_reset_failed(self, error: BaseException) -> None:
        """Report a session that could not be reset."""
        self._emit(ResetFailed, error)

    def emit_acquire_failed(self, error: BaseException | None, waited_seconds: float) -> None:
        """Report a caller that left without a connection."""
        self._emit(AcquireFailed, error, waited_seconds)

    def emit_overdue(self, lease: LeaseInfo) -> None:
        """Report and log a lease that lasts too long."""
        logger.warning(
            "%s: a connection is still held by %s",
            *(self._shared.config.name, lease),
            extra=self._lease_fields("lease_overdue", lease),
        )
        self._emit(LeaseOverdue, lease)

    def emit_late_return(self, lease: LeaseInfo) -> None:
        """Report and log that a lease has ended which was reported as overdue."""
        logger.warning(
            "%s: a connection came back that was held by %s",
            *(self._shared.config.name, lease),
            extra=self._lease_fields("lease_returned", lease),
        )
        self._emit(LeaseReturned, lease)

    def emit_dropped(self, lease: LeaseInfo) -> None:
        """Report and log a lease that will never be ended."""
        logger.warning(
            "%s: closing a connection that was dropped without being returned by %s",
            *(self._shared.config.name, lease),
            extra=self._lease_fields("lease_dropped", lease),
        )
        self._emit(LeaseDropped, lease)

    def emit_loop_ended(self, connections: int) -> None:
        """Report that the loop ended with connections on it."""
        self._emit(LoopEnded, connections)

    def emit_fd_leaked(self, found: ClosedSocket) -> None:
        """Report and log a socket that has outlived its connection."""
        fd, seconds = found.identity.fd, monotonic() - found.closed_at
        logger.warning(
            "%s: fd %d is still open, %.1f s after its connection on %s was closed (%s)",
            *(self._shared.config.name, fd, seconds, found.loop, found.reason),
            extra=self._fields(
                "fd_leaked", loop=found.loop, pool_fd=fd, pool_closed_seconds=seconds, pool_close_reason=found.reason
            ),
        )
        self._emit(FdLeaked, found.identity, found.loop, found.reason)

    def emit_fd_lost(self, identity: SocketIdentity) -> None:
        """Report and log a connection whose socket is gone."""
        logger.warning(
            "%s: fd %d of an idle connection is closed, or another file by now: some code closes fds by number",
            *(self._shared.config.name, identity.fd),
            extra=self._fields("fd_lost", pool_fd=identity.fd),
        )
        self._emit(FdLost, identity)

    def emit_registration_left(self, found: ClosedSocket) -> None:
        """Report and log a selector entry that has outlived its connection."""
        logger.warning(
            "%s: %s still watches fd %d of a connection that was closed (%s)",
            *(self._shared.config.name, self.label, found.identity.fd, found.reason),
            extra=self._fields("registration_left", pool_fd=found.identity.fd, pool_close_reason=found.reason),
        )
        self._emit(RegistrationLeft, found.identity, found.reason)

    def row(self, slot: Slot, loop: asyncio.AbstractEventLoop) -> ConnectionReport:
        """
        Describe a connection. From any thread, so its state may change meanwhile, and it may not be connected yet.
        """
        state, session = slot.state, getattr(slot, "session", None)
        identity = None if session is None else session.identity
        return ConnectionReport(
            identity=identity,
            loop=self.label,
            state=state.value,
            registered=None if identity is None else is_watched(loop, identity.fd),
            lease=lease_of(slot, monotonic()) if state is SlotState.LENT else None,
        )

    def _emit(self, kind: type[PoolEvent], *facts: object) -> None:
        config = self._shared.config
        listener = config.on_event
        if listener is None:
            return
        handled = sys.exception()
        try:
            listener(kind(config.name, self.label, *facts))
        except (Exception, asyncio.CancelledError) as error:  # a plain call cannot be cancelled: the listener raised it
            logger.exception(
                "%s: on_event raised",
                config.name,
                exc_info=without_context(error, handled),
                extra=self._fields("listener_failed", pool_error=error_type(error)),
            )

    def _lease_fields(self, event: str, lease: LeaseInfo) -> dict[str, Any]:
        return self._fields(
            event,
            pool_held_seconds=lease.held_seconds,
            pool_holder_task=lease.task,
            pool_holder_line=lease.where,
            pool_holder_stack=list(lease.stack),
            **self._counts(),
        )

    def _fields(self, event: str, loop: str | None = None, **facts: Any) -> dict[str, Any]:
        return fields(event, self._shared.config.name, loop=loop or self.label, **facts)


def without_context(error: BaseException, handled: BaseException | None) -> BaseException:
    """
    Remove from *error* the exception that was being handled when it was raised, so that a log shows *error* alone.

    The error of a caller's block is the caller's own. It may quote values of a query, and the caller gets it anyway.
    """
    one = error
    while one.__context__ is not None and one.__context__ is not handled:
        one = one.__context__
    one.__context__ = None
    return error
