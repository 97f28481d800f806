"""What the pools of all flavours offer beside the methods of the drivers' own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from loopaware_pool._core.pool import PoolCore
    from loopaware_pool.stats import ConnectionReport, PoolStats

__all__ = ["PoolSurface"]


class PoolSurface:
    """The public methods that are the same for every flavour."""

    _core: PoolCore[Any]

    def stats(self) -> PoolStats:
        """Count everything, for the pool and for each loop. From any thread."""
        return self._core.stats()

    def fd_report(self) -> list[ConnectionReport]:
        """Describe every connection: socket, loop, state, registration, holder. From any thread."""
        return self._core.fd_report()

    async def settled(self) -> None:
        """
        Wait until every release so far on this loop has settled: sessions reset, transactions rolled back, idle fds out
        of the selector.

        Cancellation: ends the waiting.
        """
        runner = self._core.runner_here()
        if runner is not None:
            await runner.until_settled()

    def suspend(self) -> None:
        """Serve no caller until `resume()`: callers queue, up to their timeouts; leases go on. From any thread."""
        self._core.suspend()

    def resume(self) -> None:
        """Serve the callers that queued since `suspend()`. From any thread."""
        self._core.resume()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: connections belong to one pool of one process, and a password to no file."""
        name = self._core.shared.config.name
        raise TypeError(f"pool {name!r} cannot be pickled or copied: make another with the same arguments")
