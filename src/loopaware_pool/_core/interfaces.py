"""What a shard needs of the world: futures to serve callers by, and hands that act on its loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from loopaware_pool._core.permits import Claimant
    from loopaware_pool._core.slot import Slot
    from loopaware_pool.errors import ErrorFamily

__all__ = ["ShardEffects", "Waiter", "Waiting"]


class Waiter(Protocol):
    """A caller in the queue: a future of its loop."""

    def done(self) -> bool:
        """Whether it has been served, told off or cancelled."""

    def set_result(self, slot: Slot, /) -> object:
        """Serve it."""

    def set_exception(self, error: BaseException, /) -> object:
        """Tell it off."""


class Waiting(NamedTuple):
    """Since when a caller waits (monotonic seconds), and whether it has a deadline of its own."""

    since: float
    has_deadline: bool


class ShardEffects(Protocol):
    """What a shard has done for it, on its loop."""

    @property
    def errors(self) -> ErrorFamily:
        """What callers are told."""

    def is_awake(self) -> bool:
        """Whether the loop runs. If not, another thread acts in its place, and what is begun may never end."""

    def open(self, slot: Slot) -> None:
        """Connect; then call `connected` or `connect_failed`."""

    def reset(self, slot: Slot) -> None:
        """Reset the session; then call `serviced` or `discard`."""

    def ping(self, slot: Slot) -> None:
        """Make a round trip; then call `serviced` or `discard`."""

    def read(self, slot: Slot) -> None:
        """Let the driver read what arrived; then call `serviced` or `discard`."""

    def close(self, slot: Slot, *, politely: bool) -> None:
        """Close the connection; then call `closed`."""

    def cut(self, slot: Slot) -> None:
        """Close at once a connection that is being closed politely; then call `closed`."""

    def park(self, slot: Slot) -> None:
        """Take the fd out of the selector before the loop polls, if the slot is idle then."""

    def wake_at(self, due: float) -> None:
        """Call `sweep` at *due* (monotonic seconds), or earlier."""

    def tell(self, claimant: Claimant) -> None:
        """Call `granted` of another loop's shard, on its loop."""

    def ask(self, donor: Claimant) -> None:
        """Call `asked` of another loop's shard, on its loop."""

    def run_errands_of_idle_loops(self) -> None:
        """Have done what other loops were told and have stopped before they heard: permits may be among it."""

    def look_for_dropped(self) -> None:
        """Call `reclaim_dropped` of every loop's housekeeper, on its loop."""

    def floor_not_restored(self, error: BaseException) -> None:
        """Report that a connect for `min_size` failed and will be tried again."""

    def overdue(self, slot: Slot) -> None:
        """Report a lease that is longer than `leak_threshold`, and note that in `slot.reported`."""

    def came_back(self, slot: Slot, held_seconds: float) -> None:
        """Report that one has ended which was reported."""

    def dropped(self, slot: Slot) -> None:
        """Report one that nobody will ever end."""

    def opened(self, slot: Slot, seconds: float) -> None:
        """Report a connection."""

    def connect_failed(self, slot: Slot, error: BaseException) -> None:
        """Report that there is none."""

    def gone(self, slot: Slot, reason: str) -> None:
        """Report that a connection left the pool."""
