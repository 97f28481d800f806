"""Finds the smallest program that still differs in the same way: leaves out steps, options, callbacks, and frills."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from differential.program import Program

__all__ = ["shrink"]

_FRILLS = ("together", "hurried", "lazily", "keep", "probe", "error")
_NEEDED = ("min_size", "max_size", "open")


def shrink(program: Program, fails: Callable[[Program], bool], seconds: float) -> Program:
    """
    Make a program smaller for as long as *seconds* allow.

    Args:
        program: It fails.
        fails: Whether a smaller one fails in the same way.
        seconds: How long to try.
    """
    deadline = monotonic() + seconds
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for smaller in _smaller(program):
            if monotonic() > deadline:
                return program
            if fails(smaller):
                program, is_smaller = smaller, True
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    yield from _with_fewer_steps(program)
    for name in program.options:
        if name not in _NEEDED:
            yield replace(program, options=_less(program.options, name))
    for name, does in program.callbacks.items():
        yield replace(program, callbacks=_less(program.callbacks, name))
        for part in does:
            yield replace(program, callbacks=program.callbacks | {name: _less(does, part)})
    yield from _with_plainer_steps(program)


def _with_fewer_steps(program: Program) -> Iterator[Program]:
    size = len(program.steps)
    while size:
        begin = len(program.steps)
        while begin > 0:
            begin = max(0, begin - size)
            yield program.without(begin, begin + size)
        size //= 2


def _with_plainer_steps(program: Program) -> Iterator[Program]:
    if program.loop != "asyncio":
        yield replace(program, loop="asyncio")
    for number, step in enumerate(program.steps):
        for frill in _FRILLS:
            if step.get(frill):
                yield _with_step(program, number, _less(step, frill))
        for name in step.get("kwargs", {}):
            yield _with_step(program, number, step | {"kwargs": _less(step["kwargs"], name)})


def _with_step(program: Program, number: int, step: dict[str, Any]) -> Program:
    return replace(program, steps=(*program.steps[:number], step, *program.steps[number + 1 :]))


def _less(parts: dict[str, Any], name: str) -> dict[str, Any]:
    return {one: part for one, part in parts.items() if one != name}
