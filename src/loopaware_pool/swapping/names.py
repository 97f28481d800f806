"""Replaces objects in the modules that name them, and finds who else holds them."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from typing import TYPE_CHECKING, Any, Final, Union, get_origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Replacements", "modules_holding"]

_OURS: Final = "loopaware_pool"
# How far to follow who holds what: an argument's default is in a tuple, which is a function's.
_MOST_STEPS: Final = 4
_MOST_HOLDERS: Final = 1_000
# Entries of a class, a function or a module that say what something is, and call nothing.
_DESCRIBING: Final = frozenset({"__annotations__", "__orig_bases__", "__parameters__", "__all__"})
# What holds something for a moment only, and what is good for annotations only.
_OF_NO_INTEREST: Final = (types.FrameType, types.GeneratorType, types.CoroutineType, types.ModuleType, types.UnionType)


class Replacements:
    """
    Objects that take the place of others in the global names of all modules, this package's own excepted.

    Args:
        pairs: Each object, and what replaces it.
    """

    def __init__(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        self._pairs = {id(old): (old, new) for old, new in pairs}
        self._rebound: list[tuple[weakref.ref[types.ModuleType], str, Any, Any]] = []

    def make(self) -> None:
        """Replace the objects in all modules that are imported now."""
        for module in _other_modules():
            names = _globals_of(module)
            for name, value in list(names.items()):
                old, new = self._pairs.get(id(value), (None, None))
                if old is not None and value is old:
                    names[name] = new
                    self._rebound.append((weakref.ref(module), name, old, new))

    def undo(self) -> None:
        """Put the objects back under the names that still hold what replaced them."""
        for reference, name, old, new in self._rebound:
            module = reference()
            if module is not None and _globals_of(module).get(name) is new:
                _globals_of(module)[name] = old


def _other_modules() -> Iterator[types.ModuleType]:
    for name, module in sys.modules.copy().items():
        # By its type: a library of cffi's says that it is a module, and has no globals.
        if name.partition(".")[0] != _OURS and issubclass(type(module), types.ModuleType):
            yield module


def _globals_of(module: types.ModuleType) -> dict[str, Any]:
    # A lazy module would be executed if it were asked itself.
    names: dict[str, Any] = object.__getattribute__(module, "__dict__")
    return names


def modules_holding(objects: Sequence[Any], *, replacements: Sequence[Any], but_not: Iterable[str]) -> list[str]:
    """
    Name the modules that hold *objects* otherwise than under a global name.

    Found are subclasses, class attributes, defaults of arguments, closures, `functools.partial` objects, and what is in
    containers, as far as the garbage collector knows who holds what, some steps away.

    Args:
        objects: The objects.
        replacements: What replaces them. Classes that are derived from those are derived from the objects, too, and are
            of no interest.
        but_not: Packages that are not named.

    Returns:
        The names, sorted.
    """
    excluded = {_OURS, "typing", *but_not}
    found: set[str] = set()
    seen = {id(each) for each in objects}
    held: list[Any] = list(objects)
    for _ in range(_MOST_STEPS):
        holders = [each for each in gc.get_referrers(*held) if id(each) not in seen and each is not held]
        seen |= {id(holder) for holder in holders}
        seen |= {id(holders), id(held)}
        further = []
        for holder in holders[:_MOST_HOLDERS]:
            name = "" if _derives_from(holder, replacements) else _module_of(holder, held)
            if name is None:
                further.append(holder)
            elif name.partition(".")[0] not in excluded:
                found.add(name)
        if not further:
            break
        held = further
    found.discard("")
    return sorted(found)


def _derives_from(holder: Any, kinds: Sequence[Any]) -> bool:
    return issubclass(type(holder), type) and any(kind in holder.__mro__ for kind in kinds)


def _module_of(holder: Any, held: list[Any]) -> str | None:
    """Name the module of what holds one of *held*: "" if it is of no interest, None if its own holders tell."""
    kind = type(holder)  # `isinstance` may run code of a proxy's
    if issubclass(kind, _OF_NO_INTEREST) or (kind.__module__ == "typing" and get_origin(holder) is Union):
        return ""
    if issubclass(kind, type):
        return str(holder.__module__)
    if kind is types.FunctionType:
        parts = (holder.__defaults__, holder.__kwdefaults__, holder.__closure__)
        return str(holder.__module__) if any(part is each for part in parts if part for each in held) else ""
    if kind is dict:
        return _module_of_names(holder, held)
    return None


def _module_of_names(names: dict[Any, Any], held: list[Any]) -> str | None:
    keys = [key for key, value in list(names.items()) if any(value is each for each in held)]
    if keys and all(type(key) is str and key in _DESCRIBING for key in keys):
        return ""
    module = names.get("__name__")
    if type(module) is str and getattr(sys.modules.get(module), "__dict__", None) is names:
        return module
    return None
