"""A shard lends: an idle connection, none that is dead, and what becomes of leases that are long or dropped."""

from __future__ import annotations

import pytest

from fakes import FakeFuture
from loopaware_pool._core.config import IdleOrder
from loopaware_pool._core.slot import SlotState
from loopaware_pool.driver import Liveness, ReturnCheck
from loopaware_pool.stats import BUCKETS_SECONDS
from shard_stories import BROKEN, PATIENCE, READY, RESET, WORN_OUT, give_back, kill

BOUNDS = (*BUCKETS_SECONDS, "longer")


class TestLending:
    def test_the_warmest_connection_is_lent_first(self, make):
        """Idle connections are a stack, so that those not needed grow old."""
        pool, shard = make()
        cold, warm = pool.with_idle(shard, 2)
        assert shard.take(pool.now) is warm
        assert shard.take(pool.now) is cold
        assert shard.take(pool.now) is None

    def test_what_came_back_last_is_lent_first(self, make):
        """A connection that is released goes on top of the stack."""
        pool, shard = make()
        first, second = pool.lend(shard, 2)
        give_back(pool, shard, second)
        give_back(pool, shard, first)
        assert shard.idle == [second, first]
        assert shard.take(pool.now) is first

    def test_a_lease_notes_when_it_began(self, make):
        """`since` is the begin of the lease, then that of the idle time."""
        pool, shard = make()
        (slot,) = pool.with_idle(shard, 1)
        pool.now += 5
        shard.take(pool.now)
        assert slot.since == pool.now
        pool.now += 5
        give_back(pool, shard, slot)
        assert slot.since == pool.now

    def test_waiters_are_served_in_the_order_in_which_they_came(self, make):
        """First come, first served, each by the connection that comes free next."""
        pool, shard = make(max_size=2)
        slots = pool.lend(shard, 2)
        waiters = [pool.wait(shard) for _ in range(3)]
        give_back(pool, shard, slots[1])
        give_back(pool, shard, slots[0])
        assert [waiter.result for waiter in waiters] == [slots[1], slots[0], None]

    def test_a_connection_is_put_into_the_waiters_hands(self, make):
        """It is never idle in between, so a running task cannot take it before the waiter wakes."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        waiter = pool.wait(shard)
        give_back(pool, shard, slot)
        assert slot.state is SlotState.RESERVED
        assert shard.idle == []
        assert shard.take(pool.now) is None
        assert pool.claim(shard, waiter).state is SlotState.LENT

    def test_nobody_passes_those_who_wait(self, make):
        """While somebody waits, `take` gives nothing, even at the moment when a connection has come free."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        waiters = [pool.wait(shard) for _ in range(2)]
        give_back(pool, shard, slot)
        assert shard.take(pool.now) is None
        give_back(pool, shard, pool.claim(shard, waiters[0]))
        assert waiters[1].result is slot

    def test_an_abandoned_connection_goes_to_the_next(self, make):
        """Who is cancelled when it has just been served passes the connection on."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        first, second = pool.wait(shard), pool.wait(shard)
        give_back(pool, shard, slot)
        shard.abandon(first.result, pool.now)
        assert second.result is slot
        shard.abandon(second.result, pool.now)
        assert shard.idle == [slot]

    def test_a_connection_lost_meanwhile_is_not_abandoned_twice(self, make):
        """Abandoning what has died in one's hands does nothing: it is on its way out already."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        waiter = pool.wait(shard)
        give_back(pool, shard, slot)
        shard.discard(slot, "lost")
        shard.abandon(waiter.result, pool.now)
        assert slot.state is SlotState.GONE
        assert not shard.slots
        assert pool.permits.in_use == 0

    def test_a_caller_that_leaves_is_not_served(self, make):
        """A caller that has left the queue gets nothing, and those behind it move up."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        first, second = pool.wait(shard), pool.wait(shard)
        shard.dequeue(first)
        give_back(pool, shard, slot)
        assert not first.done()
        assert second.result is slot

    def test_leaving_twice_or_after_being_served_does_nothing(self, make):
        """`leave` may be called by anybody who has ever waited."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        waiter = pool.wait(shard)
        give_back(pool, shard, slot)
        shard.dequeue(waiter)
        shard.dequeue(waiter)
        assert waiter.result is slot
        assert slot.state is SlotState.RESERVED

    def test_a_cancelled_caller_that_has_not_left_yet_is_skipped(self, make):
        """Between a task's cancellation and its next step its future is still in the queue."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        first, second = pool.wait(shard), pool.wait(shard)
        first.cancel()
        give_back(pool, shard, slot)
        assert second.result is slot

    def test_a_connection_stays_if_only_cancelled_callers_wait(self, make):
        """With nobody left to serve, the connection becomes idle."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        pool.wait(shard).cancel()
        give_back(pool, shard, slot)
        assert shard.idle == [slot]
        assert not shard.waiters

    def test_counters_tell_leases_and_waits(self, make):
        """Leases are counted once, whichever way they began; waits with the time they took."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        waiter = pool.wait(shard)
        give_back(pool, shard, slot)
        shard.claim(waiter.result, 0.25, pool.now)
        counters = shard.counters
        assert (counters.acquired, counters.waited, counters.waited_seconds, counters.opened) == (2, 1, 0.25, 1)

    def test_a_pool_may_lend_the_coldest_first(self, make):
        """What has been idle longest, so that all are used alike."""
        pool, shard = make(idle_order=IdleOrder.FIFO)
        slots = pool.with_idle(shard, 3)
        assert [shard.take(pool.now) for _ in slots] == slots

    def test_a_pool_may_lend_without_a_look_at_the_socket(self, make):
        """What has died is lent, and handed on, as if it lived."""
        pool, shard = make(max_size=1, lends_dead=True)
        (slot,) = pool.with_idle(shard, 1)
        kill(slot)
        assert shard.take(pool.now) is slot
        waiter = pool.wait(shard)
        give_back(pool, shard, slot)
        assert waiter.result is slot

    def test_waits_and_leases_add_up(self, make):
        """Each adds its time to that of those before it."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        for seconds in (0.25, 0.5):
            waiter = pool.wait(shard)
            pool.now += seconds
            give_back(pool, shard, slot)
            shard.claim(waiter.result, seconds, pool.now)
        counters = shard.counters
        assert (counters.waited, counters.waited_seconds, counters.used_seconds) == (2, 0.75, 0.75)

    def test_every_lease_is_in_one_bucket_of_each_histogram(self, make):
        """By its length; a caller that found a connection idle, or had one opened for it alone, did not wait."""
        pool, shard = make(max_size=1)
        (slot,) = pool.with_idle(shard, 1)
        for seconds in (0.0002, 0.0003, 60.0):
            shard.take(pool.now)
            pool.now += seconds
            give_back(pool, shard, slot)
        shard.take(pool.now)
        waiter = pool.wait(shard)
        give_back(pool, shard, slot)
        shard.claim(waiter.result, 0.3, pool.now)
        uses, waits = shard.counters.use_times.counts, shard.counters.acquire_times.counts
        assert [(bound, count) for bound, count in zip(BOUNDS, uses, strict=True) if count] == [
            *((0.00025, 2), (0.0005, 1), ("longer", 1))
        ]
        assert [(bound, count) for bound, count in zip(BOUNDS, waits, strict=True) if count] == [(0.00025, 4), (0.5, 1)]

    def test_every_caller_that_waits_counts_as_queued(self, make):
        """Also one for whom a connection is opened at once."""
        pool, shard = make(max_size=1)
        assert [shard.enqueue(FakeFuture(), pool.now, has_deadline=False) for _ in range(2)] == [True, True]
        assert shard.counters.queued == 2

    def test_a_null_pool_counts_those_for_whom_nothing_can_be_opened(self, make):
        """The others wait for a connection of their own, not in a queue."""
        pool, shard = make(max_size=2, idle_order=IdleOrder.NONE)
        counted = [shard.enqueue(FakeFuture(), pool.now, has_deadline=False) for _ in range(3)]
        assert counted == [False, False, True]
        assert shard.counters.queued == 1


