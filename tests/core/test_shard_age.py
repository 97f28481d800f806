"""A shard closes connections that are old, or that have been idle for long."""

from __future__ import annotations

import pytest

from fakes import NEVER
from loopaware_pool._core.config import IdleOrder
from loopaware_pool._core.slot import SlotState
from shard_stories import BROKEN, PATIENCE, RESET_SENT, give_back, kill


class TestAge:
    def test_an_expired_connection_is_replaced_when_it_is_idle(self, make):
        """Those of an earlier generation are closed when they are next looked at, and not lent."""
        pool, shard = make(max_size=2)
        old, lent = pool.with_idle(shard, 2)
        assert shard.take(pool.now) is lent
        pool.shared.generation += 1
        assert shard.take(pool.now) is None
        assert shard.effects.closing == [old]
        give_back(pool, shard, lent)
        assert shard.effects.closing == [old, lent]
        assert shard.idle == []

    def test_a_connection_opened_after_the_expiry_is_kept(self, make):
        """Expiry is no state of the pool: it concerns what was open then."""
        pool, shard = make()
        pool.shared.generation += 1
        (slot,) = pool.with_idle(shard, 1)
        assert shard.take(pool.now) is slot

    def test_an_expiry_outdates_what_is_open(self, make):
        """And nothing that is opened later."""
        pool, shard = make()
        (old,) = pool.with_idle(shard, 1)
        assert not shard.is_outdated(old)
        pool.shared.generation += 1
        (new,) = pool.with_idle(shard, 1)
        assert (shard.is_outdated(old), shard.is_outdated(new)) == (True, False)

    def test_a_connect_under_way_at_the_expiry_is_too_old(self, make):
        """It may have logged in with what was changed."""
        pool, shard = make(max_size=2)
        shard.open_one(pool.now)
        pool.shared.generation += 1
        pool.connect(shard)
        assert shard.idle == []
        assert len(shard.effects.closing) == 1

    @pytest.mark.parametrize(("draw", "lifetime"), [(0.0, 100.0), (0.5, 90.0), (1.0, 80.0)])
    def test_a_lifetime_is_shortened_at_random(self, make, draw, lifetime):
        """By up to `lifetime_jitter` of it, so that connections opened together do not end together."""
        pool, shard = make(max_lifetime=100.0, lifetime_jitter=0.2)
        pool.draw = draw
        (slot,) = pool.with_idle(shard, 1)
        assert slot.expires_at == pytest.approx(pool.now + lifetime)

    def test_a_connection_at_the_end_of_its_life_is_not_lent(self, make):
        """It is up when the lifetime is, to the moment."""
        pool, shard = make(max_lifetime=100.0, lifetime_jitter=0.0)
        (slot,) = pool.with_idle(shard, 1)
        pool.now = slot.expires_at - 0.001
        assert shard.take(pool.now) is slot
        give_back(pool, shard, slot)
        pool.now = slot.expires_at
        assert shard.take(pool.now) is None
        assert shard.effects.closing == [slot]

    def test_a_lease_may_outlast_the_lifetime(self, make):
        """It ends with the lease then, not in the caller's hands."""
        pool, shard = make(max_lifetime=10.0)
        (slot,) = pool.lend(shard, 1)
        pool.pass_time(100.0)
        assert slot.state is SlotState.LENT
        give_back(pool, shard, slot)
        assert shard.effects.closing == [slot]
        pool.closed(shard)
        assert shard.effects.reasons == ["max_lifetime"]

    def test_an_idle_connection_is_closed_at_the_end_of_its_life(self, make):
        """Although nobody comes by: the timer is set for it."""
        pool, shard = make(max_lifetime=100.0, lifetime_jitter=0.0)
        pool.with_idle(shard, 1)
        while shard.effects.wake < NEVER:
            pool.pass_time(shard.effects.wake - pool.now)
        assert pool.now == 200.0
        assert len(shard.effects.closing) == 1

    def test_connections_idle_for_too_long_are_closed_down_to_the_floor(self, make):
        """The coldest go, and `min_size` stay."""
        pool, shard = make(min_size=2, max_idle=10.0)
        slots = pool.with_idle(shard, 4)
        assert shard.effects.wake == pytest.approx(pool.now + 10.0)
        pool.pass_time(10.0)
        assert shard.effects.closing == slots[:2]
        assert shard.idle == slots[2:]

    def test_the_floor_is_the_whole_pools(self, make):
        """Connections on other loops count: with `min_size` of them there, none need stay here."""
        pool, shard = make(min_size=2, max_idle=10.0)
        other = pool.shard()
        pool.with_idle(shard, 2)
        pool.lend(other, 2)
        pool.pass_time(10.0)
        assert len(shard.effects.closing) == 2

    def test_without_a_limit_nothing_is_idle_for_too_long(self, make):
        """0 turns `max_idle` off."""
        pool, shard = make(max_idle=0.0)
        slots = pool.with_idle(shard, 3)
        for _ in range(10):
            pool.pass_time(3600.0)
        assert shard.idle == slots

    def test_a_connection_of_the_shortest_life_serves_who_waits_for_it(self, make):
        """It is too old when it comes back, not when it is opened."""
        pool, shard = make(max_lifetime=1e-9)
        waiter = pool.wait(shard)
        pool.connect(shard)
        slot = pool.claim(shard, waiter)
        pool.now += 1
        give_back(pool, shard, slot)
        assert shard.effects.closing == [slot]

    def test_a_floor_of_the_shortest_lives_is_replaced_now_and_then(self, make):
        """Not as fast as it connects."""
        pool, shard = make(min_size=1, max_lifetime=1e-9)
        (slot,) = pool.with_idle(shard, 1)
        pool.pass_time(0.05)
        assert shard.idle == [slot]
        pool.pass_time(PATIENCE)
        assert shard.effects.closing == [slot]

    def test_the_shortest_idle_time_is_no_period(self, make):
        """Where idle connections go one each `max_idle`, as psycopg_pool's, a shorter one would keep the timer busy."""
        pool, shard = make(min_size=1, max_idle=1e-9, idle_order=IdleOrder.FIFO)
        slots = pool.with_idle(shard, 3)
        pool.pass_time(0.001)
        assert shard.effects.closing == slots[:2]
        assert shard.effects.wake >= pool.now + 0.5

    def test_use_makes_a_connection_young_again(self, make):
        """Idle time counts from the last release."""
        pool, shard = make(max_idle=10.0)
        (slot,) = pool.with_idle(shard, 1)
        pool.pass_time(9.0)
        give_back(pool, shard, shard.take(pool.now))
        pool.pass_time(9.0)
        assert shard.idle == [slot]
        pool.pass_time(1.0)
        assert shard.effects.closing == [slot]

    def test_a_ping_does_not(self, make):
        """Else a pool whose `keepalive` is less than its `max_idle` would never shrink."""
        pool, shard = make(max_idle=10.0, keepalive=4.0)
        (slot,) = pool.with_idle(shard, 1)
        for _ in range(2):
            pool.pass_time(4.0)
            shard.serviced(shard.effects.pinging.pop(), pool.now)
            assert shard.idle == [slot]
        pool.pass_time(2.0)
        assert (shard.effects.pinging, shard.effects.closing) == ([], [slot])

    def test_neither_does_one_because_of_another_connection(self, make):
        """As long as one breaks now and then, the others would never be closed."""
        pool, shard = make(max_idle=10.0)
        (lent,) = pool.lend(shard, 1)
        (slot,) = pool.with_idle(shard, 1)
        pool.pass_time(9.0)
        give_back(pool, shard, lent, BROKEN)
        shard.serviced(shard.effects.pinging.pop(), pool.now)
        pool.pass_time(1.0)
        assert shard.effects.closing == [slot]

    def test_an_idle_connection_is_pinged(self, make):
        """After `keepalive` seconds, out of reach of callers, and again after as long; what fails is closed."""
        pool, shard = make(keepalive=5.0)
        (slot,) = pool.with_idle(shard, 1)
        for _ in range(2):
            pool.pass_time(5.0)
            assert shard.effects.pinging == [slot]
            assert shard.take(pool.now) is None
            shard.effects.pinging.clear()
            shard.serviced(slot, pool.now)
            assert shard.idle == [slot]
        pool.pass_time(5.0)
        shard.discard(slot, "keepalive failed")
        assert shard.effects.reasons == ["keepalive failed"]
        assert not shard.slots

    def test_a_reset_that_is_never_answered_ends_the_connection(self, make):
        """After 30 s, without a goodbye that would go unanswered as well."""
        pool, shard = make()
        answered, unanswered = pool.with_idle(shard, 2)
        unanswered.session.is_settled = False
        pool.pass_time(29.0)
        assert shard.idle == [answered, unanswered]
        pool.pass_time(1.0)
        assert shard.idle == [answered]
        assert shard.effects.reasons == ["reset not answered"]

    def test_the_sweep_drops_what_has_died(self, make):
        """Not only a lease notices the dead."""
        pool, shard = make()
        alive, dead = pool.with_idle(shard, 2)
        kill(dead)
        shard.housekeeper.sweep(pool.now)
        assert shard.idle == [alive]
        assert shard.counters.found_dead == 1

    def test_a_connection_that_has_expired_says_so(self, make):
        """Idle or lent, and although its lifetime is not over."""
        pool, shard = make(max_size=2, max_lifetime=100.0)
        (lent,) = pool.lend(shard, 1)
        pool.with_idle(shard, 1)
        pool.shared.generation += 1
        give_back(pool, shard, lent)
        shard.housekeeper.sweep(pool.now)
        for _ in range(2):
            pool.closed(shard)
        assert shard.effects.reasons == ["expired", "expired"]

    def test_a_lease_that_ends_with_the_lifetime_is_the_last(self, make):
        """To the moment; no answer to a reset is waited for."""
        pool, shard = make(max_lifetime=100.0, lifetime_jitter=0.0)
        (slot,) = pool.lend(shard, 1)
        pool.now = slot.expires_at
        give_back(pool, shard, slot, RESET_SENT)
        assert shard.effects.closing == [slot]

    def test_a_pool_may_keep_what_is_too_old_while_it_is_idle(self, make):
        """It is lent once more, and closed when it comes back."""
        pool, shard = make(max_lifetime=10.0, lends_expired=True)
        (slot,) = pool.with_idle(shard, 1)
        pool.now += 100.0
        shard.housekeeper.sweep(pool.now)
        assert shard.idle == [slot]
        assert shard.take(pool.now) is slot
        give_back(pool, shard, slot)
        assert shard.effects.closing == [slot]

    def test_another_limit_is_in_effect_for_what_is_idle(self, make):
        """And for what becomes idle afterwards."""
        pool, shard = make(max_idle=100.0)
        old, other = pool.with_idle(shard, 2)
        pool.pass_time(20.0)
        lent = shard.take(pool.now)
        pool.reconfigure(max_idle=10.0)
        assert shard.idle == [old]
        pool.pass_time(0.0)
        assert (lent, shard.idle, shard.effects.reasons) == (other, [], [])
        assert shard.effects.closing == [old]
        give_back(pool, shard, lent)
        assert shard.effects.wake == pool.now + 10.0

    def test_fewer_may_be_idle_from_now_on(self, make):
        """Those that have been idle for longest are closed at once."""
        pool, shard = make()
        slots = pool.with_idle(shard, 3)
        pool.reconfigure(max_idle_size=1)
        assert (shard.idle, shard.effects.closing) == (slots[2:], slots[:2])
        pool.reconfigure(max_idle_size=2)
        assert shard.idle == slots[2:]

    @pytest.mark.parametrize(("limit", "reason"), [("max_lifetime", "max_lifetime"), ("max_idle", "idle")])
    def test_what_time_ends_says_which_limit_it_was(self, make, limit, reason):
        """Its session is sound, so it goes politely."""
        pool, shard = make(lifetime_jitter=0.0, **{limit: 10.0})
        (slot,) = pool.with_idle(shard, 1)
        pool.pass_time(10.0)
        assert shard.effects.closing == [slot]
        pool.closed(shard)
        assert shard.effects.reasons == [reason]

    @pytest.mark.parametrize("limit", ["keepalive", "max_idle", "max_lifetime"])
    def test_a_look_before_its_time_leaves_an_idle_connection_alone(self, make, limit):
        """The timer is set for when its time has come."""
        pool, shard = make(lifetime_jitter=0.0, **{limit: 10.0})
        (slot,) = pool.with_idle(shard, 1)
        pool.now += 4.0
        shard.housekeeper.sweep(pool.now)
        assert (shard.idle, shard.effects.pinging, shard.effects.wake) == ([slot], [], slot.since + 10.0)

    def test_a_look_before_an_answer_is_overdue_leaves_the_connection_alone(self, make):
        """The timer is set for when it is."""
        pool, shard = make()
        (slot,) = pool.with_idle(shard, 1)
        slot.session.is_settled = False
        pool.now += 4.0
        shard.housekeeper.sweep(pool.now)
        assert (shard.idle, shard.effects.wake) == ([slot], slot.since + 30.0)

    def test_all_idle_connections_can_be_pinged_at_once(self, make):
        """They are out of reach of callers until each has answered; what is lent is left alone."""
        pool, shard = make(max_size=3)
        (lent,) = pool.lend(shard, 1)
        slots = pool.with_idle(shard, 2)
        assert shard.housekeeper.ping_all(pool.now) == slots
        assert (shard.effects.pinging, shard.idle) == (slots, [])
        assert lent.state is SlotState.LENT


