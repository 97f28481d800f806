"""
Which socket an fd number means, and what watches it.

Why a socket is known by more than its number
---------------------------------------------
The kernel hands out the lowest free number, so a connection that dies and its successor on another loop often share
one.
A selector that still holds the old registration then wakes the wrong loop, or none: registering the number again looks
to it like no change at all. Device and inode of the open socket tell the two apart, for one fstat when the connection
is
opened. They cannot follow a dup(), which nothing here makes.

Why registrations are read, not remembered
------------------------------------------
Our own bookkeeping would only say what we meant to do. The truth is in two places: the selector's map
(`loop._selector.get_map()`, asyncio only) and the kernel's list (`tfd:` lines in /proc/self/fdinfo, Linux, every kind
of
loop). They can differ: the kernel forgets a closed file by itself, the map does not.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Mapping
    from selectors import SelectorKey

__all__ = [
    "ClosedSocket",
    "SocketIdentity",
    "SocketProbe",
    "duplicate",
    "is_watched",
    "local_address",
    "open_fd_count",
    "peer_address",
    "replace_by_devnull",
    "selector_keys",
]

# POLLRDHUP reports the peer's half-close on Linux. Elsewhere a closed peer shows as readable, and is found by reading.
_RDHUP: Final[int] = getattr(select, "POLLRDHUP", 0)
# Windows has no poll(), so none of these.
_GONE: Final[int] = sum(getattr(select, name, 0) for name in ("POLLHUP", "POLLERR", "POLLNVAL")) | _RDHUP

_FD_FOLDERS: Final = {"linux": "/proc/self/fd", "darwin": "/dev/fd"}


@dataclass(frozen=True, slots=True)
class SocketIdentity:
    """
    One open socket, for as long as it stays open.

    Attributes:
        fd: Its number in this process.
        device: Device of its inode.
        inode: Its inode: unique among the sockets open now.
    """

    fd: int
    device: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> SocketIdentity:
        """
        Identify the file now open as *fd*.

        Raises:
            OSError: *fd* is not open.
        """
        status = os.fstat(fd)
        return cls(fd, status.st_dev, status.st_ino)

    def is_open(self) -> bool:
        """Whether the number still means this very socket."""
        try:
            return SocketIdentity.of(self.fd) == self
        except OSError:
            return False

    def is_reused(self) -> bool:
        """Whether the number means another file by now."""
        try:
            return SocketIdentity.of(self.fd) != self
        except OSError:
            return False


class ClosedSocket(NamedTuple):
    """
    The socket of a closed connection, which must be gone soon.

    Attributes:
        identity: The socket.
        address: Its own address, where sockets have no inode (macOS); None if not known, or not needed.
        registration: The selector's entry for it when it was closed; None if there was none.
        closed_at: When that was, monotonic seconds.
        loop: Label of the loop it belonged to.
        reason: Why it was closed.
    """

    identity: SocketIdentity
    address: object
    registration: SelectorKey | None
    closed_at: float
    loop: str
    reason: str

    def is_open(self) -> bool:
        """Whether the socket is still open. Where that cannot be known, False."""
        if not self.identity.is_open():
            return False
        if self.identity.inode:
            return True
        return self.address is not None and local_address(self.identity.fd) == self.address


class SocketProbe:
    """
    Tells whether a socket's peer is still there, for one system call and no round trip (about 0.5 us).

    Attributes:
        poll: `poll(0)` is empty if nothing has happened.
    """

    __slots__ = ("poll",)

    def __init__(self, fd: int) -> None:
        poller = select.poll()
        poller.register(fd, select.POLLIN | _RDHUP)
        self.poll = poller.poll

    def events(self) -> tuple[bool, bool]:
        """Tell whether the connection is gone, and whether there is something to read."""
        return self.meaning(self.poll(0))

    @staticmethod
    def meaning(found: list[tuple[int, int]]) -> tuple[bool, bool]:
        """Interpret what `poll(0)` has found, as `events` does."""
        if not found:
            return False, False
        mask = found[0][1]
        return bool(mask & _GONE), bool(mask & select.POLLIN)


def duplicate(fd: int) -> socket.socket:
    """
    Make a socket object of a duplicate of *fd*, which stays open. To be closed by the caller.

    Raises:
        OSError: It is not open, or no socket.
    """
    number = os.dup(fd)
    try:
        return socket.socket(fileno=number)
    except BaseException:
        os.close(number)
        raise


def peek(fd: int) -> bytes | None:
    """
    Look at the next byte that a socket will give, without taking it.

    Returns:
        Empty if the peer will send no more; None if nothing has come yet.
    """
    with duplicate(fd) as same:
        try:
            return same.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""


def local_address(fd: int) -> object:
    """
    Return the socket's own address, which identifies it where it has no inode.

    Returns:
        None if it has none any more, or is no socket.
    """
    try:
        with duplicate(fd) as same:
            return same.getsockname()
    except OSError:
        return None


def peer_address(identity: SocketIdentity | None) -> object:
    """
    Return the address that a socket is connected to.

    Returns:
        None if it is closed, not connected or not known, or is no socket.
    """
    if identity is None or not identity.is_open():
        return None
    try:
        with duplicate(identity.fd) as same:
            return same.getpeername()
    except OSError:
        return None


def open_fd_count() -> int | None:
    """
    Count the fds that this process has open.

    Returns:
        None where that is expensive: anywhere but on Linux and macOS.
    """
    folder = _FD_FOLDERS.get(sys.platform)
    if folder is None:
        return None
    try:
        # Since 6.2, Linux gives the number as the folder's size. Reading the folder takes an fd of its own.
        told = os.stat(folder).st_size if sys.platform == "linux" else 0
        return told or len(os.listdir(folder)) - 1
    except OSError:
        return None


def is_watched(loop: AbstractEventLoop, fd: int) -> bool | None:
    """
    Tell whether *loop*'s selector has a registration for *fd*.

    Returns:
        None if the loop does not show its selector (uvloop) or is closed.
    """
    selector = getattr(loop, "_selector", None)
    registrations = selector.get_map() if selector is not None else None
    return None if registrations is None else fd in registrations


def selector_keys(loop: AbstractEventLoop) -> Mapping[int, SelectorKey] | None:
    """
    Show the entries of *loop*'s selector by fd; `data` of each is its reader's and its writer's handle.

    Returns:
        None if the loop hides them (uvloop), or keeps them in another way than CPython's.
    """
    keys = getattr(getattr(loop, "_selector", None), "_fd_to_key", None)
    return keys if isinstance(keys, dict) else None


def replace_by_devnull(fd: int) -> None:
    """Make *fd* mean the null device, without sending anything: for a socket that a parent process also has."""
    devnull = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(devnull, fd)
    finally:
        os.close(devnull)
