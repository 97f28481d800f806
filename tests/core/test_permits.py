"""The permits that all loops of a pool share."""

from __future__ import annotations

import collections
import random
import threading

import pytest

from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.permits import Permits
from loopaware_pool._core.state import SharedState

PATIENCE = 0.05
SINCE = 10.0
SOON = SINCE + PATIENCE / 2
LATE = SINCE + PATIENCE


class Loop:
    """A loop's share, with as much to spare as is said."""

    def __init__(self, name, spare=0):
        self.name = name
        self.spare = spare

    @property
    def unused(self):
        return self.spare

    def __repr__(self):
        return self.name


A, B, C = (Loop(name) for name in "ABC")


def settings(max_size, patience=PATIENCE):
    return PoolConfig(min_size=0, init_size=0, max_size=max_size, patience=patience)


def permits_of(max_size, patience=PATIENCE):
    return Permits(SharedState(settings(max_size, patience)))


def resize(permits, max_size):
    """Have another number of permits; the loops that get one of the new ones."""
    permits._shared.config = settings(max_size)
    return permits.serve_claims()


@pytest.fixture
def make():
    """Makes a permits with its permits held as told."""

    def make(max_size, **held):
        permits = permits_of(max_size)
        loops = {name: Loop(name) for name in ("a", "b", "c")}
        for name, count in held.items():
            for _ in range(count):
                assert permits.take(loops[name])
        return permits, *loops.values()

    return make


def test_there_are_as_many_permits_as_the_pool_may_have_connections():
    """Permits are granted up to `max_size`, whoever takes them, and none beyond."""
    permits = permits_of(3)
    assert [permits.take(loop) for loop in (A, B, A, B, A)] == [True, True, True, False, False]
    assert (permits.held(A), permits.held(B), permits.in_use) == (2, 1, 3)


def test_a_permit_given_back_can_be_taken_again(make):
    """With nobody waiting a returned permit is free, and its loop owns one less."""
    permits, a, b, _ = make(1, a=1)
    assert permits.give_back(a) is None
    assert (permits.held(a), permits.in_use) == (0, 0)
    assert permits.take(b)


def test_a_claim_is_filed_only_if_no_permit_is_free(make):
    """Whoever can have a permit gets it at once and leaves no claim behind."""
    permits, a, b, _ = make(2, a=1)
    assert permits.take_or_claim(b, SINCE)
    assert not permits.claims
    assert not permits.take_or_claim(b, SINCE)
    assert list(permits.claims) == [b]
    assert permits.held(a) == 1


def test_a_returned_permit_goes_to_the_claim(make):
    """A permit changes hands under the lock: nobody can take it between its return and the claim's being told."""
    permits, a, b, c = make(1, a=1)
    permits.take_or_claim(b, SINCE)
    assert permits.give_back(a) is b
    assert (permits.held(a), permits.held(b)) == (0, 1)
    assert not permits.claims
    assert not permits.take(c)


def test_the_loop_that_owns_least_is_served_first(make):
    """Among claims, the loop with the fewest permits comes first, however late it came."""
    permits, a, b, c = make(3, a=2, b=1)
    permits.take_or_claim(b, SINCE)
    permits.take_or_claim(c, SINCE + 5)
    assert permits.give_back(a) is c
    assert permits.give_back(a) is b


def test_among_equals_the_first_to_come_is_served_first(make):
    """Loops that own the same number are served in the order in which they claimed."""
    permits, a, b, c = make(2, a=2)
    permits.take_or_claim(c, SINCE)
    permits.take_or_claim(b, SINCE)
    assert [permits.give_back(a), permits.give_back(a)] == [c, b]


def test_a_loop_has_one_claim(make):
    """Claiming again changes neither the place in the queue nor the time it counts from."""
    permits, a, b, c = make(2, a=2)
    permits.take_or_claim(b, SINCE)
    permits.take_or_claim(c, SINCE + 1)
    permits.take_or_claim(b, SINCE + 2)
    assert permits.claims == {b: SINCE, c: SINCE + 1}
    assert [permits.give_back(a), permits.give_back(a)] == [b, c]


def test_a_loop_that_owns_every_permit_claims_none(make):
    """Only its own connections can come free, and those it hands on itself."""
    permits, a, *_ = make(2, a=2)
    assert not permits.take_or_claim(a, SINCE)
    assert not permits.claims


def test_a_loop_may_claim_and_give_back_at_once(make):
    """A loop that gives a permit back while it claims one may get it again: it is told as any other."""
    permits, a, b, _ = make(2, a=1, b=1)
    permits.take_or_claim(a, SINCE)
    assert permits.give_back(a) is a
    assert (permits.held(a), permits.held(b)) == (1, 1)


