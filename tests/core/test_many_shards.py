"""A hundred loops share a pool's permits: what each of them looks at, is promised and waits for."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from fakes import FakePool
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.permits import Permits
from loopaware_pool._core.recent import LONGEST_REUSE_SECONDS, REUSE_FACTOR, Recent
from loopaware_pool._core.shard import Shard
from loopaware_pool._core.slot import SlotState
from loopaware_pool._core.state import SharedState
from shard_stories import PATIENCE, give_back

FEW, MANY = 4, 100


def busy_pool(loops, **options):
    """A pool with a connection for each loop, all lent, and three callers that wait on each, for long enough."""
    pool = FakePool(max_size=loops, patience=PATIENCE, **options)
    shards = [pool.shard() for _ in range(loops)]
    lent = {shard: pool.lend(shard, 1)[0] for shard in shards}
    waiting = {shard: [pool.wait(shard) for _ in range(3)] for shard in shards}
    for _ in range(20):
        pool.pass_time(PATIENCE)
        pool.deliver()
    assert len(pool.permits.claims) == loops
    return pool, lent, waiting


def looks_per_lease(monkeypatch, loops):
    """How often one of so many busy loops looks at a claim or at another loop, for each of its leases."""
    pool, lent, waiting = busy_pool(loops)
    looks = Counter()
    ripe_at, spare = Permits._ripe_at, Shard.spare.fget

    def counting_ripe_at(*args):
        looks["claims"] += 1
        return ripe_at(*args)

    def counting_spare(shard):
        looks["loops"] += 1
        return spare(shard)

    shard, slot = next(iter(lent.items()))
    leases = 200
    with monkeypatch.context() as patch:
        patch.setattr(Permits, "_ripe_at", counting_ripe_at)
        patch.setattr(Shard, "spare", property(counting_spare))
        for _ in range(leases):
            waiting[shard].append(pool.wait(shard))
            pool.now += PATIENCE / leases
            give_back(pool, shard, slot)
            waiter = waiting[shard].pop(0)
            assert waiter.result is slot
            pool.claim(shard, waiter)
    return sum(looks.values()) / leases


def test_a_lease_costs_the_same_with_a_hundred_loops_as_with_four(monkeypatch):
    """Where all loops wait for permits, a loop that queues or hands on a connection looks at no other loop."""
    assert looks_per_lease(monkeypatch, FEW) <= 1
    assert looks_per_lease(monkeypatch, MANY) <= 1


def test_no_lock_is_taken_where_nothing_has_changed():
    """A loop that waits has filed its claim, and one that is asked knows the answer: neither takes the lock again."""
    pool, lent, waiting = busy_pool(FEW)
    shard, slot = next(iter(lent.items()))
    give_back(pool, shard, slot)
    pool.claim(shard, waiting[shard].pop(0))

    class NoLock:
        def __enter__(self):
            raise AssertionError("the lock was taken")

        def __exit__(self, *exc):
            pass

    pool.permits._lock = NoLock()
    for _ in range(10):
        waiting[shard].append(pool.wait(shard))
        give_back(pool, shard, slot)
        pool.claim(shard, waiting[shard].pop(0))


def test_looks_for_idle_connections_become_rare():
    """While all loops are busy, a loop that waits looks for their idle connections less and less often."""
    pool = FakePool(max_size=2, patience=PATIENCE)
    here, there = pool.shard(), pool.shard()
    pool.lend(here, 1)
    pool.lend(there, 1)
    pool.wait(here)
    looks = []
    donor_for = pool.permits.donor_for
    pool.permits.donor_for = lambda *args: looks.append(pool.now) or donor_for(*args)
    for _ in range(1000):
        pool.pass_time(0.01)
    assert 10_000 / 400 <= len(looks) <= 10_000 / 400 + 6
    assert max(later - earlier for earlier, later in itertools.pairwise(looks)) <= 0.42


def test_a_claim_is_promised_one_connection_at_a_time():
    """Many loops return connections at once, and one waits: only one of them closes one."""
    pool = FakePool(max_size=10, patience=PATIENCE)
    rich = [pool.shard() for _ in range(5)]
    lent = [(shard, pool.lend(shard, 2)) for shard in rich]
    for shard in rich:
        for _ in range(4):
            pool.wait(shard)
    poor = pool.shard()
    waiter = pool.wait(poor)
    pool.now += PATIENCE
    for shard, slots in lent:
        for slot in slots:
            give_back(pool, shard, slot)
    closing = [shard for shard in rich if shard.effects.closing]
    assert [len(shard.effects.closing) for shard in closing] == [1]
    pool.closed(closing[0])
    pool.deliver()
    pool.connect(poor)
    assert waiter.result is not None


def test_a_promise_lapses():
    """A connection whose close takes longer than patience may have been for another loop: the claim gets a second."""
    pool = FakePool(max_size=2, patience=PATIENCE)
    here, there = pool.shard(), pool.shard()
    first, second = pool.lend(here, 2)
    mine = [pool.wait(here) for _ in range(3)]
    pool.wait(there)
    pool.now += PATIENCE
    give_back(pool, here, first)
    give_back(pool, here, second)
    assert here.effects.closing == [first]
    pool.claim(here, mine[0])
    pool.now += PATIENCE
    give_back(pool, here, second)
    assert here.effects.closing == [first, second]


class Loop:
    """A loop's share, with nothing to spare."""

    spare = 0


