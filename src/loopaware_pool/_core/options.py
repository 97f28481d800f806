"""
How an option of a pool is declared: once, with its default, its check, and the sentence that says what it does.

The declarations of a flavour are the fields of one dataclass. Values are checked by them, and the docstrings and the
page of options are written from them. Python's type checkers read a signature only where it is written out, so the
public functions do that; a test compares.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from typing import TYPE_CHECKING, Any, Final, TypeVar

from loopaware_pool._core.checks import check_callback, count, number, or_none, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from loopaware_pool._core.checks import Check
    from loopaware_pool.stats import EventHook

__all__ = ["SharedOptions", "declared", "documented", "option", "sentence"]

Documented = TypeVar("Documented")

_PLACE: Final = "{options}"
_WIDTH: Final = 120
_some_seconds: Final = number(
    "a finite number of seconds, more than 0; None turns it off", lambda value: 0 < value < float("inf")
)


def option(says: str, *, check: Check | None = None, **field: Any) -> Any:
    """
    Declare an option, as a field of a dataclass.

    Args:
        says: What it does, with the units of its values and the meanings of None and 0.
        check: What is done with each value; None where the driver does it.
        **field: As for `dataclasses.field`, such as *default*; without one the option must be given.
    """
    return dataclasses.field(metadata={"says": says, "check": check}, **field)


def sentence(field: dataclasses.Field[Any]) -> str:
    """Return what an option does."""
    return str(field.metadata["says"])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SharedOptions:
    """
    The options that pools of all flavours have.

    Raises:
        ValueError, TypeError: A value makes no sense. The message names the argument, the value and what is allowed.
    """

    keepalive: float = option(
        "Seconds after which an idle connection is pinged; 0 never.", check=seconds("0 turns it off"), default=0.0
    )
    shed_after: float | None = option(
        "Load shedding: while the queue is backed up, callers that have waited longer than this many seconds get "
        "`Overloaded`; the last one in the queue is spared. The queue is backed up if for five times as long no caller "
        "was served within half of it. None never refuses.",
        check=or_none(seconds("None turns it off")),
        default=None,
    )
    max_connecting: int | None = option(
        "Connects in flight at once; None for *max_size*.", check=or_none(count(1)), default=None
    )
    leak_threshold: float | None = option(
        "Seconds a lease may last before it is logged, with who holds it where; None never.",
        check=or_none(seconds("None turns it off")),
        default=None,
    )
    fd_check: float | None = option(
        "Seconds between two checks whether fds have outlived their connections. Those are counted, reported and "
        "logged. None never checks.",
        check=or_none(_some_seconds),
        default=None,
    )
    on_event: EventHook | None = option(
        "Called with each `loopaware_pool.stats.PoolEvent`. What it raises is logged.",
        check=check_callback,
        default=None,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (check := field.metadata["check"]) is not None:
                check(field.name, getattr(self, field.name))

    @classmethod
    def names(cls) -> list[str]:
        """List the names of the options."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Carry those of *arguments* that are declared here. A function passes all it was given, as `locals()`."""
        return cls(**{name: arguments[name] for name in cls.names()})

    def shared(self) -> dict[str, Any]:
        """Return the values of these options, by their names."""
        return {name: getattr(self, name) for name in SharedOptions.names()}


def documented(options: type[SharedOptions]) -> Callable[[Documented], Documented]:
    """
    Make a decorator for a function, or a class, that takes *options*: its docstring gets what each option does, in
    place of "{options}", in the order of its parameters.
    """

    def complete(told: Documented) -> Documented:
        if told.__doc__ is not None:  # as it is under `python -OO`
            place = next(line for line in told.__doc__.splitlines() if _PLACE in line)
            indent = place.partition(_PLACE)[0]
            told.__doc__ = told.__doc__.replace(place, "\n".join(_lines(declared(options, told), indent)))
        return told

    return complete


def declared(options: type[SharedOptions], taken_by: Any) -> list[dataclasses.Field[Any]]:
    """List the declarations of *options*, in the order in which a function, or a class, takes them."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    return [fields[name] for name in inspect.signature(taken_by).parameters if name in fields]


def _lines(fields: list[dataclasses.Field[Any]], indent: str) -> list[str]:
    texts = [f"{field.name}: {sentence(field)}" for field in fields]
    wrapped = [textwrap.wrap(one, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}    ") for one in texts]
    return [line for lines in wrapped for line in lines]
