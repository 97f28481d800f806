"""Words for the stories of a shard: `tests/core/test_shard_*.py`."""

from __future__ import annotations

from loopaware_pool.driver import Liveness, ReturnCheck

__all__ = ["BROKEN", "PATIENCE", "READY", "RESET", "RESET_SENT", "WORN_OUT", "give_back", "kill"]

PATIENCE = 0.0625  # seconds; a sum of such is exact
READY, RESET, WORN_OUT, BROKEN = ReturnCheck.READY, ReturnCheck.RESET, ReturnCheck.WORN_OUT, ReturnCheck.BROKEN
RESET_SENT = ReturnCheck.RESET_SENT


def give_back(pool, shard, slot, check=READY):
    shard.returned(slot, check, pool.now)


def kill(*slots):
    for slot in slots:
        slot.session.life = Liveness.DEAD
