"""
`max_size`, shared by every loop of the process. This is the only place of a pool that takes a lock on the way to a
connection.

A permit is the right to have one connection, from the decision to connect until the socket is gone. A loop that needs a
permit and finds none files a claim. Whoever gives a permit back learns which claim it went to, and tells that loop. A
permit changes hands under the lock; it never waits to be picked up by whichever loop runs first.

Who gets the next connection is a policy, and both simple policies fail. Strict order between loops thrashes: half of
all acquires would close another loop's connection and connect anew. Own loop first starves: a loop without connections
would wait for as long as the others have callers. So the own loop comes first, but only for a limited time
(`Permits.promise`).
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
    def unused(self) -> int:
        """Connections that can be closed at once for another loop. Read from any thread, so it may be a moment old."""

    @property
    def spare(self) -> int:
        """The same, and those that the server has to answer or to hang up first."""


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
        self.in_use: int = 0
        self.claims: dict[Claimant, float] = {}
        # When a connection was last closed for a claim.
        self._promised: dict[Claimant, float] = {}
        # Until then no claim deserves a connection of a loop without waiters; or of a loop with waiters, if it holds
        # no more permits than `_calm_up_to`. Where many loops wait, each connection that comes free leads to `promise`.
        # With this, most of these calls take no lock and look at no claim.
        self._calm_until = {False: -NEVER, True: -NEVER}
        self._calm_up_to = 0

    @property
    def free(self) -> int:
        """Permits that are not held."""
        return max(0, self._shared.config.max_size - self.in_use)

    @property
    def ripe_at(self) -> float:
        """
        From when on a claim may deserve a connection of a loop without waiters, monotonic seconds. Read without the
        lock.
        """
        return self._calm_until[False]

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
        if now < self._calm_until[donor_has_waiters] and not (
            donor_has_waiters and self.held(donor) > self._calm_up_to
        ):
            return False
        with self._lock:
            calm_until = NEVER
            for claimant, since in list(self.claims.items()):
                if donor_has_waiters and not self._is_poorer(claimant, donor):
                    continue
                ripe_at = self._ripe_at(claimant, since, donor_has_waiters)
                if now >= ripe_at and claimant is not donor:
                    self._promised[claimant] = now
                    return True
                calm_until = min(calm_until, ripe_at)
            self._calm_until[donor_has_waiters] = calm_until
            if donor_has_waiters:
                self._calm_up_to = self.held(donor)
            return False

    def donor_for(self, claimant: Claimant, now: float, asked: Claimant | None = None) -> Claimant | None:
        """
        Return the loop with the most unused connections among those that must give one up for *claimant*.

        Another one than *asked*, if there is: that was asked last, and its thread may be busy with something else.
        """
        with self._lock:
            since = self.claims.get(claimant)
            if since is None:
                return None
            if now < self._ripe_at(claimant, since, False):
                return None
            donors = [donor for donor in list(self._held) if donor is not claimant and donor.spare]
        # One that only waits for its server may wait for long, and has nothing to give until then.
        return max(donors, key=lambda donor: (donor.unused > 0, donor is not asked, donor.spare), default=None)

    def _ripe_at(self, claimant: Claimant, since: float, donor_has_waiters: bool) -> float:
        """
        Caller holds the lock. Return from when on a claim deserves a connection, if no balance stands against it.

        A promise lapses, as the permit may have gone to a loop that has fewer.
        """
        begins = self._promised.get(claimant, -NEVER)
        if donor_has_waiters or self.held(claimant):
            begins = max(begins, since)
        return begins + self._shared.config.patience

    def _is_poorer(self, claimant: Claimant, donor: Claimant) -> bool:
        """
        Caller holds the lock. Whether a permit of *donor*, which has waiters, would serve *claimant* towards balance.

        Otherwise two busy loops would take from each other for ever.
        """
        owned = self.held(claimant)
        return owned == 0 or self.held(donor) > owned + 1

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
        claimant = min(list(self.claims), key=self.held)
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
            self._calm_until = {False: -NEVER, True: -NEVER}  # it has become poorer
        if held > 1:
            self._held[claimant] = held - 1
        else:
            self._held.pop(claimant, None)
        self.in_use -= 1

    def _file(self, claimant: Claimant, since: float) -> None:
        """Caller holds the lock. A claim that stands keeps its place and its time."""
        if claimant not in self.claims:
            self.claims[claimant] = since
            for donor_has_waiters, calm_until in list(self._calm_until.items()):
                ripe_at = self._ripe_at(claimant, since, donor_has_waiters)
                self._calm_until[donor_has_waiters] = min(calm_until, ripe_at)

    def _withdraw(self, claimant: Claimant) -> None:
        """Caller holds the lock."""
        self.claims.pop(claimant, None)
        self._promised.pop(claimant, None)
