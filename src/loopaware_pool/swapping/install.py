"""
`install()` and `uninstall()`: which names of the drivers become ours.

No driver is imported here. One that is imported already is swapped at once, any other as soon as it is imported: when
this package's flavour for it has been imported, too, and before the program sees it.
"""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loopaware_pool.swapping.dialects import DIALECTS, DialectSwap
from loopaware_pool.swapping.imports import ImportWatch
from loopaware_pool.swapping.names import Replacements, modules_holding

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NotSwapped", "install", "uninstall"]


class NotSwapped(RuntimeWarning):
    """Some modules hold a driver's own pool in a way that `install()` does not change; the message names them."""


class _Flavour(NamedTuple):
    """
    Whose names are swapped for what.

    Attributes:
        driver: The package that programs import.
        ours: The package that has what takes the place of its names.
        homes: The driver's module that defines each name.
        base: The class of ours that makes every pool of the flavour.
        rescued: Names whose old object makes pools of ours, too, whoever holds it: it looks up a class that is swapped.
    """

    driver: str
    ours: str
    homes: dict[str, str]
    base: str
    rescued: frozenset[str] = frozenset()


_FLAVOURS: Final = (
    _Flavour(
        driver="asyncpg",
        ours="loopaware_pool.asyncpg",
        homes={"create_pool": "asyncpg.pool", "Pool": "asyncpg.pool"},
        base="Pool",
        rescued=frozenset({"create_pool"}),
    ),
    _Flavour(
        driver="psycopg_pool",
        ours="loopaware_pool.psycopg",
        homes={
            "AsyncConnectionPool": "psycopg_pool.pool_async",
            "AsyncNullConnectionPool": "psycopg_pool.null_pool_async",
        },
        base="AsyncConnectionPool",
    ),
)


class _Swap:
    """One flavour, and whether its names are ours at the moment. But for `load`, it is called with the lock held."""

    def __init__(self, flavour: _Flavour) -> None:
        self.flavour = flavour
        self._old: dict[str, Any] = {}
        self._replacements: Replacements | None = None
        self._constructor: Callable[..., None] | None = None

    def load(self) -> None:
        """Import what takes the place of the driver's names. The import system has locks of its own."""
        import_module(self.flavour.driver)  # another thread may be in the middle of it
        import_module(self.flavour.ours)

    def make(self, on_pool: Callable[[Any], object] | None) -> None:
        """Swap the names, or do so again in modules that have come to hold the old ones since."""
        ours = sys.modules.get(self.flavour.ours)
        if not all(hasattr(ours, name) for name in self.flavour.homes):
            return  # it is being imported; this is called again at the end of that
        if self._replacements is None:
            self._old = {name: getattr(sys.modules[home], name) for name, home in self.flavour.homes.items()}
            self._replacements = Replacements((old, getattr(ours, name)) for name, old in self._old.items())
        self._replacements.make()
        self._tell(getattr(ours, self.flavour.base), on_pool)

    def unreached(self) -> list[str]:
        """Name the modules that hold something old which makes no pool of ours."""
        held = {name: old for name, old in self._old.items() if name not in self.flavour.rescued}
        if not held:
            return []
        new = [getattr(sys.modules[self.flavour.ours], name) for name in held]
        return modules_holding(list(held.values()), replacements=new, but_not=[self.flavour.driver])

    def undo(self) -> None:
        """Give the names back."""
        if self._replacements is not None:
            self._replacements.undo()
            self._tell(getattr(sys.modules[self.flavour.ours], self.flavour.base), None)
        self._replacements = None
        self._old = {}

    def _tell(self, base: Any, on_pool: Callable[[Any], object] | None) -> None:
        """Call *on_pool*, and no other, with each new pool of ours."""
        if self._constructor is not None:
            base.__init__, self._constructor = self._constructor, None
        if on_pool is None:
            return
        constructor = self._constructor = base.__init__

        @functools.wraps(constructor)
        def __init__(pool: Any, *arguments: Any, **options: Any) -> None:
            constructor(pool, *arguments, **options)
            on_pool(pool)

        base.__init__ = __init__


