"""
`max_size`, shared by every loop of the process. This is the only place of a pool that takes a lock on the way to a
connection.

A permit is the right to have one connection, from the decision to connect until the socket is gone. A loop that needs a
permit and finds none files a claim. Whoever gives a permit back learns which claim it went to, and tells that loop. A
permit changes hands under the lock; it never waits to be picked up by whichever loop runs first.

Who gets the next connection is a policy, and both simple policies fail. Strict order between loops thrashes: half of
all acquires would close another loop's connection and connect anew. Own loop first starves: a loop without connections
would wait for as long as the others have callers. So the own loop comes first, but only for a limited time
(`_deserves`).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from loopaware_pool._core.state import SharedState

__all__ = ["Claimant", "Permits"]

NEVER: Final = float("inf")


class Claimant(Protocol):
    """One loop's share of the pool."""

    @property
    def spare(self) -> int:
        """Idle connections that no caller on that loop waits for. Read from any thread, so it may be a moment old."""


class Permits:
    """
    Permits for connections, and the loops that wait for one. Safe to use from any thread.

    There are as many as the setting `max_size` says. When it becomes less, more may be held for a while.

    Args:
        shared: What the pool's loops share, its settings among it.

    Attributes:
        claims: The loops that wait for a permit, and since when. Others read it without the lock, to see whether there
            are any, and then call `promise`.
        in_use: Permits held by all loops together. Read without the lock.
    """

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        # Guards all below; never held during a callback. A signal handler or the garbage collector may interrupt the
        # holder and come back here. So the lock is reentrant, and every loop over a dictionary runs over a copy.
        self._lock = threading.RLock()
        self._held: dict[Claimant, int] = {}
        self.in_use = 0
        self.claims: dict[Claimant, float] = {}
        # When a connection was last closed for a claim.
        self._promised: dict[Claimant, float] = {}
        # No claim is older, and no loop with a claim holds fewer permits. They may be too low: see `_may_yield`.
        self._oldest: float = NEVER
        self._fewest: float = NEVER

    @property
    def free(self) -> int:
        """Permits that are not held."""
        return max(0, self._shared.config.max_size - self.in_use)

    def held(self, claimant: Claimant) -> int:
        """Permits that *claimant* holds."""
        return self._held.get(claimant, 0)

    def take(self, claimant: Claimant) -> bool:
        """Take a permit if one is free."""
        with self._lock:
            if not self._is_free():
                return False
            self._grant(claimant)
            return True

    def take_or_claim(self, claimant: Claimant, since: float) -> bool:
        """
        Take a permit. If none is free, file a claim for callers that have waited *since* then (monotonic seconds).

        A loop files its claim before it reads the others' `spare`. The others have idle connections counted in `spare`
        before they
        check `claims`. So one side always sees the other, and no caller waits while a connection is idle.
        """
        with self._lock:
            if self._is_free():
                self._grant(claimant)
                return True
            if self.held(claimant) < self._shared.config.max_size:  # else only its own permits can come free
                self._file(claimant, since)
            return False

    def drop_claim(self, claimant: Claimant) -> None:
        """Withdraw the claim: no caller waits any more."""
        with self._lock:
            self._withdraw(claimant)

    def give_back(self, claimant: Claimant) -> Claimant | None:
        """
        Return a permit.

        Returns:
            The loop whose claim it went to, which the caller must tell; None if it is free now.
        """
        with self._lock:
            self._release(claimant)
            return self._serve_claim()

    def forget(self, claimant: Claimant) -> list[Claimant]:
        """
        Return all permits and the claim of a loop that is gone.

        Returns:
            The loops that got a permit each. The caller must tell them.
        """
        with self._lock:
            self._withdraw(claimant)
            held = self._held.pop(claimant, 0)
            self.in_use -= held
            return self._serve_claims()

    def serve_claims(self) -> list[Claimant]:
        """
        Give free permits to the loops that wait for one, as after `max_size` has become more.

        Returns:
            The loops that got a permit each. The caller must tell them.
        """
        with self._lock:
            return self._serve_claims()

    def promise(self, donor: Claimant, now: float, *, donor_has_waiters: bool) -> bool:
        """
        Promise a connection that came free on *donor* to a loop that has a claim, if one deserves it.

        A claim is promised one connection at a time. If all loops closed one for it, one of the permits would serve
        it, and the others would be taken back by whoever comes first: connections would be closed and opened for ever.

        Returns:
            Whether one does. Then *donor* must close the connection.
        """
        if not self._may_yield(donor, now, donor_has_waiters):
            return False
        with self._lock:
            for claimant, since in list(self.claims.items()):
                if (
                    claimant is not donor
                    and not self._is_promised(claimant, now)
                    and self._deserves(claimant, since, donor, now, donor_has_waiters)
                ):
                    self._promised[claimant] = now
                    return True
            self._oldest = min(list(self.claims.values()), default=NEVER)
            self._fewest = min([self.held(claimant) for claimant in list(self.claims)], default=NEVER)
            return False

    def _is_promised(self, claimant: Claimant, now: float) -> bool:
        """Caller holds the lock. A promise lapses, as its permit may have gone to a loop that has fewer."""
        return now - self._promised.get(claimant, -NEVER) < self._shared.config.patience

    def _may_yield(self, donor: Claimant, now: float, donor_has_waiters: bool) -> bool:
        """
        Rule out most cases in which no claim deserves a connection of *donor*.

        Where many loops wait, each connection that comes free leads here. So this takes no lock, and looks at no claim.
        """
        some_overdue = now - self._oldest >= self._shared.config.patience
        if donor_has_waiters:
            return some_overdue and (self._fewest == 0 or self.held(donor) > self._fewest + 1)
        return some_overdue or self._fewest == 0

    def donor_for(self, claimant: Claimant, now: float) -> Claimant | None:
        """Return the loop with the most spare connections among those that must give one up for *claimant*."""
        with self._lock:
            since = self.claims.get(claimant)
            if since is None:
                return None
            donors = [
                donor
                for donor in list(self._held)
                if donor is not claimant and donor.spare and self._deserves(claimant, since, donor, now, False)
            ]
        return max(donors, key=lambda donor: donor.spare, default=None)

    def _deserves(self, claimant: Claimant, since: float, donor: Claimant, now: float, donor_has_waiters: bool) -> bool:
        """Caller holds the lock."""
        owned = self._held.get(claimant, 0)
        overdue = now - since >= self._shared.config.patience
        if donor_has_waiters:
            # Only towards balance: otherwise two busy loops would take from each other for ever.
            return overdue and (owned == 0 or self._held.get(donor, 0) > owned + 1)
        return owned == 0 or overdue

    def _is_free(self) -> bool:
        """Caller holds the lock. Never true while there are claims: those are served first."""
        return self.in_use < self._shared.config.max_size

    def _serve_claims(self) -> list[Claimant]:
        """Caller holds the lock."""
        served = []
        while (claim := self._serve_claim()) is not None:
            served.append(claim)
        return served

    def _serve_claim(self) -> Claimant | None:
        """Caller holds the lock. The loop with the fewest permits comes first, then the one that claimed first."""
        if not self.claims or not self._is_free():
            return None
        claimant = min(list(self.claims), key=lambda claimant: self._held.get(claimant, 0))
        self._grant(claimant)
        return claimant

    def _grant(self, claimant: Claimant) -> None:
        """Caller holds the lock."""
        self._withdraw(claimant)
        self._held[claimant] = self._held.get(claimant, 0) + 1
        self.in_use += 1

    def _release(self, claimant: Claimant) -> None:
        """Caller holds the lock. The loop may have been forgotten, and its permit counted as free since."""
        held = self._held.get(claimant, 0)
        if not held:
            return
        if claimant in self.claims:
            self._fewest = min(self._fewest, held - 1)
        if held > 1:
            self._held[claimant] = held - 1
        else:
            self._held.pop(claimant, None)
        self.in_use -= 1

    def _file(self, claimant: Claimant, since: float) -> None:
        """Caller holds the lock. A claim that stands keeps its place and its time."""
        if claimant not in self.claims:
            self._oldest = min(self._oldest, since)
            self._fewest = min(self._fewest, self.held(claimant))
            self.claims[claimant] = since

    def _withdraw(self, claimant: Claimant) -> None:
        """Caller holds the lock."""
        self.claims.pop(claimant, None)
        self._promised.pop(claimant, None)
        if not self.claims:
            self._oldest = self._fewest = NEVER
