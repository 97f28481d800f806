"""`FixedAsyncPGPool`: a pool of four methods, for code written against a class of that name."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from asyncpg import InterfaceError

from loopaware_pool.asyncpg import create_pool

if TYPE_CHECKING:
    from loopaware_pool.asyncpg import PoolConnectionProxy

__all__ = ["FixedAsyncPGPool"]


class FixedAsyncPGPool:
    """
    A pool with the methods `init`, `acquire`, `release` and `close`, over `loopaware_pool.asyncpg.create_pool`.

    Any number of tasks, loops and threads may use it. A task that finds no free connection waits its turn.

    Args:
        host: Name or address of the server, or the folder of its Unix socket.
        port: Its port.
        user: The user to connect as.
        password: That user's password; None for none.
        database: The database to connect to.
        min_connections: Connections that `init` opens and that are kept while idle.
        max_connections: Most connections of this process, on all loops together.
        loop: Accepted for compatibility; the pool uses the running loop.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument makes no sense. Either message names the argument, its value and what is expected.
    """

    def __init__(  # noqa: PLR0917 - the class it stands in for takes them by position
        self,
        host: str,
        port: int,
        user: str,
        password: str | None,
        database: str,
        min_connections: int = 1,
        max_connections: int = 10,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        for name, text in (("host", host), ("user", user), ("database", database)):
            _check_text(name, text)
        if password is not None and not isinstance(password, str):
            # The one value that is not shown: a value passed by mistake may still be a secret.
            raise TypeError(f"password is of type {type(password).__name__}: expected a string, or None for none")
        _check_count("port", port, 1, 65535)
        _check_count("min_connections", min_connections, 0)
        _check_count("max_connections", max_connections, 1)
        if min_connections > max_connections:
            raise ValueError(
                f"min_connections={min_connections}, max_connections={max_connections}: "
                "expected min_connections <= max_connections"
            )
        if loop is not None and not isinstance(loop, asyncio.AbstractEventLoop):
            raise TypeError(f"loop={loop!r}: expected an event loop, or None")
        self._make_pool = functools.partial(
            create_pool,
            host=host,
            port=port,
            user=user,
            password=password,
            database=database,
            min_size=min_connections,
            max_size=max_connections,
        )
        self._pool = self._make_pool()
        self._is_initialized = False

    async def init(self) -> None:
        """
        Open `min_connections` connections; needed once, and harmless when repeated. After a failure, try again.

        Raises:
            asyncpg.InterfaceError: The pool was closed.
            Exception: What connecting failed with.

        Cancellation: as a failure; nothing is left open.
        """
        if self._is_initialized and self._pool.is_closing():
            raise InterfaceError("FixedAsyncPGPool.init() after close(): make a new pool")
        if self._pool.is_closing():
            self._pool = self._make_pool()
        await self._pool
        self._is_initialized = True

    async def acquire(self) -> PoolConnectionProxy:
        """
        Lend a connection of the running loop; waits for one as long as it takes.

        Returns:
            A connection, which must be given back with `release`, whatever happens meanwhile.

        Raises:
            asyncpg.InterfaceError: `init` was not called, or the pool was closed.
            Exception: What connecting failed with, if there is no other connection to wait for.

        Cancellation: loses nothing.
        """
        if not self._is_initialized:
            raise InterfaceError("FixedAsyncPGPool.acquire() before init(): call `await pool.init()` first")
        connection: PoolConnectionProxy = await self._pool.acquire()
        return connection

    async def release(self, conn: PoolConnectionProxy) -> None:
        """
        Give a connection back; the longest waiting task gets it. A second release of it is ignored.

        Args:
            conn: What `acquire` gave.

        Raises:
            asyncpg.InterfaceError: *conn* is not of this pool.

        Cancellation: the connection is given back all the same.
        """
        await self._pool.release(conn)

    async def close(self) -> None:
        """
        Close every connection, once those that are lent have come back; harmless when repeated, or before `init`.

        Cancellation: closes all of them at once.
        """
        if self._is_initialized:
            await self._pool.close()


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        complaint = f"{name}={value!r}: expected a non-empty string"
        raise ValueError(complaint) if value == "" else TypeError(complaint)


def _check_count(name: str, value: object, least: int, most: int | None = None) -> None:
    expected = f"expected a whole number, {least} or more" if most is None else f"expected a port, {least} to {most}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: {expected}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}={value!r}: {expected}")
