"""Makes our pool the one that SQLAlchemy takes for an async engine by itself."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DIALECTS", "DialectSwap"]

# By the module that defines them; SQLAlchemy imports it when it makes the first engine of the kind.
DIALECTS: Final = {
    "sqlalchemy.dialects.postgresql.asyncpg": "PGDialect_asyncpg",
    "sqlalchemy.dialects.postgresql.psycopg": "PGDialectAsync_psycopg",
}


class DialectSwap:
    """
    Which of SQLAlchemy's dialects take our pool at the moment.

    Args:
        on_pool: Gives what to call with each new pool of ours; None for nothing.
    """

    def __init__(self, on_pool: Callable[[], Callable[[Any], object] | None]) -> None:
        self._on_pool = on_pool
        self._undo: list[Callable[[], None]] = []
        self._swapped: set[type] = set()

    def make(self) -> None:
        """Swap the default pool of the dialects that are imported now."""
        for module, name in DIALECTS.items():
            dialect: Any = getattr(sys.modules.get(module), name, None)
            if dialect is not None and dialect not in self._swapped:
                self._swapped.add(dialect)
                self._swap(dialect)

    def _swap(self, dialect: Any) -> None:
        upstream = vars(dialect).get("get_pool_class")

        def get_pool_class(cls: Any, url: Any) -> Any:
            above: Any = super(dialect, cls)
            asked = above.get_pool_class(url) if upstream is None else upstream.__get__(None, cls)(url)
            return self._ours() if asked is import_module("sqlalchemy.pool").AsyncAdaptedQueuePool else asked

        def undo() -> None:
            if upstream is None:
                del dialect.get_pool_class
            else:
                dialect.get_pool_class = upstream

        dialect.get_pool_class = classmethod(get_pool_class)
        self._undo.append(undo)

    def _ours(self) -> Any:
        ours = import_module("loopaware_pool.sqlalchemy").LoopAwareQueuePool
        on_pool = self._on_pool()
        return ours if on_pool is None else _that_tells(ours, on_pool)

    def undo(self) -> None:
        """Let SQLAlchemy take its own pool again, for engines that are made from now on."""
        while self._undo:
            self._undo.pop()()
        self._swapped.clear()


def _that_tells(ours: Any, on_pool: Callable[[Any], object]) -> Any:
    # A subclass, as SQLAlchemy reads the names of options from the source of `__init__`, and of those it inherits.
    class Telling(ours):  # type: ignore[misc]
        def __init__(self, creator: Any, **options: Any) -> None:
            super().__init__(creator, **options)
            on_pool(self)

    Telling.__name__, Telling.__qualname__, Telling.__module__ = ours.__name__, ours.__qualname__, ours.__module__
    return Telling