class TestDeadConnections:
    def test_a_dead_connection_is_not_lent(self, make):
        """The one below it on the stack is, in the same call."""
        pool, shard = make()
        alive, dead = pool.with_idle(shard, 2)
        kill(dead)
        assert shard.take(pool.now) is alive
        assert dead.state is SlotState.GONE
        assert shard.effects.reasons == ["closed by the server"]

    def test_the_socket_is_looked_at_however_lately_it_was_used(self, make):
        """A moment is long enough to die in, also between a caller's last word and the next caller's first."""
        pool, shard = make()
        (slot,) = pool.with_idle(shard, 1)
        assert shard.take(pool.now) is slot
        slot.session.life = Liveness.DEAD
        waiter = pool.wait(shard)
        shard.returned(slot, ReturnCheck.READY, pool.now)
        assert slot.state is SlotState.GONE
        assert not waiter.done()

    def test_all_dead_connections_are_dropped_at_once(self, make):
        """Where one is dead, all that are dead go in one pass, and with them their permits."""
        pool, shard = make(max_size=4)
        slots = pool.with_idle(shard, 4)
        kill(slots[0], slots[1], slots[3])
        assert shard.take(pool.now) is slots[2]
        assert shard.slots == {slots[2]}
        assert shard.counters.found_dead == 3
        assert pool.permits.in_use == 1

    def test_after_a_mass_death_the_caller_connects_at_once(self, make):
        """A working server whose connections have all died is connected to without a pause."""
        pool, shard = make(max_size=2)
        kill(*pool.with_idle(shard, 2))
        assert shard.take(pool.now) is None
        waiter = pool.wait(shard)
        assert waiter.result is None
        assert len(shard.effects.opening) == 1
        assert pool.connect(shard) is waiter.result

    def test_a_waiter_is_not_handed_a_dead_connection(self, make):
        """What has died in the last caller's hands is closed, and a connect is started for who waits."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        waiter = pool.wait(shard)
        kill(slot)
        give_back(pool, shard, slot)
        assert not waiter.done()
        assert pool.connect(shard) is waiter.result

    def test_what_arrived_is_read_before_the_connection_is_lent(self, make):
        """A readable connection is read by its driver, and comes back if that was not a farewell."""
        pool, shard = make(max_size=1)
        (slot,) = pool.with_idle(shard, 1)
        slot.session.life = Liveness.UNREAD
        assert shard.take(pool.now) is None
        assert shard.effects.reading == [slot]
        waiter = pool.wait(shard)
        slot.session.life = Liveness.ALIVE
        shard.effects.reading.clear()
        shard.serviced(slot, pool.now)
        assert waiter.result is slot

    def test_a_farewell_that_was_read_ends_the_connection(self, make):
        """If reading showed that the server has gone, the connection goes too."""
        pool, shard = make(max_size=1)
        (slot,) = pool.with_idle(shard, 1)
        slot.session.life = Liveness.UNREAD
        shard.take(pool.now)
        shard.discard(slot, "closed by the server")
        assert not shard.slots
        assert shard.effects.reading == []

    @pytest.mark.parametrize("state", [SlotState.IDLE, SlotState.LENT, SlotState.RESERVED, SlotState.RESETTING])
    def test_a_loss_ends_a_connection_wherever_it_is(self, make, state):
        """A connection that its driver reports lost leaves the pool with its permit, and is in no list any more."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        if state is SlotState.RESERVED:
            pool.wait(shard)
        if state is not SlotState.LENT:
            give_back(pool, shard, slot, RESET if state is SlotState.RESETTING else READY)
        assert slot.state is state
        shard.discard(slot, "lost")
        assert slot.state is SlotState.GONE
        assert (shard.idle, shard.slots, shard.closing, pool.permits.in_use) == ([], set(), {}, 0)

    def test_a_loss_is_noticed_once(self, make):
        """A driver that reports a loss again, or while the pool closes the connection, changes nothing."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        give_back(pool, shard, slot, WORN_OUT)
        shard.discard(slot, "lost")
        assert slot.state is SlotState.CLOSING
        pool.closed(shard)
        shard.discard(slot, "lost")
        shard.closed(slot, pool.now)
        assert (shard.counters.closed, pool.permits.in_use) == (1, 0)

    def test_a_broken_session_has_the_idle_ones_looked_at(self, make):
        """Where one is lost, there are more; one that is only worn out proves nothing."""
        pool, shard = make(max_size=3)
        worn_out, broken = pool.lend(shard, 2)
        (idle,) = pool.with_idle(shard, 1)
        kill(idle)
        give_back(pool, shard, worn_out, WORN_OUT)
        assert shard.idle == [idle]
        give_back(pool, shard, broken, BROKEN)
        assert shard.idle == []

    def test_only_what_came_back_dead_counts_as_such(self, make):
        """Each one; a connection that is worn out is none."""
        pool, shard = make(max_size=3)
        for slot, check in zip(pool.lend(shard, 3), (BROKEN, WORN_OUT, BROKEN), strict=True):
            give_back(pool, shard, slot, check)
        pool.closed(shard)
        assert (shard.counters.returned_dead, shard.counters.closed) == (2, 3)

    def test_what_arrived_is_read_before_the_connection_is_handed_on(self, make):
        """A caller that waits is not handed a connection that may have been told to go."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        waiter = pool.wait(shard)
        slot.session.life = Liveness.UNREAD
        give_back(pool, shard, slot)
        assert (shard.effects.reading, slot.state, waiter.done()) == ([slot], SlotState.RESETTING, False)


