"""The permits that all loops of a pool share."""

from __future__ import annotations

import collections
import random
import threading

import pytest

from loopaware_pool._core.permits import Budget

PATIENCE = 0.05
SINCE = 10.0
SOON = SINCE + PATIENCE / 2
LATE = SINCE + PATIENCE


class Loop:
    """A loop's share, with as much to spare as is said."""

    def __init__(self, name, spare=0):
        self.name = name
        self.spare = spare

    def __repr__(self):
        return self.name


A, B, C = (Loop(name) for name in "ABC")


@pytest.fixture
def make():
    """Makes a budget with its permits held as told."""

    def make(max_size, **held):
        budget = Budget(max_size, PATIENCE)
        loops = {name: Loop(name) for name in ("a", "b", "c")}
        for name, count in held.items():
            for _ in range(count):
                assert budget.take(loops[name])
        return budget, *loops.values()

    return make


def test_there_are_as_many_permits_as_the_pool_may_have_connections():
    """Permits are granted up to `max_size`, whoever takes them, and none beyond."""
    budget = Budget(3, PATIENCE)
    assert [budget.take(loop) for loop in (A, B, A, B, A)] == [True, True, True, False, False]
    assert (budget.held(A), budget.held(B), budget.in_use) == (2, 1, 3)


def test_a_permit_given_back_can_be_taken_again(make):
    """With nobody waiting a returned permit is free, and its loop owns one less."""
    budget, a, b, _ = make(1, a=1)
    assert budget.give_back(a) is None
    assert (budget.held(a), budget.in_use) == (0, 0)
    assert budget.take(b)


def test_a_claim_is_filed_only_if_no_permit_is_free(make):
    """Whoever can have a permit gets it at once and leaves no claim behind."""
    budget, a, b, _ = make(2, a=1)
    assert budget.take_or_claim(b, SINCE)
    assert not budget.claims
    assert not budget.take_or_claim(b, SINCE)
    assert list(budget.claims) == [b]
    assert budget.held(a) == 1


def test_a_returned_permit_goes_to_the_claim(make):
    """A permit changes hands under the lock: nobody can take it between its return and the claim's being told."""
    budget, a, b, c = make(1, a=1)
    budget.take_or_claim(b, SINCE)
    assert budget.give_back(a) is b
    assert (budget.held(a), budget.held(b)) == (0, 1)
    assert not budget.claims
    assert not budget.take(c)


def test_the_loop_that_owns_least_is_served_first(make):
    """Among claims, the loop with the fewest permits comes first, however late it came."""
    budget, a, b, c = make(3, a=2, b=1)
    budget.take_or_claim(b, SINCE)
    budget.take_or_claim(c, SINCE + 5)
    assert budget.give_back(a) is c
    assert budget.give_back(a) is b


def test_among_equals_the_first_to_come_is_served_first(make):
    """Loops that own the same number are served in the order in which they claimed."""
    budget, a, b, c = make(2, a=2)
    budget.take_or_claim(c, SINCE)
    budget.take_or_claim(b, SINCE)
    assert [budget.give_back(a), budget.give_back(a)] == [c, b]


def test_a_loop_has_one_claim(make):
    """Claiming again changes neither the place in the queue nor the time it counts from."""
    budget, a, b, c = make(2, a=2)
    budget.take_or_claim(b, SINCE)
    budget.take_or_claim(c, SINCE + 1)
    budget.take_or_claim(b, SINCE + 2)
    assert budget.claims == {b: SINCE, c: SINCE + 1}
    assert [budget.give_back(a), budget.give_back(a)] == [b, c]


def test_a_loop_that_owns_every_permit_claims_none(make):
    """Only its own connections can come free, and those it hands on itself."""
    budget, a, *_ = make(2, a=2)
    assert not budget.take_or_claim(a, SINCE)
    assert not budget.claims


def test_a_loop_may_claim_and_give_back_at_once(make):
    """A loop that gives a permit back while it claims one may get it again: it is told as any other."""
    budget, a, b, _ = make(2, a=1, b=1)
    budget.take_or_claim(a, SINCE)
    assert budget.give_back(a) is a
    assert (budget.held(a), budget.held(b)) == (1, 1)


def test_a_dropped_claim_is_not_served(make):
    """When nobody waits any more, the permit is free for whoever comes."""
    budget, a, b, c = make(1, a=1)
    budget.take_or_claim(b, SINCE)
    budget.drop_claim(b)
    assert not budget.claims
    assert budget.give_back(a) is None
    assert budget.take(c)


def test_dropping_a_claim_that_was_never_filed_does_nothing(make):
    """`drop_claim` may be called by anybody at any time."""
    budget, a, b, _ = make(1, a=1)
    budget.drop_claim(b)
    budget.drop_claim(a)
    assert budget.held(a) == 1


def test_a_loop_that_is_gone_leaves_its_permits_to_the_others(make):
    """`forget` returns every permit of a loop and serves as many claims with them, the poorest first."""
    budget, a, b, c = make(4, a=3, b=1)
    budget.take_or_claim(b, SINCE)
    budget.take_or_claim(c, SINCE + 1)
    assert budget.forget(a) == [c, b]
    assert (budget.held(a), budget.held(b), budget.held(c)) == (0, 2, 1)
    assert budget.take(b)
    assert not budget.take(b)


def test_a_loop_that_is_gone_claims_nothing(make):
    """`forget` drops the claim too: nobody would pick its permit up."""
    budget, a, b, _ = make(1, a=1)
    budget.take_or_claim(b, SINCE)
    assert budget.forget(b) == []
    assert budget.give_back(a) is None


