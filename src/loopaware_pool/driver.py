"""What the core asks of a database driver. Everything that knows one stands behind these two protocols."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from logging import Logger

    from loopaware_pool._platform.sockets import SocketIdentity
    from loopaware_pool.errors import ErrorFamily

__all__ = ["PROGRAMMING_ERRORS", "Driver", "HookFailed", "Liveness", "Owner", "ReturnCheck", "Session"]

# Of these another connect would fail as well. Each has a task of its own, so that a `RecursionError` is no matter of
# how deep the caller is. A `MemoryError` is none of them: there may be memory a moment later.
PROGRAMMING_ERRORS: Final = (TypeError, NameError, ImportError, NotImplementedError, RecursionError)


class Liveness(Enum):
    """What can be known of an idle connection without a round trip."""

    ALIVE = "alive"
    DEAD = "dead"
    UNREAD = "unread"
    """Something arrived that the driver has not read: a notification, or the server's farewell."""


class ReturnCheck(Enum):
    """What a connection needs when it comes back from a caller."""

    READY = "ready"
    """Nothing: it may be lent again now."""

    RESET_SENT = "reset sent"
    """The server's answer to a reset that has just been sent: `Owner.settled` tells when it has come."""

    RESET = "reset"
    """An awaited `Session.reset`."""

    WORN_OUT = "worn out"
    """To be closed politely and replaced."""

    STRANDED = "no loop to reset it"
    """To be aborted: its loop stands still, or ends, and will not hear an answer."""

    BROKEN = "broken"
    """To be aborted."""


class HookFailed(Exception):
    """
    A connect failed of the program: of a callback of the user's, or of its arguments; the cause is in `__cause__`.

    A caller that waits gets that cause at once: connecting again would not help.
    """


class Owner(Protocol):
    """Who hears of what happens to a session between calls."""

    def settled(self) -> None:
        """The last answer that was due has come: the connection may be parked."""

    def reset_failed(self, error: BaseException) -> None:
        """The session could not be reset; `lost` follows."""

    def demoted(self) -> None:
        """The server takes no writes any more, as it did when the connection was opened."""

    def dropped(self) -> None:
        """The caller has let go of the connection without returning it; nobody else ever will."""

    def lost(self, reason: str) -> None:
        """The connection is closed, or must be."""


class Session(Protocol):
    """One open connection. All methods run on the loop that opened it, `discard` excepted."""

    owner: Owner | None
    says_goodbye: bool
    """Whether `close` has anything to wait for. If not, `abort` does all of it."""

    @property
    def identity(self) -> SocketIdentity | None:
        """The socket; None where the driver hides it."""

    @property
    def is_settled(self) -> bool:
        """Whether no answer of the server is due: an idle connection may be parked."""

    def liveness(self) -> Liveness:
        """Look at the socket, without waiting."""

    def park(self) -> None:
        """Take the idle connection's fd out of the selector."""

    def unpark(self) -> None:
        """Put it back, before use. Does nothing if it was not parked."""

    def is_dropped(self) -> bool:
        """Whether the caller has let go of the connection. Asked now and then; no if the owner hears of it anyway."""

    def take_back(self) -> ReturnCheck:
        """Look at a connection that comes back; start what can be done for it without waiting."""

    async def reset(self) -> None:
        """Make the session as good as new. Raises if that failed; the connection is then aborted."""

    async def ping(self) -> None:
        """Make a round trip. Raises if the connection is of no use any more."""

    async def close(self) -> None:
        """Say goodbye to the server, then close the socket. Aborts if cancelled."""

    def abort(self) -> None:
        """Close the socket without a word; its loop is alive."""

    def discard(self, *, forked: bool) -> None:
        """
        Close the socket although its loop is closed, or stopped, or the parent process's.

        Args:
            forked: This is a child process: neither the server nor the selector may notice.
        """


class Driver(Protocol):
    """
    How connections are made.

    Attributes:
        logger: Where the pool this one stands in for writes its warnings.
        errors: What its callers catch.
    """

    logger: Logger
    errors: ErrorFamily

    async def connect(self) -> Session:
        """
        Open and initialise a connection on the running loop.

        Raises:
            HookFailed: A callback of the user's failed, or the arguments make no sense.
            Exception: Whatever the driver raises when it cannot connect.

        Cancellation: closes what was opened.
        """

    def floor_not_restored(self, error: BaseException) -> None:
        """Hear that a connect for `min_size` has failed, and will be tried again."""

    def forked(self) -> None:
        """Forget, in a child process, the connections that are being opened."""
