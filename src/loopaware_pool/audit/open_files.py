"""
Which files this process has open: sockets, pipes and all others, by the means of each platform.

Linux lists them in /proc/self/fd, and inodes tell two sockets apart. macOS and BSD list them in /dev/fd, and sockets
have no inode: there the addresses of both ends help to tell them apart. Windows has no list; psutil lists its sockets.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["EPOLL", "FILE", "PIPE", "SOCKET", "AuditUnavailable", "OpenFd", "blind_spots", "open_fds"]

EPOLL: Final = "eventpoll"
FILE: Final = "file"
PIPE: Final = "pipe"
SOCKET: Final = "socket"

_PROC_FD: Final = "/proc/self/fd"
_DEV_FD: Final = "/dev/fd"
# As in macOS's <sys/syslimits.h>, for F_GETPATH.
_LONGEST_PATH_BYTES: Final = 1024


class AuditUnavailable(RuntimeError):
    """The open files of this process cannot be listed here. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class OpenFd:
    """
    A file, socket or pipe that this process has open.

    Attributes:
        fd: Its number; None on Windows.
        kind: `"socket"`, `"pipe"`, `"file"`, `"eventpoll"` (an epoll set), or the kernel's own word for it.
        inode: Its inode, which tells it apart from others of its kind; None where there is none.
        name: The address that a socket is bound to, or a file's path; empty if there is none.
        peer: The address that a socket is connected to; None if it is not connected, or no socket.
        opened_at: The line that opened it, as `path:line in function`; None unless the audit traces, and Python code
            opened it.
    """

    fd: int | None
    kind: str
    inode: int | None
    name: str
    peer: str | None
    opened_at: str | None = None

    def __str__(self) -> str:
        number = self.kind if self.fd is None else f"fd {self.fd}: {self.kind}"
        ends = f" {self.name}" if self.name else ""
        peer = "" if self.peer is None else f" -> {self.peer}"
        inode = "" if self.inode is None else f", inode {self.inode}"
        opened = "" if self.opened_at is None else f", opened at {self.opened_at}"
        return f"{number}{ends}{peer}{inode}{opened}"


def open_fds() -> dict[Hashable, OpenFd]:
    """
    List what is open now, each under a key that stays the same for as long as it is open.

    Raises:
        AuditUnavailable: That is not possible on this platform, or not now.
    """
    try:
        return _reader()()
    except OSError as error:
        raise AuditUnavailable(
            f"the open files cannot be listed: {error.strerror}. Looking takes one free fd; "
            "if none is left, raise the limit (ulimit -n) and look earlier"
        ) from None


def blind_spots() -> tuple[str, ...]:
    """Return what this platform does not show, one sentence each."""
    reader = _reader()
    if reader is _read_dev_fd:
        return ("sockets have no inode on this platform: one without addresses is known by its number alone",)
    if reader is _read_windows:
        return ("on Windows only sockets with an address are seen: no files, pipes, numbers or registrations",)
    return ()


def _reader() -> Callable[[], dict[Hashable, OpenFd]]:
    if os.path.isdir(_PROC_FD) and sys.platform == "linux":
        return _read_proc
    if sys.platform == "win32":
        return _read_windows
    return _read_dev_fd


def _read_proc() -> dict[Hashable, OpenFd]:
    """Read /proc/self/fd. The fd that reading it takes is closed by the time it is looked at, so it is left out."""
    found: dict[Hashable, OpenFd] = {}
    for number in os.listdir(_PROC_FD):
        try:
            target = os.readlink(f"{_PROC_FD}/{number}")
            status = os.stat(int(number))
        except OSError:
            continue
        kind, name = _kind_of(target)
        inode = status.st_ino if kind in (SOCKET, PIPE, FILE) else None  # all others share one
        described = OpenFd(int(number), kind, inode, name, None)
        found[described.fd, status.st_dev, status.st_ino] = _with_ends(described)
    return found


