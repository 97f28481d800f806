"""
Which line opened a socket, or asked a loop to watch one. Traced only while an audit asks for it.

Sockets of Python's own class are seen when they are made. Those that a driver or a loop makes in C are not; they are
seen when a loop is asked to watch them, or when uvloop returns them as a transport. If a library has started a task for
a caller, what the task opens counts as opened by the line that started it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import sysconfig
import threading
from asyncio.selector_events import BaseSelectorEventLoop
from contextlib import suppress
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from loopaware_pool._platform.sockets import SocketIdentity

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import Callable
    from types import FrameType

__all__ = ["Added", "added", "opened_at", "running_loop", "start_tracing", "stop_tracing"]

_HERE: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STDLIB: Final = tuple({os.path.abspath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib")})
_CONNECTS: Final = ("create_connection", "create_unix_connection", "create_datagram_endpoint")


class Added:
    """
    A reader or writer that was added while traced.

    Attributes:
        identity: The socket it was for; None if its number was not open.
        line: The line that added it.
    """

    __slots__ = ("identity", "line")

    def __init__(self, identity: SocketIdentity | None, line: str | None) -> None:
        self.identity: SocketIdentity | None = identity
        self.line: str | None = line


class _Book:
    """What was seen, keyed by what is open or alive, so that it does not grow with time."""

    def __init__(self) -> None:
        self.sockets: dict[int, tuple[SocketIdentity, str | None]] = {}
        self.tasks: WeakKeyDictionary[Task[Any], str | None] = WeakKeyDictionary()
        self.added: WeakKeyDictionary[AbstractEventLoop, dict[int, Added]] = WeakKeyDictionary()


class _Tracing:
    """The patches, and the audits that need them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.book = _Book()
        self.closing: list[Callable[[AbstractEventLoop], None]] = []
        self.undo: list[Callable[[], None]] = []


_tracing = _Tracing()


def start_tracing(before_close: Callable[[AbstractEventLoop], None]) -> None:
    """
    Trace from now on, until every audit that has started this has stopped it. From any thread.

    Args:
        before_close: Called with each loop that is about to be closed, in its thread.
    """
    with _tracing.lock:
        if not _tracing.closing:
            _patch_all()
        _tracing.closing.append(before_close)


def stop_tracing(before_close: Callable[[AbstractEventLoop], None]) -> None:
    """Stop tracing for the audit that gave *before_close*."""
    with _tracing.lock:
        if before_close not in _tracing.closing:
            return
        _tracing.closing.remove(before_close)
        if not _tracing.closing:
            while _tracing.undo:
                _tracing.undo.pop()()
            _tracing.book = _Book()


def opened_at(fd: int) -> str | None:
    """Return the line that opened what is open as *fd* now; None if that was not seen."""
    known = _tracing.book.sockets.get(fd)
    return known[1] if known is not None and known[0].is_open() else None


def added(loop: AbstractEventLoop, fd: int) -> Added | None:
    """Return what the last reader or writer of *fd* was added for, and by which line; None if that was not seen."""
    return _tracing.book.added.get(loop, {}).get(fd)


# ---- what is patched ----


def _patch_all() -> None:
    _patch(socket.socket, "__init__", _seen_socket)
    _patch(asyncio.BaseEventLoop, "create_task", _seen_task)
    loops: list[type] = [BaseSelectorEventLoop]
    uvloop = sys.modules.get("uvloop")
    if uvloop is not None:
        loops.append(uvloop.Loop)
        _patch(uvloop.Loop, "create_task", _seen_task)
        for name in _CONNECTS:
            _patch(uvloop.Loop, name, _seen_transport)
    for kind in loops:
        _patch(kind, "add_reader", _seen_watch)
        _patch(kind, "add_writer", _seen_watch)
        _patch(kind, "close", _seen_close)