def test_a_dropped_claim_is_not_served(make):
    """When nobody waits any more, the permit is free for whoever comes."""
    permits, a, b, c = make(1, a=1)
    permits.take_or_claim(b, SINCE)
    permits.drop_claim(b)
    assert not permits.claims
    assert permits.give_back(a) is None
    assert permits.take(c)


def test_dropping_a_claim_that_was_never_filed_does_nothing(make):
    """`drop_claim` may be called by anybody at any time."""
    permits, a, b, _ = make(1, a=1)
    permits.drop_claim(b)
    permits.drop_claim(a)
    assert permits.held(a) == 1


def test_a_loop_that_is_gone_leaves_its_permits_to_the_others(make):
    """`forget` returns every permit of a loop and serves as many claims with them, the poorest first."""
    permits, a, b, c = make(4, a=3, b=1)
    permits.take_or_claim(b, SINCE)
    permits.take_or_claim(c, SINCE + 1)
    assert permits.forget(a) == [c, b]
    assert (permits.held(a), permits.held(b), permits.held(c)) == (0, 2, 1)
    assert permits.take(b)
    assert not permits.take(b)


def test_a_loop_that_is_gone_claims_nothing(make):
    """`forget` drops the claim too: nobody would pick its permit up."""
    permits, a, b, _ = make(1, a=1)
    permits.take_or_claim(b, SINCE)
    assert permits.forget(b) == []
    assert permits.give_back(a) is None


def test_forgetting_twice_returns_nothing_twice(make):
    """A loop's end may be noticed more than once, and its last permits come back late: none is counted twice."""
    permits, a, b, _ = make(2, a=1, b=1)
    assert permits.forget(a) == []
    assert permits.forget(a) == []
    assert permits.give_back(a) is None
    assert (permits.held(a), permits.in_use) == (0, 1)
    assert permits.take(b)
    assert not permits.take(b)


@pytest.mark.parametrize(
    ("held", "now", "donor_has_waiters", "yields"),
    [
        ({"a": 2}, SOON, False, True),
        ({"a": 2}, SOON, True, False),
        ({"a": 2}, LATE, True, True),
        ({"a": 3, "b": 1}, SOON, False, False),
        ({"a": 3, "b": 1}, LATE, False, True),
        ({"a": 3, "b": 1}, SOON, True, False),
        ({"a": 3, "b": 1}, LATE, True, True),
        ({"a": 2, "b": 1}, LATE, True, False),
        ({"a": 2, "b": 2}, LATE, True, False),
        ({"a": 1, "b": 3}, LATE, False, True),
    ],
    ids=[
        "a loop with nothing gets what nobody wants",
        "callers of its own come first",
        "but not for longer than patience lasts",
        "a loop with some stands back, even for what nobody wants",
        "but not for longer than patience lasts, either",
        "callers come first, whoever has more",
        "the richer loop gives when the other is overdue",
        "not down to a mere exchange of who has more",
        "equals do not take from each other",
        "what nobody wants goes to whoever is overdue",
    ],
)
def test_when_a_connection_is_given_up(make, held, now, donor_has_waiters, yields):
    """Own loop first, with bounded patience; between busy loops only towards balance."""
    permits, a, b, _ = make(sum(held.values()), **held)
    permits.take_or_claim(b, SINCE)
    assert permits.promise(a, now, donor_has_waiters=donor_has_waiters) is yields


def test_nobody_yields_to_himself(make):
    """A loop's own claim is no reason to close its own connection."""
    permits, a, *_ = make(2, a=1, b=1)
    permits.take_or_claim(a, SINCE)
    assert not permits.promise(a, LATE, donor_has_waiters=False)


def test_any_claim_that_deserves_it_is_a_reason_to_yield(make):
    """Not only the first claim counts: a later one may be of a loop that has nothing."""
    permits, a, b, c = make(3, a=2, b=1)
    permits.take_or_claim(b, SINCE)
    assert not permits.promise(a, SOON, donor_has_waiters=False)
    permits.take_or_claim(c, SOON)
    assert permits.promise(a, SOON, donor_has_waiters=False)


def test_the_donor_is_the_loop_with_most_to_spare(make):
    """A claim asks the loop with the most idle connections."""
    permits, a, b, c = make(5, a=2, b=3)
    a.spare, b.spare = 1, 2
    permits.take_or_claim(c, SINCE)
    assert permits.donor_for(c, SOON) is b
    a.spare = 3
    assert permits.donor_for(c, SOON) is a


def test_a_loop_without_a_claim_has_no_donor(make):
    """Only who waits for a permit may ask another loop for one."""
    permits, a, b, _ = make(1, a=1)
    a.spare = 1
    assert permits.donor_for(b, LATE) is None


