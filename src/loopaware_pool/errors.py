"""The errors of a pool. Each names the pool and carries its data as attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from loopaware_pool.stats import LeaseInfo, PoolStats

__all__ = [
    "ErrorFamily",
    "Overloaded",
    "PoolClosed",
    "PoolError",
    "PoolTimeout",
    "TooManyWaiting",
    "UnsupportedLoop",
    "WrongLoop",
    "reason",
]

# What a note has that names the argument in whose place the user has given a function.
FUNCTION_GIVEN: Final = "the function given as "


class PoolError(Exception):
    """
    The common base.

    Attributes:
        pool: Name of the pool.
    """

    pool: str

    def __init__(self, message: str, *, pool: str) -> None:
        super().__init__(message)
        self.pool = pool


class PoolClosed(PoolError):
    """The pool is closed, or was closed while the caller waited."""


class TooManyWaiting(PoolError):
    """
    As many callers are waiting already as `max_waiting` allows.

    Attributes:
        max_waiting: The limit, a number of callers.
    """

    max_waiting: int

    def __init__(self, *, pool: str, max_waiting: int) -> None:
        super().__init__(
            f"pool {pool!r} has {max_waiting} callers waiting already, the limit that max_waiting sets", pool=pool
        )
        self.max_waiting = max_waiting


# What the drivers say where `target_session_attrs` wants another kind of host.
_WRONG_HOST: Final = (
    "session is read-only",
    "session is not read-only",
    "server is in hot standby mode",
    "server is not in hot standby mode",
    "None of the hosts match the target attribute requirement",
)


def reason(error: BaseException) -> str:
    """
    Return in one line why a connect failed, in the words of the server or the operating system.

    No other text is shown, but for some words of libpq's: a driver may quote from what it was given to connect with.
    """
    name, said = type(error).__name__, str(error)
    text = said
    if getattr(error, "sqlstate", None) is None:
        _, fatal, text = text.partition("FATAL:")  # as libpq quotes the server
        if not fatal:
            text = getattr(error, "strerror", None) or next((words for words in _WRONG_HOST if words in said), "")
    words = next((line.strip() for line in text.splitlines() if line.strip()), "")
    notes = [note for note in getattr(error, "__notes__", ()) if FUNCTION_GIVEN in note]
    return f"{name}{f': {words}' if words else ''}{''.join(f' ({note})' for note in notes)}"


class Overloaded(TooManyWaiting):
    """
    Load shedding: the queue is backed up, and the caller has waited longer than `shed_after`.

    Attributes:
        waited: How long the caller had waited, in seconds.
        shed_after: The limit, in seconds.
        waiting: How many callers of the same loop waited behind it.
        max_waiting: 0: the number of callers is not the reason.
    """

    waited: float
    shed_after: float
    waiting: int

    def __init__(self, *, pool: str, shed_after: float, waited: float, waiting: int) -> None:
        PoolError.__init__(
            self,
            f"pool {pool!r} is overloaded: refused after {waited:.2f} s in the queue, with {waiting} callers behind, "
            f"as shed_after={shed_after} asks for; try later, hold connections for less time, or raise max_size",
            pool=pool,
        )
        self.max_waiting = 0
        self.waited = waited
        self.shed_after = shed_after
        self.waiting = waiting


class PoolTimeout(PoolError, TimeoutError):
    """
    No connection came within the caller's timeout.

    If connecting failed meanwhile, the last error is the `__cause__`, and the text names it, too.

    Attributes:
        timeout: The caller's timeout, in seconds.
        stats: The pool at that moment; where many callers time out at once, up to 0.1 s before.
        holders: Who held connections of this loop then, the longest lease first.
        held_by_this_task: The leases among these that the waiting task held itself, in a nested acquire.
        complaint: How the message begins, with a place for the seconds.
    """

    args: tuple[Any, ...]
    complaint: ClassVar[str] = "couldn't get a connection in {:.2f} s"
    timeout: float
    stats: PoolStats
    holders: tuple[LeaseInfo, ...]
    held_by_this_task: tuple[LeaseInfo, ...] = ()

    def __init__(
        self,
        *,
        timeout: float,
        stats: PoolStats,
        holders: tuple[LeaseInfo, ...],
        during: str = "",
        cause: BaseException | None = None,
    ) -> None:
        held = "; ".join(str(lease) for lease in holders[:3]) or "nobody on this loop"
        counts = stats.summary("other callers")  # the caller itself has left the queue
        failed = "" if cause is None else f"; connecting failed last with {reason(cause)}"
        super().__init__(f"{self.complaint.format(timeout)}{during}: {counts}; held by {held}{failed}", pool=stats.name)
        self.__cause__ = cause
        self.timeout = timeout
        self.stats = stats
        self.holders = holders

    def add_own(self, own: tuple[LeaseInfo, ...], where: str | None) -> None:
        """
        Point out a nested acquire: the task waited while it held connections itself.

        Args:
            own: The leases it held.
            where: File, line and function of the acquire that timed out; None if unknown.
        """
        self.held_by_this_task = own
        nested = f"this very task holds {len(own)} of them (nested acquire from {where or 'unknown'})"
        self.args = (f"{self.args[0]}; {nested}", *self.args[1:])


class WrongLoop(PoolError, RuntimeError):
    """A connection was used on another event loop than the one that opened it."""


class UnsupportedLoop(PoolError, RuntimeError):
    """No event loop is running, or one that cannot watch sockets."""


@dataclass(frozen=True, slots=True)
class ErrorFamily:
    """
    The classes that a flavour raises: ours, and at the same time those of the pool that it replaces.

    Attributes:
        closed: Raised when the pool is closed or closing.
        timeout: Raised when a deadline passes.
        too_many_waiting: Raised when `max_waiting` is reached.
        unsupported_loop: Raised where no usable loop is running.
        overloaded: Raised while the queue is backed up, for a caller that has waited for longer than `shed_after`.
        closing_text, closed_text: The messages, with a place for the pool's name.
    """

    closed: type[PoolClosed]
    timeout: type[PoolTimeout]
    too_many_waiting: type[TooManyWaiting]
    unsupported_loop: type[UnsupportedLoop] = UnsupportedLoop
    overloaded: type[Overloaded] = Overloaded
    closing_text: str = "pool is closing"
    closed_text: str = "pool is closed"
