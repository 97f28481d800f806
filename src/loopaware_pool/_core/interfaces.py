"""What a shard needs from outside: futures for its callers, and something that acts on its loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from loopaware_pool.driver import S_contra

if TYPE_CHECKING:
    from loopaware_pool._core.permits import Claimant
    from loopaware_pool._core.slot import Slot
    from loopaware_pool.errors import ErrorFamily

__all__ = ["ShardEffects", "Waiter", "Waiting"]


class Waiter(Protocol):
    """A caller in the queue: a future of its loop."""

    def done(self) -> bool:
        """Whether the caller has been served, has got an error, or was cancelled."""

    def set_result(self, slot: Slot[Any], /) -> object:
        """Serve the caller."""

    def set_exception(self, error: BaseException, /) -> object:
        """Raise *error* in the caller."""


class Waiting(NamedTuple):
    """Since when a caller has waited (monotonic seconds), and whether it has a deadline."""

    since: float
    has_deadline: bool


class ShardEffects(Protocol[S_contra]):
    """What a shard has done for it, on its loop. Nothing of this calls the shard before the decision is complete."""

    @property
    def errors(self) -> ErrorFamily:
        """Makes the errors that callers get."""

    def is_awake(self) -> bool:
        """Whether the loop runs. If not, another thread acts for it, and what is begun on the loop may never end."""

    def begin_connect(self, slot: Slot[S_contra]) -> None:
        """Connect; then call `connected` or `connect_failed`."""

    def begin_reset(self, slot: Slot[S_contra]) -> None:
        """Reset the session; then call `serviced` or `discard`."""

    def begin_ping(self, slot: Slot[S_contra]) -> None:
        """Make a round trip; then call `serviced` or `discard`."""

    def begin_read(self, slot: Slot[S_contra]) -> None:
        """Let the driver read what arrived; then call `serviced` or `discard`."""

    def begin_close(self, slot: Slot[S_contra], *, politely: bool) -> None:
        """Close the connection; then call `closed`."""

    def cut_goodbye(self, slot: Slot[S_contra]) -> None:
        """Close at once a connection that is being closed politely; then call `closed`."""

    def park_when_idle(self, slot: Slot[S_contra]) -> None:
        """Take the fd out of the selector before the loop polls, if the slot is idle then."""

    def wake_at(self, due: float) -> None:
        """Call `sweep` at *due* (monotonic seconds), or earlier."""

    def tell_granted(self, claimant: Claimant) -> None:
        """Tell another loop that a permit is its own now: call `permit_granted` of its shard, there."""

    def ask_for_permit(self, donor: Claimant) -> None:
        """Ask another loop for an idle connection's permit: call `permit_requested` of its shard, there."""

    def run_errands_of_idle_loops(self) -> None:
        """Do what loops were asked to do and have stopped before they did it. It may free permits."""

    def reclaim_dropped_on_all_loops(self) -> None:
        """Call `reclaim_dropped` of every loop's housekeeper, on its loop."""

    def report_floor_not_restored(self, error: BaseException) -> None:
        """Report that a connect for `min_size` failed and will be tried again."""

    def report_overdue(self, slot: Slot[S_contra]) -> None:
        """Report a lease that has lasted for longer than `leak_threshold`, and keep the report in `slot.reported`."""

    def report_late_return(self, slot: Slot[S_contra], held_seconds: float) -> None:
        """Report that a lease has ended which was reported as overdue."""

    def report_dropped(self, slot: Slot[S_contra]) -> None:
        """Report a lease that will never be ended."""

    def report_opened(self, slot: Slot[S_contra], seconds: float) -> None:
        """Report that a connection was opened, which took *seconds*."""

    def report_connect_failed(self, slot: Slot[S_contra], error: BaseException) -> None:
        """Report that a connection could not be opened."""

    def report_gone(self, slot: Slot[S_contra], reason: str) -> None:
        """Report that a connection left the pool."""
