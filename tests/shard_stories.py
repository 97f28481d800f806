"""Words for the stories of a shard: `tests/core/test_shard_*.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopaware_pool.driver import Liveness, ReturnCheck

if TYPE_CHECKING:
    from fakes import FakePool
    from loopaware_pool._core.shard import Shard
    from loopaware_pool._core.slot import Slot

__all__ = ["BROKEN", "PATIENCE", "READY", "RESET", "RESET_SENT", "WORN_OUT", "give_back", "kill"]

PATIENCE = 0.0625  # seconds; a sum of such is exact
READY, RESET, WORN_OUT, BROKEN = ReturnCheck.READY, ReturnCheck.RESET, ReturnCheck.WORN_OUT, ReturnCheck.BROKEN
RESET_SENT = ReturnCheck.RESET_SENT


def give_back(pool: FakePool, shard: Shard, slot: Slot, check: ReturnCheck = READY) -> None:
    """A caller returns what was lent."""
    shard.returned(slot, check, pool.now)


def kill(*slots: Slot) -> None:
    """The server ends these sessions."""
    for slot in slots:
        slot.session.life = Liveness.DEAD
