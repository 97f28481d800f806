"""Mends that can be taken out, to see whether the defects they mend are found."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from loopaware_pool.asyncpg_session import AsyncpgSession
from loopaware_pool.driver import ReturnCheck

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopaware_pool.asyncpg_reset import ResetAnswer

__all__ = ["MENDS"]


@contextmanager
def _without_waiting_for_answers() -> Iterator[None]:
    """A connection is lent again before the answer of its reset has come, whatever the lease has left."""
    send_reset = AsyncpgSession._send_reset

    def send_and_lend(session: AsyncpgSession, answer: ResetAnswer) -> ReturnCheck:
        check = send_reset(session, answer)
        return ReturnCheck.READY if check is ReturnCheck.RESET_SENT else check

    with mock.patch.object(AsyncpgSession, "_send_reset", send_and_lend):
        yield


MENDS = {"waits-for-answers": _without_waiting_for_answers}