def test_a_loop_with_nothing_to_spare_is_no_donor(make):
    """Loops that use what they have are not asked."""
    permits, _, b, _ = make(1, a=1)
    permits.take_or_claim(b, SINCE)
    assert permits.donor_for(b, LATE) is None


def test_a_loop_that_has_connections_asks_only_when_it_is_overdue(make):
    """Patience holds for idle connections as well, unless the claimant has none at all."""
    permits, a, b, _ = make(2, a=1, b=1)
    a.spare = 1
    permits.take_or_claim(b, SINCE)
    assert permits.donor_for(b, SOON) is None
    assert permits.donor_for(b, LATE) is a


def test_nobody_is_his_own_donor(make):
    """A claim is never answered by its own loop's idle connections."""
    permits, a, *_ = make(2, a=1, b=1)
    a.spare = 1
    permits.take_or_claim(a, SINCE)
    assert permits.donor_for(a, LATE) is None


def test_a_loop_that_has_given_everything_back_is_no_donor(make):
    """Whatever it says it has to spare: no permit could come of it."""
    permits, a, b, c = make(1, a=1)
    permits.give_back(a)
    assert permits.take(b)
    a.spare = 1
    permits.take_or_claim(c, SINCE)
    assert permits.donor_for(c, LATE) is None


def test_a_loop_without_a_permit_yields_none(make):
    """It has none to give, however long another waits for a second one."""
    permits, a, b, c = make(2, b=1, c=1)
    permits.take_or_claim(b, SINCE)
    assert not permits.promise(a, LATE, donor_has_waiters=True)
    assert permits.held(c) == 1


def test_more_permits_go_to_those_who_wait(make):
    """At once, the poorest first, each to be told; what is left is free."""
    permits, a, b, c = make(2, a=1, b=1)
    permits.take_or_claim(b, SINCE)
    permits.take_or_claim(c, SINCE + 1)
    assert resize(permits, 5) == [c, b]
    assert (permits.in_use, permits.free, permits.claims) == (4, 1, {})
    assert permits.take(a)


def test_with_fewer_permits_none_is_free_until_enough_are_back(make):
    """Nobody has a permit taken away."""
    permits, a, b, _ = make(3, a=3)
    assert resize(permits, 2) == []
    assert (permits.held(a), permits.free) == (3, 0)
    assert not permits.take_or_claim(b, SINCE)
    assert permits.give_back(a) is None
    assert permits.give_back(a) is b


class Traffic:
    """Threads that take, claim, give back and forget at random, and note what they own by their own account."""

    MAX_SIZE = 3

    def __init__(self):
        self.permits = permits_of(self.MAX_SIZE, patience=0.0)
        self.loops = [Loop(f"loop {number}", spare=1) for number in range(4)]
        self.granted = {loop: collections.deque() for loop in self.loops}
        self.most_in_use = 0
        self.errors = []

    def told(self, served):
        self.granted[served].append(True)

    def run(self, loop, seed):
        try:
            self._run(loop, random.Random(seed))
        except BaseException as error:
            self.errors.append(error)

    def _run(self, loop, dice):
        permits, owned = self.permits, 0
        for turn in range(1500):
            while self.granted[loop]:
                self.granted[loop].popleft()
                owned += 1
            choice = dice.random()
            if choice < 0.5:
                owned += permits.take_or_claim(loop, float(turn)) if choice < 0.35 else permits.take(loop)
            elif choice < 0.9 and owned:
                owned -= 1
                served = permits.give_back(loop)
                if served is not None:
                    self.told(served)
            elif choice < 0.95:
                permits.drop_claim(loop)
            else:
                permits.donor_for(loop, float(turn))
                permits.promise(loop, float(turn), donor_has_waiters=True)
            self.most_in_use = max(self.most_in_use, permits.in_use)
            assert permits.held(loop) >= owned
        permits.drop_claim(loop)
        for served in [permits.give_back(loop) for _ in range(owned)]:
            if served is not None:
                self.told(served)


def test_threads_never_hold_more_permits_than_there_are():
    """Four threads at once: never more than `max_size` in use, no permit lost or made, no claim beside a free one."""
    traffic = Traffic()
    threads = [
        threading.Thread(target=traffic.run, args=(loop, seed), daemon=True) for seed, loop in enumerate(traffic.loops)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not traffic.errors
    assert 1 <= traffic.most_in_use <= traffic.MAX_SIZE
    permits = traffic.permits
    while any(traffic.granted.values()):  # told after its thread had ended
        for loop in traffic.loops:
            while traffic.granted[loop]:
                traffic.granted[loop].popleft()
                served = permits.give_back(loop)
                assert served is None
    assert (permits.in_use, permits.claims) == (0, {})
    assert [permits.take(traffic.loops[0]) for _ in range(4)] == [True, True, True, False]