def _kind_of(target: str) -> tuple[str, str]:
    """Parse what /proc says of an fd: `socket:[17]`, `anon_inode:[eventpoll]`, `/a/path`."""
    if target.startswith("/"):
        return FILE, target
    kind, _, rest = target.partition(":")
    return (rest.strip("[]") if kind == "anon_inode" else kind), ""


def _read_dev_fd() -> dict[Hashable, OpenFd]:
    """Read /dev/fd. If it does not list all numbers, as on FreeBSD without fdescfs, all are tried."""
    found: dict[Hashable, OpenFd] = {}
    for number in _numbers():
        try:
            status = os.stat(number)
        except OSError:
            continue
        described = _with_ends(OpenFd(number, _kind_by_mode(status.st_mode), status.st_ino or None, "", None))
        if described.kind == FILE:
            described = replace(described, name=_path_of(number))
        found[number, status.st_dev, status.st_ino, described.name, described.peer] = described
    return found


def _numbers() -> list[int]:
    listed = [int(name) for name in os.listdir(_DEV_FD) if name.isdigit()]
    if _lists_all():
        return listed
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return list(range(min(max(limit, 0) or 4096, 65536)))


def _lists_all() -> bool:
    return sys.platform in ("darwin", "linux")


def _kind_by_mode(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return SOCKET
    if stat.S_ISFIFO(mode):
        return PIPE
    return FILE if stat.S_IFMT(mode) else "other"


def _path_of(fd: int) -> str:
    import fcntl

    command: int | None = getattr(fcntl, "F_GETPATH", None)
    if command is None:
        return ""
    try:
        path = fcntl.fcntl(fd, command, bytes(_LONGEST_PATH_BYTES))
    except OSError:
        return ""
    return os.fsdecode(path.rstrip(b"\0"))


def _with_ends(described: OpenFd) -> OpenFd:
    """Add a socket's addresses, by way of a duplicate that is closed at once."""
    if described.kind != SOCKET or described.fd is None:
        return described
    try:
        number = os.dup(described.fd)
    except OSError:
        return described
    try:
        # SocketType is the base class of socket.socket; tracing patches only the latter.
        same = socket.SocketType(fileno=number)
    except OSError:  # another file has that number by now
        os.close(number)
        return described
    try:
        words = _words(same.family, same.type)
        return replace(described, name=f"{words} {_end(same.getsockname)}".strip(), peer=_end(same.getpeername) or None)
    except OSError:
        return described
    finally:
        same.close()


def _words(family: int, kind: int) -> str:
    """Return the sort of a socket: `TCP`, `UDP`, `Unix`, or its family's name."""
    if family == getattr(socket, "AF_UNIX", None):
        return "Unix"
    if family in (socket.AF_INET, socket.AF_INET6):
        return "UDP" if kind == socket.SOCK_DGRAM else "TCP"
    try:
        return socket.AddressFamily(family).name
    except ValueError:
        return f"family {family}"


def _end(ask: Callable[[], Any]) -> str:
    """Return the address of one end of a socket; empty if it has none."""
    try:
        return _address(ask())
    except OSError:
        return ""


def _address(address: Any) -> str:
    if isinstance(address, bytes):  # a Unix socket in Linux's abstract namespace
        return "@" + os.fsdecode(address.lstrip(b"\0"))
    if isinstance(address, tuple) and len(address) >= 2:
        host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
        return f"{host}:{address[1]}"
    return str(address)


def _read_windows() -> dict[Hashable, OpenFd]:
    try:
        import psutil
    except ModuleNotFoundError:
        raise AuditUnavailable("on Windows the audit needs psutil: pip install psutil") from None
    found: dict[Hashable, OpenFd] = {}
    for row in psutil.Process().net_connections(kind="all"):
        words = _words(row.family, row.type)
        local, peer = (_address(end) if end else "" for end in (row.laddr, row.raddr))
        found[words, local, peer] = OpenFd(None, SOCKET, None, f"{words} {local}".strip(), peer or None)
    return found
