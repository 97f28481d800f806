"""What asyncpg's pool says and shows, so that ours says and shows it: its complaints, and what its tests look at."""

from __future__ import annotations

from typing import Any, Final, NoReturn

import asyncpg
from asyncpg.connection import Connection

from loopaware_pool.config import check_number, check_whole

__all__ = ["FREE_HOLDER", "FreeHolder", "FreeSlots", "Uncopied", "check_classes", "check_sizes"]


def check_sizes(
    min_size: int, init_size: int, max_size: int, max_queries: float, max_inactive_connection_lifetime: float
) -> None:
    """Complain as asyncpg does, in its order and its words; of a wrong type, which it takes no notice of, in ours."""
    check_whole("max_size", max_size)
    check_whole("min_size", min_size)
    check_whole("init_size", init_size)
    check_number("max_queries", max_queries)
    check_number("max_inactive_connection_lifetime", max_inactive_connection_lifetime)
    for is_wrong, complaint in (
        (max_size <= 0, "max_size is expected to be greater than zero"),
        (min_size < 0, "min_size is expected to be greater or equal to zero"),
        (min_size > max_size, "min_size is greater than max_size"),
        (init_size < 0, "init_size is expected to be greater or equal to zero"),
        (init_size > max_size, "init_size is greater than max_size"),
        (init_size < min_size, "init_size is smaller than min_size"),
        (max_queries <= 0, "max_queries is expected to be greater than zero"),
        (
            max_inactive_connection_lifetime < 0,
            "max_inactive_connection_lifetime is expected to be greater or equal to zero",
        ),
    ):
        if is_wrong:
            raise ValueError(complaint)


def check_classes(connection_class: type, record_class: type) -> None:
    if not issubclass(connection_class, Connection):
        raise TypeError(
            f"connection_class is expected to be a subclass of asyncpg.Connection, got {connection_class!r}"
        )
    if not issubclass(record_class, asyncpg.Record):
        raise TypeError(f"record_class is expected to be a subclass of asyncpg.Record, got {record_class!r}")


class FreeHolder:
    """Stands for a connection there might be."""

    _con = None
    _in_use = None
    _inactive_callback = None

    @staticmethod
    def is_connected() -> bool:
        return False

    @staticmethod
    def is_idle() -> bool:
        return True


FREE_HOLDER: Final = FreeHolder()


class FreeSlots:
    """Tells how many more connections could be lent."""

    def __init__(self, count: int) -> None:
        self._count = count

    def qsize(self) -> int:
        return self._count


class Uncopied:
    """A pool that cannot be pickled or copied: connections belong to one of one process, and a password to no file."""

    def __reduce__(self: Any) -> NoReturn:
        """Say so."""
        raise TypeError(f"pool {self.name!r} cannot be pickled or copied: make another with the same arguments")
