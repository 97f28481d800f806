"""The tie between a connection and its place: who hears of what the driver sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loopaware_pool._core.runner import Keeper
    from loopaware_pool._core.slot import Slot

__all__ = ["Tenancy"]


class Tenancy:
    """Tells a keeper what happens to the session in one of its slots."""

    __slots__ = ("keeper", "slot")

    def __init__(self, keeper: Keeper, slot: Slot) -> None:
        self.keeper = keeper
        self.slot = slot

    async def finished(self, patience: float | None = None) -> None:
        """
        Wait for the task that works on the connection.

        Args:
            patience: Seconds after which it is left to the pool; None waits as long as it takes.

        Raises:
            Exception: What it failed with.

        Cancellation: ends the waiting, not the task.
        """
        error = await self.keeper.finished(self.slot, patience)
        if error is not None:
            raise error

    def settled(self) -> None:
        """Park it."""
        self.keeper.notify_settled(self.slot)

    def reset_failed(self, error: BaseException) -> None:
        """Count it."""
        self.keeper.reset_failed(error)

    def demoted(self) -> None:
        """Give it up, and all that were opened before: their server takes no writes any more."""
        self.keeper.demoted(self.slot)

    def dropped(self) -> None:
        """Give it up, and tell who had it."""
        self.keeper.lease_dropped(self.slot)

    def lost(self, reason: str) -> None:
        """Give it up."""
        self.keeper.lost(self.slot, reason)