class TestLeases:
    def test_a_lease_that_is_too_long_is_reported_once(self, make):
        """At the moment when it is, without anybody's coming by; the next lease is reported anew."""
        pool, shard = make(leak_threshold=2.0)
        (slot,) = pool.lend(shard, 1)
        assert shard.effects.wake == pytest.approx(pool.now + 2.0)
        pool.pass_time(1.9)
        assert shard.effects.overdue_leases == []
        for _ in range(3):
            pool.pass_time(2.0)
        assert shard.effects.overdue_leases == [slot]
        assert shard.effects.returned_leases == []
        give_back(pool, shard, slot)
        assert shard.effects.returned_leases == [(slot, pytest.approx(7.9))]
        shard.take(pool.now)
        pool.pass_time(2.0)
        assert shard.effects.overdue_leases == [slot, slot]

    def test_the_younger_lease_is_reported_in_its_own_time(self, make):
        """The timer is set again for those that are not overdue yet."""
        pool, shard = make(leak_threshold=2.0)
        (first,) = pool.lend(shard, 1)
        pool.now += 1.0
        (second,) = pool.lend(shard, 1)
        pool.pass_time(1.0)
        assert shard.effects.overdue_leases == [first]
        pool.pass_time(1.0)
        assert shard.effects.overdue_leases == [first, second]

    def test_a_lease_that_was_not_reported_comes_back_unreported(self, make):
        """Nobody was told of it."""
        pool, shard = make(leak_threshold=2.0)
        (slot,) = pool.lend(shard, 1)
        pool.pass_time(1.0)
        give_back(pool, shard, slot)
        assert shard.effects.returned_leases == []

    def test_nothing_is_reported_unless_asked_for(self, make):
        """Without `leak_threshold` a lease may last for ever."""
        pool, shard = make(leak_threshold=None)
        pool.lend(shard, 1)
        pool.pass_time(1e6)
        assert shard.effects.overdue_leases == []

    def test_a_look_before_a_lease_is_overdue_sets_the_timer_for_it(self, make):
        """To the moment."""
        pool, shard = make(leak_threshold=2.0)
        (slot,) = pool.lend(shard, 1)
        pool.now += 0.5
        shard.housekeeper.sweep(pool.now)
        assert (shard.effects.overdue_leases, shard.effects.wake) == ([], slot.since + 2.0)


