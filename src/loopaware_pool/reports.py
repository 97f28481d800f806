"""Tells what happens on one loop: to the listener, to the log, to whoever asks."""

from __future__ import annotations

import logging
import sys
from time import monotonic
from typing import TYPE_CHECKING

from loopaware_pool.fds import is_watched
from loopaware_pool.slot import Slot, SlotState
from loopaware_pool.stats import (
    AcquireFailed,
    ConnectFailed,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReport,
    LeaseInfo,
    LeaseOverdue,
    LoopEnded,
    PoolEvent,
    ResetFailed,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from loopaware_pool.config import PoolConfig

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
        self._label = label

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

    def overdue(self, slot: Slot) -> None:
        """Tell of a lease that lasts too long, and log it."""
        lease = self.lease_of(slot, monotonic())
        logger.warning("%s: a connection is still held by %s", self._config.name, lease)
        self._tell(LeaseOverdue, lease)

    def loop_ended(self, connections: int) -> None:
        """Tell that the loop took connections along."""
        self._tell(LoopEnded, connections)

    def lease_of(self, slot: Slot, now: float) -> LeaseInfo:
        """Say who holds *slot*."""
        holder = slot.holder  # read once: another thread may ask while its loop takes the connection back
        task = holder() if holder is not None else None
        return LeaseInfo(max(now - slot.since, 0.0), None if task is None else task.get_name(), _line(slot))

    def leases(self, slots: Iterable[Slot]) -> list[LeaseInfo]:
        """Say who holds connections, longest first."""
        now = monotonic()
        lent = [slot for slot in slots if slot.state is SlotState.LENT]
        return [self.lease_of(slot, now) for slot in sorted(lent, key=lambda slot: slot.since)]

    def row(self, slot: Slot, loop: asyncio.AbstractEventLoop) -> ConnectionReport:
        """Describe a connection. From any thread: it may change meanwhile, or be gone, connected or not."""
        state, session = slot.state, getattr(slot, "session", None)
        identity = None if session is None else session.identity
        return ConnectionReport(
            identity=identity,
            loop=self._label,
            state=state.value,
            registered=None if identity is None else is_watched(loop, identity.fd),
            lease=self.lease_of(slot, monotonic()) if state is SlotState.LENT else None,
        )

    def _tell(self, kind: type[PoolEvent], *facts: object) -> None:
        listener = self._config.on_event
        if listener is None:
            return
        handled = sys.exception()
        try:
            listener(kind(self._config.name, self._label, *facts))
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


def _line(slot: Slot) -> str | None:
    """Say where a lease was acquired, from what the interpreter kept."""
    code = slot.code
    if code is None:
        return None
    lines = [line for start, end, line in code.co_lines() if start <= slot.instruction < end and line is not None]
    return f"{code.co_filename}:{lines[0] if lines else '?'} in {code.co_name}"
