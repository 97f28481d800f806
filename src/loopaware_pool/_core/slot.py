"""
One place for one connection: its states, the legal moves between them, and when they happened.

A slot exists from the decision to connect until the socket is gone. For all that time it holds one permit. Three states
exist because pools that lack them have lost connections:

* RESERVED: handed to a waiter that has not run since. A caller that is cancelled at that instant abandons the slot,
  which then goes to the next waiter. Without this state the connection would be idle and taken at the same time.
* RESETTING: a task of the pool works on it, out of reach of callers and of the sweep.
* CLOSING: on its way out, but still a session on the server, so its permit is not free yet.
"""

from __future__ import annotations

import weakref
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic

from loopaware_pool.driver import S_co

if TYPE_CHECKING:
    import asyncio
    from types import CodeType, FrameType

    from loopaware_pool.stats import LeaseInfo

__all__ = [
    "LIBRARY_MODULES",
    "TRANSITIONS",
    "Host",
    "IllegalMove",
    "Slot",
    "SlotEvent",
    "SlotState",
    "acquiring_line",
    "is_library",
]


class SlotState(Enum):
    """Where a slot is in its life."""

    # Enum hashes by name, in Python: that costs more than the whole move.
    if not TYPE_CHECKING:
        __hash__ = object.__hash__

    CONNECTING = "connecting"
    IDLE = "idle"
    RESERVED = "reserved"
    LENT = "lent"
    RESETTING = "resetting"
    CLOSING = "closing"
    GONE = "gone"


class SlotEvent(Enum):
    """What can happen to a slot."""

    if not TYPE_CHECKING:
        __hash__ = object.__hash__

    CONNECTED = "connected"
    CONNECT_FAILED = "connect failed"
    TAKEN = "taken"
    RESERVED = "reserved"
    CLAIMED = "claimed"
    ABANDONED = "abandoned"
    RETURNED = "returned"
    RESET_STARTED = "reset started"
    RESET_FINISHED = "reset finished"
    CLOSE_STARTED = "close started"
    CLOSED = "closed"


_S = SlotState
_E = SlotEvent

# Every legal move, and nothing else.
TRANSITIONS: Final[dict[SlotState, dict[SlotEvent, SlotState]]] = {
    _S.CONNECTING: {_E.CONNECTED: _S.IDLE, _E.CONNECT_FAILED: _S.GONE},
    _S.IDLE: {
        _E.TAKEN: _S.LENT,
        _E.RESERVED: _S.RESERVED,
        _E.RESET_STARTED: _S.RESETTING,
        _E.CLOSE_STARTED: _S.CLOSING,
    },
    _S.RESERVED: {_E.CLAIMED: _S.LENT, _E.ABANDONED: _S.IDLE, _E.CLOSE_STARTED: _S.CLOSING},
    _S.LENT: {_E.RETURNED: _S.IDLE, _E.RESET_STARTED: _S.RESETTING, _E.CLOSE_STARTED: _S.CLOSING},
    _S.RESETTING: {_E.RESET_FINISHED: _S.IDLE, _E.CLOSE_STARTED: _S.CLOSING},
    _S.CLOSING: {_E.CLOSED: _S.GONE},
    _S.GONE: {},
}


# Modules whose frames are skipped when looking for the caller's own line.
LIBRARY_MODULES: Final = frozenset(
    {
        "asyncio.tasks",
        "asyncpg.pool",
        "contextlib",
        "loopaware_pool.asyncpg.pool",
        "loopaware_pool.asyncpg.proxy",
        "loopaware_pool.compat",
        "loopaware_pool.psycopg.pool",
        "loopaware_pool.psycopg.lending",
        "loopaware_pool.sqlalchemy.pool",
        "loopaware_pool._core.acquire",
        "loopaware_pool.tracing",
    }
)


def is_library(frame: FrameType) -> bool:
    """Whether a frame is this library's, or of SQLAlchemy, which has many modules between a caller and its pool."""
    name = str(frame.f_globals.get("__name__"))
    return name in LIBRARY_MODULES or name.startswith("sqlalchemy.")


def acquiring_line(frame: FrameType | None) -> tuple[CodeType | None, int]:
    """
    Find where an acquire was called: the first frame from *frame* up that is the caller's own.

    The interpreter makes an object of each frame that is looked at, and should free it when the function returns. So
    *frame* should be the caller's already.
    """
    while frame is not None and frame.f_globals.get("__name__") in LIBRARY_MODULES:
        frame = frame.f_back
    return (None, 0) if frame is None else (frame.f_code, frame.f_lasti)


class IllegalMove(RuntimeError):
    """A move outside the table was asked for: a defect of the pool. Nothing was changed."""


class Host:
    """
    Where connections of a loop lead to: one object for each address.

    Attributes:
        heard_at: When it last showed that it is there, monotonic seconds; minus infinity if it has not.
    """

    __slots__ = ("__weakref__", "heard_at")

    def __init__(self) -> None:
        self.heard_at: float = float("-inf")


class Slot(Generic[S_co]):
    """
    A connection's place in the pool. Touched by its own loop only.

    Attributes:
        state: Where it is in its life; changed by `move` alone.
        session: The driver's side of the connection; unset while connecting.
        host: Where it leads to; unset while connecting.
        generation: The pool's generation when it was opened; `expire()` begins a new one.
        opened_at: When its connect began, later when it was connected, monotonic seconds.
        since: When its present idle time or lease began, monotonic seconds. A ping does not end an idle time.
        pinged_at: When it was last pinged, monotonic seconds; minus infinity if never.
        looked_at: When its loop last looked for an answer that was almost due, monotonic seconds.
        expires_at: When `max_lifetime` ends it, monotonic seconds; infinite if never.
        reported: The report of this lease as overdue; None if there was none.
        holder: A weak reference to the task that acquired it last.
        code, instruction: Where that task acquired it, as a code object and an offset; None and 0 where it is not
            known.
    """

    __slots__ = (
        "code",
        "expires_at",
        "generation",
        "holder",
        "host",
        "instruction",
        "looked_at",
        "opened_at",
        "pinged_at",
        "reported",
        "session",
        "since",
        "state",
    )

    session: S_co
    host: Host

    def __init__(self, generation: int, now: float) -> None:
        self.state: SlotState = SlotState.CONNECTING
        self.generation: int = generation
        self.opened_at: float = now
        self.since: float = now
        self.pinged_at: float = float("-inf")
        self.looked_at: float = float("-inf")
        self.expires_at: float = float("inf")
        self.reported: LeaseInfo | None = None
        self.holder: weakref.ref[Any] | None = None
        self.code: CodeType | None = None
        self.instruction: int = 0

    @property
    def unheard_since(self) -> float:
        """Since when it is idle and was not pinged, monotonic seconds."""
        return max(self.since, self.pinged_at)

    def move(self, event: SlotEvent) -> None:
        """
        Change the state as the table says.

        Raises:
            IllegalMove: The table has no such move.
        """
        try:
            self.state = TRANSITIONS[self.state][event]
        except KeyError:
            raise IllegalMove(f"{event} cannot happen to a slot that is {self.state}") from None

    def is_lent(self) -> bool:
        """Whether a caller has it."""
        return self.state is SlotState.LENT

    def lent_to(self, task: asyncio.Task[Any] | None, code: CodeType | None, instruction: int) -> None:
        """Note which task acquired it, and where."""
        self.holder = None if task is None else weakref.ref(task)
        self.code = code
        self.instruction = instruction

    def __repr__(self) -> str:
        return f"<Slot {self.state.value} {getattr(self, 'session', None)!r}>"