class TestDroppedLeases:
    """What its caller has let go of."""

    def drop(self, slot):
        slot.session.was_dropped = True

    def test_who_lacks_a_connection_has_all_loops_looked_at(self, make):
        """Of the own loop's, and of another's, what was dropped is closed, and its permit served."""
        pool, shard = make(max_size=2)
        other = pool.shard()
        (own,), others = pool.lend(shard, 1), pool.lend(other, 1)
        for slot in (own, *others):
            self.drop(slot)
        waiter = pool.wait(shard)
        assert (shard.effects.dropped_leases, other.effects.dropped_leases) == ([own], others)
        pool.deliver()
        pool.connect(shard)
        assert waiter.result is not None
        assert (shard.counters.dropped, other.counters.dropped) == (1, 1)

    def test_they_are_looked_at_once_a_second(self, make):
        """However many come; and again of itself, for as long as somebody waits."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        pool.wait(shard)
        self.drop(slot)
        pool.now += 0.9
        pool.wait(shard)
        assert shard.effects.dropped_leases == []
        pool.pass_time(0.1)
        assert shard.effects.dropped_leases == [slot]

    def test_a_sweep_in_between_does_not_call_off_the_next_look(self, make):
        """Else a caller who comes then, before it is due, would wait for ever."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        pool.wait(shard)
        shard.wake_by(pool.now + 0.5)  # the timer is one, and is set anew
        pool.pass_time(0.5)
        pool.wait(shard)
        self.drop(slot)
        pool.pass_time(0.5)
        assert shard.effects.dropped_leases == [slot]

    def test_a_closed_pool_looks_for_them(self, make):
        """For as long as a lease is out."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        shard.shut(RuntimeError)
        shard.housekeeper.sweep(pool.now)
        pool.pass_time(1.0)
        self.drop(slot)
        pool.pass_time(1.0)
        assert shard.effects.dropped_leases == [slot]
        assert not shard.slots

    def test_a_lease_that_has_ended_cannot_be_dropped(self, make):
        """Whoever hears of it late has nothing to close."""
        pool, shard = make()
        (slot,) = pool.lend(shard, 1)
        give_back(pool, shard, slot)
        shard.housekeeper.reclaim(slot)
        assert shard.idle == [slot]

    def test_a_look_is_followed_by_another_a_second_later(self, make):
        """To the moment, for as long as somebody waits."""
        pool, shard = make(max_size=1)
        pool.lend(shard, 1)
        pool.wait(shard)
        for _ in range(3):
            assert shard.effects.wake == pool.now + 1.0
            pool.pass_time(1.0)

    def test_who_waits_for_another_loops_permit_looks_again_a_second_later(self, make):
        """To the moment, and on that loop too."""
        pool, shard = make(max_size=2, patience=PATIENCE)
        other = pool.shard()
        pool.lend(shard, 1)
        (slot,) = pool.lend(other, 1)
        pool.wait(shard)
        self.drop(slot)
        pool.pass_time(1.0)
        assert other.effects.dropped_leases == [slot]

    def test_each_dropped_lease_counts(self, make):
        """And its connection says why it was closed; a closed pool looks for them once a second."""
        pool, shard = make(max_size=3)
        dropped = pool.lend(shard, 3)[:2]
        for slot in dropped:
            self.drop(slot)
        shard.shut(RuntimeError)
        shard.housekeeper.sweep(pool.now)
        assert shard.counters.dropped == 2
        assert shard.effects.reasons == ["dropped by its holder"] * 2
        assert shard.effects.wake == pool.now + 1.0
