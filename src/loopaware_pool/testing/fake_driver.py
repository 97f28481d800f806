"""A driver without a server, to test a pool's core: its connections live, die and fail as a test sets."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from loopaware_pool._platform.log_fields import error_type, fields
from loopaware_pool.driver import Liveness, ReturnCheck
from loopaware_pool.errors import ErrorFamily, PoolClosed, PoolTimeout, TooManyWaiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loopaware_pool._platform.sockets import SocketIdentity
    from loopaware_pool.driver import Owner

__all__ = ["FakeDriver", "FakeSession"]


class FakeSession:
    """
    A `loopaware_pool.driver.Session` that behaves as its attributes say.

    Attributes:
        owner: The session's listener; the pool sets it.
        identity: None, as there is no socket; a test may set one.
        says_goodbye: Whether `close` is called before `abort`.
        is_settled: Whether no answer of the server is due.
        life: What `liveness` returns.
        was_dropped: What `is_dropped` returns.
        check: What `take_back` returns.
        failure: What `reset`, `ping` and `close` raise; None for nothing.
        is_parked: Whether the pool has parked it and not unparked it since.
        calls: Names of the other methods called, in order.
    """

    identity: SocketIdentity | None = None
    says_goodbye = True

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.is_settled: bool = True
        self.life: Liveness = Liveness.ALIVE
        self.was_dropped = False
        self.check = ReturnCheck.READY
        self.failure: Exception | None = None
        self.is_parked: bool = False
        self.calls: list[str] = []

    def liveness(self) -> Liveness:
        """Return `life`."""
        return self.life

    def park(self) -> None:
        """Note it in `is_parked`."""
        self.is_parked = True

    def unpark(self) -> None:
        """Note it in `is_parked`."""
        self.is_parked = False

    def is_dropped(self) -> bool:
        """Return `was_dropped`."""
        return self.was_dropped

    def take_back(self) -> ReturnCheck:
        """Return `check`. If that is a reset that has been sent, its answer comes in the next iteration of the loop."""
        if self.check is ReturnCheck.RESET_SENT:
            self.is_settled = False
            asyncio.get_running_loop().call_soon(self._reset_answered)
        return self.check

    def _reset_answered(self) -> None:
        self.is_settled = True
        if self.owner is not None and self.life is Liveness.ALIVE:
            self.owner.settled()

    async def reset(self) -> None:
        """Wait for one iteration of the loop. Raises `failure`."""
        await self._answer("reset")

    async def ping(self) -> None:
        """Wait for one iteration of the loop. Raises `failure`."""
        await self._answer("ping")

    async def close(self) -> None:
        """Wait for one iteration of the loop. Raises `failure`."""
        await self._answer("close")

    def abort(self) -> None:
        """Become dead."""
        self.calls.append("abort")
        self.life = Liveness.DEAD

    def discard(self, *, forked: bool) -> None:
        """Become dead."""
        self.calls.append("discard in a child" if forked else "discard")
        self.life = Liveness.DEAD

    def lose(self, reason: str = "lost") -> None:
        """Die, and tell the owner, like a driver that sees its socket closed."""
        self.life = Liveness.DEAD
        if self.owner is not None:
            self.owner.lost(reason)

    async def _answer(self, call: str) -> None:
        self.calls.append(call)
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure


class FakeDriver:
    """
    A `loopaware_pool.driver.Driver` whose connects take no time, unless set otherwise.

    Attributes:
        connect_seconds: How long a connect takes, in seconds.
        failures: What the next connects raise, in this order; those after them succeed.
        sessions: Every session made so far, the oldest first.
        session_class: The class of its sessions.
        asked: Nothing: it asks no function of a user's.
    """

    logger: logging.Logger = logging.getLogger(__name__)
    asked: Sequence[str] = ()
    session_class: type[FakeSession] = FakeSession
    errors: ErrorFamily = ErrorFamily(closed=PoolClosed, timeout=PoolTimeout, too_many_waiting=TooManyWaiting)

    def __init__(self) -> None:
        self.connect_seconds: float = 0.0
        self.failures: list[Exception] = []
        self.sessions: list[FakeSession] = []

    async def connect(self) -> FakeSession:
        """
        Make a session.

        Raises:
            Exception: The first of `failures`.

        Cancellation: no session is made.
        """
        await asyncio.sleep(self.connect_seconds)
        if self.failures:
            raise self.failures.pop(0)
        session = self.session_class()
        self.sessions.append(session)
        return session

    def floor_not_restored(self, error: BaseException) -> None:
        """Log it."""
        told = fields("min_size_not_restored", None, pool_error=error_type(error))
        self.logger.warning("the floor was not restored: %s", error, extra=told)

    def forked(self) -> None:
        """Do nothing."""