class _Installation:
    """What is installed in this process."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may run anything in between, and that may import a driver.
        self._lock = threading.RLock()
        self._is_on = False
        self._on_pool: Callable[[Any], object] | None = None
        self._swaps = [_Swap(flavour) for flavour in _FLAVOURS]
        actions: dict[str, Callable[[], None]] = {}
        for swap in self._swaps:
            actions[swap.flavour.driver] = functools.partial(self._load_and_swap, swap)
            actions[swap.flavour.ours] = functools.partial(self._swap, swap)
        self._dialects = DialectSwap(lambda: self._on_pool)
        self._has_sqlalchemy = False
        actions.update(dict.fromkeys(DIALECTS, self._swap_dialects))
        self._watch = ImportWatch(actions)

    def install(self, on_pool: Callable[[Any], object] | None, *, sqlalchemy: bool) -> list[str]:
        """Install, and name the modules that could not be reached."""
        with self._lock:
            self._is_on = True
            self._on_pool = on_pool or self._on_pool
            self._has_sqlalchemy |= sqlalchemy
            self._watch.start()
        self._swap_dialects()
        unreached: set[str] = set()
        for swap in self._swaps:
            if sys.modules.get(swap.flavour.driver) is not None:
                self._load_and_swap(swap)
                unreached.update(swap.unreached())
        return sorted(unreached)

    def uninstall(self) -> None:
        """Undo it."""
        with self._lock:
            self._is_on = False
            self._on_pool = None
            self._has_sqlalchemy = False
            self._watch.stop()
            self._dialects.undo()
            for swap in self._swaps:
                swap.undo()

    def _load_and_swap(self, swap: _Swap) -> None:
        swap.load()  # without the lock: a thread that has a lock of the import system may wait for ours
        self._swap(swap)

    def _swap(self, swap: _Swap) -> None:
        with self._lock:
            if self._is_on:
                swap.make(self._on_pool)

    def _swap_dialects(self) -> None:
        with self._lock:
            if self._has_sqlalchemy:
                self._dialects.make()


_INSTALLATION: Final = _Installation()


def install(*, sqlalchemy: bool = False, on_pool: Callable[[Any], object] | None = None) -> None:
    """
    Make the drivers' own names for async pools mean ours, in this process, from now on.

    These are `asyncpg.create_pool` and `asyncpg.Pool`, also as names of `asyncpg.pool`, and
    `psycopg_pool.AsyncConnectionPool` and `AsyncNullConnectionPool`. Global names of other modules that hold one of
    them, as after `from asyncpg import create_pool`, are changed, too. Sync pools stay as they are, and so do pools
    that were made before. A driver that is not imported yet is not imported now; it is swapped when it is.

    Call it before other imports, if possible: what holds a driver's own class otherwise, such as a subclass of it, is
    not changed. It may be called more than once, and from any thread.

    Args:
        sqlalchemy: Whether to make `loopaware_pool.sqlalchemy.LoopAwareQueuePool` the default pool of SQLAlchemy's
            async engines for asyncpg and psycopg, too. An engine with a `poolclass` of its own keeps that.
        on_pool: Called with each pool of ours that is made from now on; what it raises, the maker of the pool gets.
            None keeps what an earlier call has given.

    Warns:
        NotSwapped: Some modules hold a driver's own class in a way that cannot be changed.
    """
    unreached = _INSTALLATION.install(on_pool, sqlalchemy=sqlalchemy)
    if unreached:
        warnings.warn(
            f"a driver's own pool class is still used in {', '.join(unreached)} (as a base class, an attribute, a "
            "default or the like): call loopaware_pool.install() before these modules are imported",
            NotSwapped,
            stacklevel=2,
        )


def uninstall() -> None:
    """
    Undo `install()`: give the drivers their own names back, in all modules in which it has changed them.

    A name that holds something else by now is left alone. A module that was imported in between, and took a name from
    the driver, keeps ours. So do pools that exist. It may be called more than once, and from any thread.
    """
    _INSTALLATION.uninstall()