def _patch(kind: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    inherited = name not in vars(kind)
    original = getattr(kind, name)
    patched = wraps(original)(wrap(original))
    setattr(kind, name, patched)

    def undo() -> None:
        if vars(kind).get(name) is not patched:
            return  # other code has patched it since, and calls this patch, which does no harm
        if inherited:
            delattr(kind, name)
        else:
            setattr(kind, name, original)

    _tracing.undo.append(undo)


def _seen_socket(original: Any) -> Any:
    def __init__(self: socket.socket, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        _note_socket(self.fileno(), _line())

    return __init__


def _seen_task(original: Any) -> Any:
    def create_task(self: AbstractEventLoop, *args: Any, **options: Any) -> Any:
        line = _line()
        task = original(self, *args, **options)
        with suppress(TypeError):  # a task factory may make tasks that cannot be referred to weakly
            _tracing.book.tasks[task] = line
        return task

    return create_task


def _seen_transport(original: Any) -> Any:
    async def connect(self: AbstractEventLoop, *args: Any, **options: Any) -> Any:
        transport, protocol = await original(self, *args, **options)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            _note_socket(sock.fileno(), _line())
        return transport, protocol

    return connect


def _seen_watch(original: Any) -> Any:
    def add(self: AbstractEventLoop, fd: Any, callback: Any, *args: Any) -> Any:
        result = original(self, fd, callback, *args)
        line, number = _line(), fd if isinstance(fd, int) else fd.fileno()
        _note_socket(number, line, keep=True)
        _tracing.book.added.setdefault(self, {})[number] = Added(_identity(number), line)
        return result

    return add


def _seen_close(original: Any) -> Any:
    def close(self: AbstractEventLoop) -> Any:
        if not self.is_closed() and not self.is_running():
            for before_close in tuple(_tracing.closing):
                before_close(self)
        return original(self)

    return close


def _note_socket(fd: int, line: str | None, *, keep: bool = False) -> None:
    """Note which line opened *fd*; with *keep*, only if none is known."""
    identity = _identity(fd)
    if identity is None:
        return
    known = _tracing.book.sockets.get(fd)
    if not (keep and known is not None and known[0] == identity):
        _tracing.book.sockets[fd] = identity, line


def _identity(fd: int) -> SocketIdentity | None:
    try:
        return SocketIdentity.of(fd)
    except OSError:
        return None


# ---- which line it was ----


def _line() -> str | None:
    """
    Return the line of the user's code that is running: the innermost line that is not in a library.

    A task's own frames end at its outermost coroutine; the frames outside belong to the loop and its caller. If none of
    the task's own lines is the user's, the line that started the task counts.
    """
    task = None if running_loop() is None else asyncio.current_task()
    outermost = None if task is None else _outermost(task)
    fallback: str | None = None
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001
    while frame is not None and not _runs_a_loop(frame):
        if _is_users(frame):
            return _place(frame)
        if fallback is None and not _is_stdlib(frame.f_code.co_filename) and not _is_ours(frame):
            fallback = _place(frame)
        frame = _maker_of_eager_task(frame) if frame is outermost else frame.f_back
    return (None if task is None else _tracing.book.tasks.get(task)) or fallback


def running_loop() -> AbstractEventLoop | None:
    """Return the loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _outermost(task: Task[Any]) -> FrameType | None:
    coroutine = task.get_coro()
    return getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)


def _runs_a_loop(frame: FrameType) -> bool:
    """Whether *frame* is the loop's, so that the frames outside it have nothing to do with what is running."""
    code = frame.f_code
    if code.co_filename == asyncio.runners.__file__:
        return running_loop() is not None
    return code.co_filename == asyncio.events.__file__ and code.co_name == "_run"


def _maker_of_eager_task(frame: FrameType | None) -> FrameType | None:
    """Find the call that made a task, if the task's outermost *frame* runs within it; None if a loop runs it."""
    while frame is not None and not (_is_ours(frame) and frame.f_code.co_name == "create_task"):
        frame = frame.f_back
    return frame


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_HERE)


def _is_users(frame: FrameType) -> bool:
    return not (_is_ours(frame) or _is_library(frame.f_code.co_filename))


@cache
def _is_library(path: str) -> bool:
    parts = path.split(os.sep)
    if path.startswith("<frozen ") or _is_stdlib(path) or "site-packages" in parts or "dist-packages" in parts:
        return True
    # Elsewhere, as in a deployed function, an installed package is beside the record of its installation.
    return any(name in _installed_in(os.sep.join(parts[:end])) for end, name in enumerate(parts) if end)


@cache
def _installed_in(folder: str) -> frozenset[str]:
    """Return the files and folders in *folder* that an installer has put there."""
    try:
        records = [name for name in os.listdir(folder or os.sep) if name.endswith(".dist-info")]
    except OSError:
        return frozenset()
    found: set[str] = set()
    for name in records:
        with suppress(OSError), open(os.path.join(folder, name, "RECORD"), encoding="utf-8") as lines:
            found.update(line.partition(",")[0].partition("/")[0] for line in lines)
    return frozenset(found)


@cache
def _is_stdlib(path: str) -> bool:
    return os.path.abspath(path).startswith(_STDLIB)


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