class TestShrinking:
    """Of a pool that uses its connections in turn: one goes each `max_idle`, if some were always to spare."""

    @pytest.fixture
    def three(self, make):
        """Three idle connections where one is enough, at the begin of a period."""
        pool, shard = make(min_size=1, max_idle=10.0, idle_order=IdleOrder.FIFO)
        slots = pool.with_idle(shard, 3)
        shard.housekeeper.sweep(pool.now)
        return pool, shard, slots

    def test_one_goes_each_period_down_to_the_floor(self, three):
        """The one that was idle for longest, politely; the timer is set for the end of each period."""
        pool, shard, slots = three
        closed = []
        for _ in range(3):
            assert shard.effects.wake == pool.now + 10.0
            pool.pass_time(10.0)
            closed.append(len(shard.effects.closing))
        assert closed == [1, 2, 2]
        assert shard.effects.closing == slots[:2]
        pool.closed(shard)
        assert shard.effects.reasons == ["idle"]

    @pytest.mark.parametrize(("used", "closed"), [(2, 1), (3, 0)])
    def test_none_goes_if_all_were_needed_at_once(self, three, used, closed):
        """If only for a moment; the next period is judged by itself."""
        pool, shard, _ = three
        for slot in [shard.take(pool.now) for _ in range(used)]:
            give_back(pool, shard, slot)
        pool.pass_time(10.0)
        assert len(shard.effects.closing) == closed
        pool.pass_time(10.0)
        assert len(shard.effects.closing) == closed + 1

    def test_a_look_in_between_closes_nothing(self, three):
        """The period goes on."""
        pool, shard, slots = three
        pool.now += 4.0
        shard.housekeeper.sweep(pool.now)
        assert (shard.idle, shard.effects.wake) == (slots, pool.now + 6.0)

    def test_the_period_that_has_begun_ends_by_the_limit_of_now(self, three):
        """Which may be over at once. Another setting changes nothing; and the timer is set, but not for long after."""
        pool, shard, slots = three
        pool.pass_time(4.0)
        pool.reconfigure(max_waiting=3)
        assert shard.effects.wake == pool.now
        pool.pass_time(0.0)
        assert shard.effects.wake == pool.now + 6.0
        pool.reconfigure(max_idle=5.0)
        pool.pass_time(0.0)
        assert (shard.idle, shard.effects.wake) == (slots, pool.now + 1.0)
        pool.reconfigure(max_idle=2.0)
        pool.pass_time(0.0)
        assert shard.effects.closing == slots[:1]
        pool.reconfigure(max_idle=0.0)
        pool.pass_time(100.0)
        assert shard.effects.closing == slots[:1]

    def test_a_spare_connection_that_has_died_is_not_closed_once_more(self, make):
        """It was to spare for all of the period, but there is none now."""
        pool, shard = make(max_idle=10.0, idle_order=IdleOrder.FIFO)
        pool.with_idle(shard, 2)
        lent = shard.take(pool.now)
        shard.housekeeper.sweep(pool.now)
        kill(*shard.idle)
        pool.pass_time(10.0)
        assert (shard.idle, shard.counters.found_dead) == ([], 1)
        assert lent.state is SlotState.LENT

    def test_a_pool_without_connections_sets_no_timer(self, make):
        """There is nothing to shrink."""
        pool, shard = make(max_idle=10.0, idle_order=IdleOrder.FIFO)
        shard.housekeeper.sweep(pool.now)
        assert shard.effects.wake == NEVER

    def test_the_shortest_period_is_ten_milliseconds(self, make):
        """Of those to spare, one goes in it."""
        pool, shard = make(max_idle=0.01, idle_order=IdleOrder.FIFO)
        slots = pool.with_idle(shard, 3)
        shard.housekeeper.sweep(pool.now)
        pool.pass_time(0.01)
        assert shard.effects.closing == slots[:1]