def test_forgetting_twice_returns_nothing_twice(make):
    """A loop's end may be noticed more than once, and its last permits come back late: none is counted twice."""
    budget, a, b, _ = make(2, a=1, b=1)
    assert budget.forget(a) == []
    assert budget.forget(a) == []
    assert budget.give_back(a) is None
    assert (budget.held(a), budget.in_use) == (0, 1)
    assert budget.take(b)
    assert not budget.take(b)


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
    budget, a, b, _ = make(sum(held.values()), **held)
    budget.take_or_claim(b, SINCE)
    assert budget.should_yield(a, now, donor_has_waiters=donor_has_waiters) is yields


def test_nobody_yields_to_himself(make):
    """A loop's own claim is no reason to close its own connection."""
    budget, a, *_ = make(2, a=1, b=1)
    budget.take_or_claim(a, SINCE)
    assert not budget.should_yield(a, LATE, donor_has_waiters=False)


def test_any_claim_that_deserves_it_is_a_reason_to_yield(make):
    """Not only the first claim counts: a later one may be of a loop that has nothing."""
    budget, a, b, c = make(3, a=2, b=1)
    budget.take_or_claim(b, SINCE)
    assert not budget.should_yield(a, SOON, donor_has_waiters=False)
    budget.take_or_claim(c, SOON)
    assert budget.should_yield(a, SOON, donor_has_waiters=False)


def test_the_donor_is_the_loop_with_most_to_spare(make):
    """A claim asks the loop with the most idle connections."""
    budget, a, b, c = make(5, a=2, b=3)
    a.spare, b.spare = 1, 2
    budget.take_or_claim(c, SINCE)
    assert budget.donor_for(c, SOON) is b
    a.spare = 3
    assert budget.donor_for(c, SOON) is a


def test_a_loop_without_a_claim_has_no_donor(make):
    """Only who waits for a permit may ask another loop for one."""
    budget, a, b, _ = make(1, a=1)
    a.spare = 1
    assert budget.donor_for(b, LATE) is None


def test_a_loop_with_nothing_to_spare_is_no_donor(make):
    """Loops that use what they have are not asked."""
    budget, _, b, _ = make(1, a=1)
    budget.take_or_claim(b, SINCE)
    assert budget.donor_for(b, LATE) is None


def test_a_loop_that_has_connections_asks_only_when_it_is_overdue(make):
    """Patience holds for idle connections as well, unless the claimant has none at all."""
    budget, a, b, _ = make(2, a=1, b=1)
    a.spare = 1
    budget.take_or_claim(b, SINCE)
    assert budget.donor_for(b, SOON) is None
    assert budget.donor_for(b, LATE) is a


def test_nobody_is_his_own_donor(make):
    """A claim is never answered by its own loop's idle connections."""
    budget, a, *_ = make(2, a=1, b=1)
    a.spare = 1
    budget.take_or_claim(a, SINCE)
    assert budget.donor_for(a, LATE) is None


def test_a_loop_that_has_given_everything_back_is_no_donor(make):
    """Whatever it says it has to spare: no permit could come of it."""
    budget, a, b, c = make(1, a=1)
    budget.give_back(a)
    assert budget.take(b)
    a.spare = 1
    budget.take_or_claim(c, SINCE)
    assert budget.donor_for(c, LATE) is None


def test_a_loop_without_a_permit_yields_none(make):
    """It has none to give, however long another waits for a second one."""
    budget, a, b, c = make(2, b=1, c=1)
    budget.take_or_claim(b, SINCE)
    assert not budget.should_yield(a, LATE, donor_has_waiters=True)
    assert budget.held(c) == 1


def test_more_permits_go_to_those_who_wait(make):
    """At once, the poorest first, each to be told; what is left is free."""
    budget, a, b, c = make(2, a=1, b=1)
    budget.take_or_claim(b, SINCE)
    budget.take_or_claim(c, SINCE + 1)
    assert budget.resize(5) == [c, b]
    assert (budget.max_size, budget.in_use, budget.free, budget.claims) == (5, 4, 1, {})
    assert budget.take(a)


def test_with_fewer_permits_none_is_free_until_enough_are_back(make):
    """Nobody has a permit taken away."""
    budget, a, b, _ = make(3, a=3)
    assert budget.resize(2) == []
    assert (budget.held(a), budget.free) == (3, 0)
    assert not budget.take_or_claim(b, SINCE)
    assert budget.give_back(a) is None
    assert budget.give_back(a) is b


class Traffic:
    """Threads that take, claim, give back and forget at random, and note what they own by their own account."""

    MAX_SIZE = 3

    def __init__(self):
        self.budget = Budget(self.MAX_SIZE, 0.0)
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
        budget, owned = self.budget, 0
        for turn in range(1500):
            while self.granted[loop]:
                self.granted[loop].popleft()
                owned += 1
            choice = dice.random()
            if choice < 0.5:
                owned += budget.take_or_claim(loop, float(turn)) if choice < 0.35 else budget.take(loop)
            elif choice < 0.9 and owned:
                owned -= 1
                served = budget.give_back(loop)
                if served is not None:
                    self.told(served)
            elif choice < 0.95:
                budget.drop_claim(loop)
            else:
                budget.donor_for(loop, float(turn))
                budget.should_yield(loop, float(turn), donor_has_waiters=True)
            self.most_in_use = max(self.most_in_use, budget.in_use)
            assert budget.held(loop) >= owned
        budget.drop_claim(loop)
        for served in [budget.give_back(loop) for _ in range(owned)]:
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
    budget = traffic.budget
    while any(traffic.granted.values()):  # told after its thread had ended
        for loop in traffic.loops:
            while traffic.granted[loop]:
                traffic.granted[loop].popleft()
                served = budget.give_back(loop)
                assert served is None
    assert (budget.in_use, budget.claims) == (0, {})
    assert [budget.take(traffic.loops[0]) for _ in range(4)] == [True, True, True, False]
