"""Who holds a connection: since when, acquired where, and where its task stands now."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool._core.slot import Slot, SlotState, is_library
from loopaware_pool.stats import LeaseInfo

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Iterator
    from types import CodeType, FrameType

__all__ = ["lease_of", "leases", "leases_of", "line_of", "line_outside", "stack_of"]

# The most lines of a stack that are reported, the innermost.
DEEPEST: Final = 20
# The flags of the code of coroutines and async generators. Such code is part of a task.
_AWAITS: Final = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
# The attributes with the frame of something suspended, and with what it awaits: of coroutines, generators and async
# generators.
_SUSPENDED: Final = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


def lease_of(slot: Slot, now: float, *, has_stack: bool = False) -> LeaseInfo:
    """
    Describe the lease of *slot*.

    Args:
        slot: A slot that is lent.
        now: Monotonic seconds.
        has_stack: Whether to tell where its task stands, too.
    """
    holder = slot.holder  # read once: another thread may ask while its loop takes the connection back
    task = holder() if holder is not None else None
    held_seconds = max(now - slot.since, 0.0)
    if task is None:
        return LeaseInfo(held_seconds, None, line_of(slot.code, slot.instruction))
    return LeaseInfo(
        held_seconds, task.get_name(), line_of(slot.code, slot.instruction), stack_of(task) if has_stack else ()
    )


def leases(slots: Iterable[Slot], now: float) -> list[LeaseInfo]:
    """Describe all leases, the longest first."""
    lent = [slot for slot in slots if slot.state is SlotState.LENT]
    return [lease_of(slot, now) for slot in sorted(lent, key=lambda slot: slot.since)]


def leases_of(task: asyncio.Task[Any], slots: Iterable[Slot], now: float) -> list[LeaseInfo]:
    """Describe the leases that *task* itself holds, the longest first."""
    return leases([slot for slot in slots if slot.holder is not None and slot.holder() is task], now)


def line_outside(frame: FrameType | None, task: asyncio.Task[Any]) -> str | None:
    """
    Return the line of the caller's own code in *task* that has led to *frame*; None if it cannot be told.

    When an error is thrown into a coroutine through an object that is no coroutine, Python leaves out the frames of
    those that await that object. Then the next frame may be the loop's, or that of the code that has started the loop.
    """
    while frame is not None and (is_library(frame) or str(frame.f_globals.get("__name__")).startswith("asyncio.")):
        frame = frame.f_back
    if frame is None or not (frame.f_code.co_flags & _AWAITS or _is_below(frame, next(_frames_of(task), None))):
        return None
    return _where(frame)


def _is_below(frame: FrameType | None, outermost: FrameType | None) -> bool:
    """Whether *frame* was called, in however many steps, by *outermost*, or is that one."""
    while frame is not None and frame is not outermost:
        frame = frame.f_back
    return frame is not None


def stack_of(task: asyncio.Task[Any]) -> tuple[str, ...]:
    """
    List the lines at which a suspended task stands, innermost first: those of its coroutine and of all it awaits.

    `Task.get_stack` gives the outermost alone.
    """
    return tuple(_where(frame) for frame in list(_frames_of(task))[-DEEPEST:][::-1])


def _frames_of(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    awaited: Any = task.get_coro()
    while awaited is not None:
        names = next((names for names in _SUSPENDED if hasattr(awaited, names[0])), None)
        if names is None:
            return
        frame, awaited = (getattr(awaited, name) for name in names)
        if frame is not None:
            yield frame


def _where(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def line_of(code: CodeType | None, instruction: int) -> str | None:
    """Return a line, from the code object and the offset that `acquiring_line` has given."""
    if code is None:
        return None
    lines = [line for start, end, line in code.co_lines() if start <= instruction < end and line is not None]
    return f"{code.co_filename}:{lines[0] if lines else '?'} in {code.co_name}"
