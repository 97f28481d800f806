"""
What is registered with which loop, and which of these registrations are stale.

asyncio's selector has a map of what it watches, and the kernel has its own list (`tfd:` lines in /proc/self/fdinfo,
Linux). The kernel forgets a closed file by itself, the map does not. So an entry that only the map has belongs to a
file that is gone; if its number is open, it means another file. That file is then never reported, because its
registration looks to the selector like no change.

uvloop shows the readers and writers that were added by hand, but not what libuv watches for its transports. Whether the
number of such a reader still means the same file is known only if the audit saw it being added.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading
import time
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loopaware_pool._platform.sockets import selector_keys
from loopaware_pool.audit.exemptions import is_uvloop
from loopaware_pool.audit.tracing import added, running_loop

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterable

__all__ = [
    "Registration",
    "Registrations",
    "Watch",
    "closing_fds",
    "held_by",
    "left",
    "open_loops",
    "stale_registrations",
    "watches",
]

# The pause between two looks at another thread's loop, which may be in the middle of a change.
_SECOND_LOOK_SECONDS: Final = 0.02

CLOSED: Final = "closed"
REUSED: Final = "reused"
LEFT: Final = "left"
# From a handle to its function, the function's cells, an object in one of them, and that object's attributes.
_STEPS: Final = 5
_TOO_MANY: Final = 10_000
_REASONS: Final = {
    CLOSED: "which is closed",
    REUSED: "which is another file by now",
    LEFT: "although nobody waits for it",
}


@dataclass(frozen=True, slots=True)
class Registration:
    """
    An entry in a loop's selector that should not be there.

    Attributes:
        fd: The number that it watches.
        reason: `"closed"`: nothing is open as *fd*; `"reused"`: another file is, by now; `"left"`: it was added
            meanwhile, and nothing waits for it.
        loop: The loop, by its class and address.
        reader: Where the function is that is called when there is something to read; None if there is none, or it is
            hidden.
        writer: The same for writing.
        added_at: The line that added it, as `path:line in function`; None unless the audit traces.
    """

    fd: int
    reason: str
    loop: str
    reader: str | None
    writer: str | None
    added_at: str | None

    def __str__(self) -> str:
        calls = " and ".join(f"a {role} ({place})" for role, place in self._callbacks() if place is not None)
        added_at = "" if self.added_at is None else f", added at {self.added_at}"
        return f"{self.loop} has {calls or 'an entry'} for fd {self.fd}, {_REASONS[self.reason]}{added_at}"

    def _callbacks(self) -> tuple[tuple[str, str | None], ...]:
        return ("reader", self.reader), ("writer", self.writer)


class Registrations(list[Registration]):
    """
    A list of registrations.

    Attributes:
        unseen: What the loops do not show, one sentence each; empty if all was seen.
    """

    unseen: tuple[str, ...]

    def __init__(self, found: Iterable[Registration] = (), unseen: Iterable[str] = ()) -> None:
        super().__init__(found)
        self.unseen = tuple(dict.fromkeys(unseen))


class Watch(NamedTuple):
    """One entry of a loop. `entry` is the loop's own object; `callbacks` are the reader's and the writer's, or None."""

    entry: object
    callbacks: tuple[Any, Any]


class _Stale(NamedTuple):
    """A stale registration, and the entry it was found in; None if only the kernel has one."""

    entry: object
    registration: Registration


class _Sight(NamedTuple):
    """What a loop shows."""

    entries: dict[int, Watch]
    epoll: int | None
    unseen: str | None


def stale_registrations(loop: AbstractEventLoop | None = None) -> Registrations:
    """
    Find entries of selectors whose fd is closed, or means another file by now.

    Args:
        loop: The loop to look at; None for all that are open in this process.

    Returns:
        A list; its attribute `unseen` says what could not be seen. If something is found on a loop that runs in another
        thread, the loop is looked at again after 20 ms.
    """
    loops = open_loops() if loop is None else [loop]
    found = [registration for one in loops for registration in _find_stale(one)]
    return Registrations(found, (unseen for one in loops if (unseen := _look(one).unseen) is not None))


def _find_stale(loop: AbstractEventLoop) -> list[Registration]:
    found = _stale_once(loop)
    if found and loop.is_running() and not _is_mine(loop):
        time.sleep(_SECOND_LOOK_SECONDS)
        # Compare the objects: a busy loop makes new entries all the time, which may look alike.
        again = _stale_once(loop)
        found = {key: seen for key, seen in found.items() if key in again and again[key].entry is seen.entry}
    return [seen.registration for seen in found.values()]


