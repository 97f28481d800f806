"""
When the fd of an idle connection leaves the selector: before the loop next polls with no connection in use.

While some connections are in use, those that come back are mostly lent again within milliseconds. So they stay in the
selector for that long. Taking each out at its return would cost as much as half a query.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from loopaware_pool._core.slot import Slot, SlotState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Parking"]

_IDLE: Final = SlotState.IDLE  # bound once: see shard.py
# How long an idle connection stays in the selector while others are in use.
PARK_SECONDS: Final = 0.01


class Parking:
    """
    Parks the connections of one loop.

    Args:
        loop: The loop.
        is_in_use: Whether some of its connections are in use.
        done: Called when some have been parked.
        is_at_once: Whether a connection is parked before the loop polls, if none is in use.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        is_in_use: Callable[[], bool],
        done: Callable[[], object],
        *,
        is_at_once: bool,
    ) -> None:
        self._loop = loop
        self._is_at_once = is_at_once
        self._is_in_use = is_in_use
        self._done = done
        self._pending: set[Slot] = set()
        self._handle: asyncio.Handle | None = None

    def is_settled(self) -> bool:
        """Whether no connection is left to park."""
        return not self._pending

    def park_when_idle(self, slot: Slot) -> None:
        """Park a connection later, if it is idle and settled by then. If not, it comes here again when it is."""
        self._pending.add(slot)
        if self._handle is None:
            if self._is_at_once and not self._is_in_use():
                self._handle = self._loop.call_soon(self._look)
            else:
                self._look_later()

    def _look(self) -> None:
        if self._is_in_use():
            self._look_later()
        else:
            self._park_those_idle_since(float("inf"))

    def _look_later(self) -> None:
        self._handle = self._loop.call_later(PARK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._park_those_idle_since(monotonic() - PARK_SECONDS if self._is_in_use() else float("inf"))

    def _park_those_idle_since(self, then: float) -> None:
        for slot in list(self._pending):
            if slot.state is not _IDLE or not slot.session.is_settled:
                self._pending.discard(slot)
            elif slot.since <= then:
                self._pending.discard(slot)
                slot.session.park()
        self._handle = None
        if self._pending:
            self._look_later()
        self._done()
