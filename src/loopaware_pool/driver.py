"""What the core needs from a database driver. Everything that knows one is behind these protocols."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from logging import Logger

    from loopaware_pool._platform.sockets import SocketIdentity
    from loopaware_pool.errors import ErrorFamily

__all__ = ["PROGRAMMING_ERRORS", "Driver", "HookFailed", "Liveness", "Owner", "ReturnCheck", "Session"]

# Errors of the program: another connect would fail, too. Each connect has a task of its own, so a `RecursionError` does
# not depend on how deep the caller is. `MemoryError` is not one: there may be memory a moment later.
PROGRAMMING_ERRORS: Final = (TypeError, NameError, ImportError, NotImplementedError, RecursionError)


class Liveness(Enum):
    """What can be known of an idle connection without a round trip."""

    ALIVE = "alive"
    DEAD = "dead"
    UNREAD = "unread"
    """There is unread data: a notification, or the error with which the server closes."""


class ReturnCheck(Enum):
    """What a connection needs when it comes back from a caller."""

    READY = "ready"
    """Nothing: it may be lent again at once."""

    RESET_PIPELINED = "reset pipelined"
    """Nothing: it may be lent again at once. A guarded reset is on its way, ahead of all that the next caller sends."""

    RESET_SENT = "reset sent"
    """The server's answer to a reset that has just been sent; `Owner.settled` is called when it has come."""

    RESET = "reset"
    """An awaited `Session.reset`."""

    WORN_OUT = "worn out"
    """To be closed politely and replaced."""

    STRANDED = "no loop to reset it"
    """To be aborted: its loop is not running, or ends, and will read no answer."""

    BROKEN = "broken"
    """To be aborted."""


class HookFailed(Exception):
    """
    A connect failed because of the program: a callback of the user's, or the arguments. The cause is in `__cause__`.

    A waiting caller gets that cause at once: connecting again would not help.
    """


class Owner(Protocol):
    """Listens to a session between calls."""

    def settled(self) -> None:
        """The last answer that was due has come: the connection may be parked."""

    def reset_failed(self, error: BaseException) -> None:
        """The session could not be reset; `lost` follows."""

    def demoted(self) -> None:
        """The server takes no writes any more, although it did when the connection was opened."""

    def dropped(self) -> None:
        """The caller has dropped the connection without returning it."""

    def lost(self, reason: str) -> None:
        """The connection is closed, or must be."""


class Session(Protocol):
    """One open connection. All methods run on the loop that opened it, `discard` excepted."""

    owner: Any
    """An `Owner`, set by the pool once the session is one of its connections; None otherwise."""

    @property
    def says_goodbye(self) -> bool:
        """Whether `close` has anything to wait for. If not, `abort` does all of it."""

    @property
    def identity(self) -> SocketIdentity | None:
        """The socket; None where the driver hides it."""

    @property
    def is_settled(self) -> bool:
        """Whether no answer of the server is due, so that an idle connection may be parked."""

    def liveness(self) -> Liveness:
        """Look at the socket, without waiting."""

    def park(self) -> None:
        """Take the idle connection's fd out of the selector."""

    def unpark(self) -> None:
        """Put the fd back before use. Does nothing if it was not parked."""

    def is_dropped(self) -> bool:
        """
        Whether the caller has dropped the connection. Polled; may be always False if `Owner.dropped` is called instead.
        """

    def take_back(self) -> ReturnCheck:
        """Check a connection that comes back, and start what can be done for it without waiting."""

    async def reset(self) -> None:
        """Make the session as good as new. Raises if that fails; the connection is then aborted."""

    async def ping(self) -> None:
        """Make a round trip. Raises if the connection has become useless."""

    async def close(self) -> None:
        """Close the connection politely. Aborts if cancelled."""

    def abort(self) -> None:
        """Close the socket without a goodbye; the loop is alive."""

    def discard(self, *, forked: bool) -> None:
        """
        Close the socket although its loop is closed or not running, or belongs to the parent process.

        Args:
            forked: This is a child process: neither the server nor the selector may notice.
        """


# The sessions of one driver, for what makes, holds or takes them.
S = TypeVar("S", bound=Session, default=Session)
S_co = TypeVar("S_co", bound=Session, default=Session, covariant=True)
S_contra = TypeVar("S_contra", bound=Session, default=Session, contravariant=True)


class Driver(Protocol[S_co]):
    """
    How connections are made.

    Attributes:
        logger: The logger of the pool that this one replaces.
        errors: The errors that callers catch.
        asked: The arguments whose functions, given by the user, have been asked and have not answered yet.
    """

    logger: Logger
    errors: ErrorFamily

    @property
    def asked(self) -> Sequence[str]: ...

    async def connect(self) -> S_co:
        """
        Open and initialise a connection on the running loop.

        Raises:
            HookFailed: A callback of the user's failed, or the arguments make no sense.
            Exception: Whatever the driver raises when it cannot connect.

        Cancellation: closes what was opened.
        """

    def floor_not_restored(self, error: BaseException) -> None:
        """Log that a connect for `min_size` has failed, and will be tried again."""

    def forked(self) -> None:
        """Forget, in a child process, the connections that are being opened."""