def open_loops() -> list[AbstractEventLoop]:
    """
    List the event loops of this process that are not closed. This looks at every object, which takes milliseconds.
    """
    if "asyncio" not in sys.modules:
        return []
    kinds = _kinds_of(asyncio.AbstractEventLoop)
    # type(), not isinstance(): a proxy object may raise an error.
    found = [each for each in gc.get_objects() if type(each) in kinds and not _is_closed(each)]
    running = running_loop()
    if running is not None and running not in found:  # hidden by gc.freeze()
        found.append(running)
    return found


def _kinds_of(kind: type) -> set[type]:
    found = {kind}
    other: type
    for other in kind.__subclasses__():
        found |= _kinds_of(other)
    return found


def watches(loop: AbstractEventLoop) -> dict[int, Watch]:
    """Return what *loop* watches for other code: not its own sockets, nor its transports'."""
    own = _own_fds(loop)
    return {
        fd: watch
        for fd, watch in _look(loop).entries.items()
        if fd not in own and not any(_is_the_loops(callback) for callback in watch.callbacks)
    }


def held_by(loop: AbstractEventLoop) -> set[int]:
    """
    Return the fds that *loop* watches, its transports' included; not its own, nor those that it is about to close.
    """
    return _look(loop).entries.keys() - _own_fds(loop) - closing_fds(loop)


def left(loop: AbstractEventLoop, fd: int, watch: Watch) -> Registration | None:
    """Describe *watch* of *fd* as left behind; None if something waits for it."""
    return None if _is_awaited(watch) else _describe(loop, fd, watch, LEFT)


def closing_fds(loop: AbstractEventLoop) -> set[int]:
    """Return the fds that *loop* closes in its next iteration: their transports are closed already."""
    transports = getattr(loop, "_transports", None) or {}
    return {fd for fd, transport in list(transports.items()) if transport.is_closing()}


# ---- what a loop shows ----


def _look(loop: AbstractEventLoop) -> _Sight:
    if _is_closed(loop):
        return _Sight({}, None, None)
    keys = selector_keys(loop)
    if keys is not None:
        entries = {fd: Watch(key, key.data or (None, None)) for fd, key in list(keys.items())}
        epoll = _epoll_of(loop)
        lack = f"{_name(loop)}: its selector does not show that an fd is another file by now, only that it is closed"
        unseen = lack if epoll is None else None
        return _Sight(entries, epoll, unseen)
    polls = _uvloop_polls(loop)
    if polls is not None:
        entries = {fd: Watch(poll, _uvloop_callbacks(poll)) for fd, poll in polls.items()}
        return _Sight(
            entries, _epoll_of(loop), f"{_name(loop)}: uvloop does not show what it watches for its transports"
        )
    return _Sight({}, None, f"{_name(loop)}: this kind of loop does not show what it watches")


def _epoll_of(loop: AbstractEventLoop) -> int | None:
    """Find the fd of *loop*'s epoll set; None if it has none, or if /proc does not show its contents."""
    selector = getattr(loop, "_selector", None)
    ask: Callable[[], int] | None = getattr(loop, "_get_backend_id", None) or getattr(selector, "fileno", None)
    fd = None if ask is None else ask()
    return fd if fd is not None and os.path.exists(f"/proc/self/fdinfo/{fd}") else None


def _kernel_inodes(epoll: int) -> dict[int, int]:
    """Read from the kernel which fd numbers an epoll set watches, and the inode of each."""
    found = {}
    with open(f"/proc/self/fdinfo/{epoll}") as lines:
        for line in lines:
            words = line.split()
            if words[:1] == ["tfd:"]:
                inode = next((word for word in words if word.startswith("ino:")), "ino:0")
                found[int(words[1])] = int(inode[4:], 16)
    return found


def _uvloop_polls(loop: AbstractEventLoop) -> dict[int, Any] | None:
    """Find uvloop's own map of readers and writers, a dict that only the garbage collector shows."""
    if not is_uvloop(loop):
        return None
    held = [each for each in gc.get_referents(loop) if type(each) is dict and each]
    polls = [each for each in held if {type(value).__name__ for value in list(each.values())} == {"UVPoll"}]
    return dict(polls[0]) if polls else {}


