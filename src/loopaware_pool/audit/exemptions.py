"""
The few fds that a process opens once, at the first use of something, and keeps for its whole life. They are no leaks.

multiprocessing tells which are its own. libuv, and with it uvloop, does not. It makes a pipe with one byte in it, for
its signal handling, when the first loop is made. The audit has uvloop make that pipe before the first look; if uvloop
is imported only later, the audit recognises the pipe by its byte. And with the first stream of each loop, libuv opens
/dev/null, to have an fd to close when there are no more; one for each open loop is exempt.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from loopaware_pool.audit.open_files import FILE, PIPE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from loopaware_pool.audit.open_files import OpenFd

__all__ = ["is_uvloop", "kept_for_life", "open_what_is_kept"]

_BY_MULTIPROCESSING = (
    ("multiprocessing.resource_tracker", "_resource_tracker", "_fd"),
    ("multiprocessing.forkserver", "_forkserver", "_forkserver_alive_fd"),
)


def open_what_is_kept() -> bool:
    """
    Have uvloop open what it keeps, if it is imported.

    Returns:
        Whether uvloop is imported.
    """
    uvloop: Any = sys.modules.get("uvloop")
    if uvloop is None:
        return False
    uvloop.new_event_loop().close()
    return True


def kept_for_life(new: Collection[OpenFd], loops: Iterable[object], *, had_uvloop: bool) -> set[int]:
    """
    Return the numbers among *new* that stay open for the life of the process, or of a loop.

    Args:
        new: What was opened since the audit began.
        loops: The event loops that are open.
        had_uvloop: Whether uvloop was imported when the audit began.
    """
    kept = {_held_by(*where) for where in _BY_MULTIPROCESSING} - {None}
    if not had_uvloop and "uvloop" in sys.modules:
        kept.update(_signal_pipe_of_libuv(new))
    spare = [each.fd for each in new if each.kind == FILE and each.name == os.devnull]
    kept.update(spare[: sum(is_uvloop(loop) for loop in loops)])
    return {fd for fd in kept if fd is not None}


def is_uvloop(loop: object) -> bool:
    """Whether *loop* is one of uvloop's."""
    return type(loop).__module__.partition(".")[0] == "uvloop"


def _held_by(module: str, holder: str, attribute: str) -> int | None:
    fd: int | None = getattr(getattr(sys.modules.get(module), holder, None), attribute, None)
    return fd


def _signal_pipe_of_libuv(new: Iterable[OpenFd]) -> list[int]:
    pipes: defaultdict[int | None, list[int]] = defaultdict(list)
    for each in new:
        if each.kind == PIPE and each.fd is not None:
            pipes[each.inode].append(each.fd)
    return next((ends for ends in pipes.values() if len(ends) == 2 and all(map(_has_one_byte, ends))), [])


def _has_one_byte(fd: int) -> bool:
    import fcntl
    import termios

    waiting = fcntl.ioctl(fd, termios.FIONREAD, bytes(4))
    return int.from_bytes(waiting, sys.byteorder) == 1