def deserves(permits, donor, now, has_waiters):
    """Whether any claim deserves a connection of *donor*, by looking at all of them."""
    for claimant, since in permits.claims.items():
        owned = permits.held(claimant)
        is_overdue = now - since >= PATIENCE
        is_promised = now - permits._promised.get(claimant, -math.inf) < PATIENCE
        if claimant is donor or is_promised:
            continue
        if has_waiters and is_overdue and (owned == 0 or permits.held(donor) > owned + 1):
            return True
        if not has_waiters and (owned == 0 or is_overdue):
            return True
    return False


@pytest.mark.parametrize("seed", range(100))
def test_what_is_remembered_changes_no_answer(seed):
    """A claim that deserves a connection gets it: a short way to say no never says it to such a claim."""
    dice = random.Random(seed)
    permits = Permits(SharedState(PoolConfig(min_size=0, init_size=0, max_size=6, patience=PATIENCE)))
    loops = [Loop() for _ in range(5)]
    now = 0.0
    for _ in range(300):
        now += dice.choice((0.0, PATIENCE / 4, PATIENCE))
        loop = dice.choice(loops)
        choice = dice.random()
        if choice < 0.4:
            permits.take_or_claim(loop, now - dice.choice((0.0, PATIENCE)))
        elif choice < 0.6 and permits.held(loop):
            permits.give_back(loop)
        elif choice < 0.7:
            permits.drop_claim(loop)
        elif choice < 0.72:
            permits.forget(loop)
        elif permits.held(loop):
            has_waiters = dice.random() < 0.7
            expected = deserves(permits, loop, now, has_waiters)
            assert permits.promise(loop, now, donor_has_waiters=has_waiters) is expected
        assert permits.in_use == sum(permits.held(loop) for loop in loops)
        assert set(permits._promised) <= set(permits.claims)


def test_no_loop_waits_for_longer_than_its_turn():
    """
    A hundred loops that always wait share twenty connections. A connection stays for patience, and for the lease under
    way. So after five turns at the latest, each of which begins with a connect, it is a loop's turn again.
    """
    connections, lease_seconds, connect_seconds, step = 20, 0.01, 0.01, 0.005
    pool = FakePool(max_size=connections, patience=PATIENCE)
    shards = [pool.shard() for _ in range(MANY)]
    waiting = {shard: [pool.wait(shard) for _ in range(3)] for shard in shards}
    last_served = dict.fromkeys(shards, pool.now)
    longest = dict.fromkeys(shards, 0.0)
    began = {}
    while pool.now < 110.0:
        pool.pass_time(step)
        pool.deliver()
        for shard in shards:
            for slot in [slot for slot in shard.effects.opening if pool.now - slot.opened_at >= connect_seconds]:
                pool.connect(shard, slot)
            while shard.effects.closing:
                pool.closed(shard)
            for waiter in [waiter for waiter in waiting[shard] if waiter.done()]:
                waiting[shard].remove(waiter)
                began[pool.claim(shard, waiter)] = (shard, pool.now)
                longest[shard] = max(longest[shard], pool.now - last_served[shard])
                last_served[shard] = pool.now
                waiting[shard].append(pool.wait(shard))
        for slot, (shard, since) in list(began.items()):
            if pool.now - since >= lease_seconds and slot.state is SlotState.LENT:
                del began[slot]
                give_back(pool, shard, slot)
    # Five things happen in a turn (a close, a grant, a connect, a claim, a return), each up to a step late here.
    turn_seconds = PATIENCE + lease_seconds + connect_seconds + 5 * step
    assert max(longest.values()) <= MANY / connections * turn_seconds
    assert min(longest.values()) > 0


def test_a_loop_that_has_become_poorer_is_looked_at_again():
    """It has given a permit back that a poorer loop got: what was remembered of its claim is not true any more."""
    permits = Permits(SharedState(PoolConfig(min_size=0, init_size=0, max_size=6, patience=PATIENCE)))
    a, b, c = Loop(), Loop(), Loop()
    assert all(permits.take(loop) for loop in (a, a, a, b, b, c))
    permits.take_or_claim(c, 0.0)
    permits.take_or_claim(b, 0.0)
    assert [permits.promise(a, 1.0, donor_has_waiters=True) for _ in range(2)] == [True, False]
    assert permits.give_back(b) is c
    assert permits.promise(a, 1.0, donor_has_waiters=True)


class Clocks:
    """A clock, a stopwatch, and something that takes long to count."""

    def __init__(self, cost):
        self.now = self.worked = 0.0
        self.cost = cost
        self.counted = 0
        self.recent = Recent(self.count, clock=lambda: self.now, stopwatch=lambda: self.worked)

    def count(self):
        self.counted += 1
        self.now += self.cost
        self.worked += self.cost
        return self.counted


def test_what_was_counted_is_told_again_for_a_while():
    """So much longer than it took to count, and then counted anew."""
    clocks = Clocks(cost=0.001)
    assert [clocks.recent.get() for _ in range(100)] == [1] * 100
    clocks.now += REUSE_FACTOR * clocks.cost - 0.0001
    assert clocks.recent.get() == 1
    clocks.now += 0.0002
    assert clocks.recent.get() == 2


def test_nothing_is_told_that_is_old():
    """However long it took to count."""
    clocks = Clocks(cost=10.0)
    clocks.recent.get()
    clocks.now += LONGEST_REUSE_SECONDS
    assert clocks.recent.get() == 2