def _uvloop_callbacks(poll: object) -> tuple[Any, Any]:
    handles = [each for each in gc.get_referents(poll) if type(each).__name__ == "Handle"]
    return (handles[0] if handles else None), (handles[1] if len(handles) > 1 else None)


def _own_fds(loop: AbstractEventLoop) -> set[int]:
    """Return the fds with which *loop* wakes itself."""
    own = getattr(loop, "_ssock", None)
    held = [own] if own is not None else gc.get_referents(loop)
    return {each.fileno() for each in held if isinstance(each, socket.socket)}


def _is_closed(loop: AbstractEventLoop) -> bool:
    try:
        return loop.is_closed()
    except (NotImplementedError, AttributeError):  # a loop that was never initialised, or is abstract
        return True


def _is_mine(loop: AbstractEventLoop) -> bool:
    return running_loop() is loop or getattr(loop, "_thread_id", None) == threading.get_ident()


# ---- which of it is stale ----


def _stale_once(loop: AbstractEventLoop) -> dict[tuple[int, str], _Stale]:
    sight = _look(loop)
    kernel = None if sight.epoll is None else _kernel_inodes(sight.epoll)
    found = {}
    for fd in sight.entries.keys() | (kernel or {}).keys():
        watch = sight.entries.get(fd)
        reason = _why_stale(loop, fd, watch, kernel)
        if reason is not None:
            watch = watch or Watch(None, (None, None))
            found[fd, reason] = _Stale(watch.entry, _describe(loop, fd, watch, reason))
    return found


def _why_stale(loop: AbstractEventLoop, fd: int, watch: Watch | None, kernel: dict[int, int] | None) -> str | None:
    try:
        inode = os.stat(fd).st_ino
    except OSError:
        return CLOSED
    if kernel is not None and fd in kernel:
        return REUSED if kernel[fd] != inode else None
    if selector_keys(loop) is not None:
        return REUSED if kernel is not None else None
    # libuv tells the kernel in its next iteration, so a missing entry proves nothing.
    seen = added(loop, fd)
    return REUSED if watch is not None and seen is not None and _is_other(seen.identity) else None


def _is_other(identity: Any) -> bool:
    return identity is not None and identity.is_reused()


def _describe(loop: AbstractEventLoop, fd: int, watch: Watch, reason: str) -> Registration:
    reader, writer = (None if callback is None else _place(callback) for callback in watch.callbacks)
    seen = added(loop, fd)
    return Registration(fd, reason, _name(loop), reader, writer, None if seen is None else seen.line)


def _name(loop: AbstractEventLoop) -> str:
    return f"{type(loop).__name__} at {id(loop):#x}"


# ---- what waits for it ----


def _callback_of(handle: Any) -> Any:
    callback = getattr(handle, "_callback", None)
    if callback is None:  # uvloop's handles hide theirs
        callback = next(
            (each for each in gc.get_referents(handle) if callable(each) and not isinstance(each, type)), None
        )
    while isinstance(callback, partial):
        callback = callback.func
    return callback


def _place(handle: Any) -> str:
    """Return where a handle's function is, and nothing about its arguments."""
    callback = _callback_of(handle)
    if callback is None:
        return "not shown"
    function = getattr(callback, "__func__", callback)
    code = getattr(function, "__code__", None)
    if code is None:
        return getattr(function, "__qualname__", None) or type(function).__name__
    return f"{code.co_filename}:{code.co_firstlineno} in {code.co_qualname}"


def _is_the_loops(handle: Any) -> bool:
    owner = getattr(_callback_of(handle), "__self__", None)
    return isinstance(owner, (asyncio.BaseTransport, asyncio.AbstractEventLoop))


def _is_awaited(watch: Watch) -> bool:
    """Whether a callback of *watch* leads, in a few steps, to a future that is not done."""
    ring = [handle for handle in watch.callbacks if handle is not None]
    for _ in range(_STEPS):
        ring = [each for one in ring for each in gc.get_referents(one) if not _leads_everywhere(each)]
        if len(ring) > _TOO_MANY or any(asyncio.isfuture(each) and not each.done() for each in ring):
            return True
    return False


def _leads_everywhere(each: object) -> bool:
    """Whether most of the program can be reached from *each*."""
    return isinstance(each, (type, Context, ModuleType, asyncio.AbstractEventLoop)) or (
        isinstance(each, dict) and "__builtins__" in each
    )
