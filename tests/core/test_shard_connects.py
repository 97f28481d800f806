"""A shard opens connections: for callers, for the floor, and again after a connect has failed."""

from __future__ import annotations

import pytest

from fakes import NEVER
from loopaware_pool._core.slot import SlotState
from shard_stories import BROKEN, WORN_OUT, give_back, kill


class TestGrowth:
    def test_no_more_connects_than_callers(self, make):
        """A connect in flight counts for one caller."""
        pool, shard = make(max_size=10)
        pool.wait(shard)
        pool.wait(shard)
        assert len(shard.effects.opening) == 2

    def test_growth_follows_the_ramp(self, make):
        """Three at once, twice as many after 20 ms, with callers still waiting, up to `max_size`."""
        pool, shard = make(max_size=10)
        for _ in range(20):
            pool.wait(shard)
        connects = [len(shard.effects.opening)]
        for _ in range(3):
            pool.pass_time(0.020)
            connects.append(len(shard.effects.opening))
        assert connects == [3, 6, 10, 10]

    def test_max_connecting_limits_connects_in_flight(self, make):
        """The next starts when one has ended."""
        pool, shard = make(max_size=10, max_connecting=2)
        for _ in range(5):
            pool.wait(shard)
        pool.pass_time(1.0)
        assert len(shard.effects.opening) == 2
        pool.connect(shard)
        pool.pass_time(0.020)
        assert len(shard.effects.opening) == 2
        assert len(shard.slots) == 3

    def test_no_connect_is_started_once_demand_is_gone(self, make):
        """When callers have been served by what came back, time alone opens nothing."""
        pool, shard = make(max_size=10)
        slots = pool.lend(shard, 2)
        waiters = [pool.wait(shard) for _ in range(5)]
        for slot in slots:
            give_back(pool, shard, slot)
        for waiter in waiters[:2]:
            give_back(pool, shard, pool.claim(shard, waiter))
        give_back(pool, shard, pool.claim(shard, waiters[2]))
        assert all(waiter.done() for waiter in waiters)
        pool.pass_time(0.020)
        pool.pass_time(1.0)
        assert len(shard.effects.opening) == 3

    def test_a_connection_opened_for_a_caller_served_meanwhile_is_idle(self, make):
        """It joins the pool."""
        pool, shard = make(max_size=2)
        (slot,) = pool.lend(shard, 1)
        pool.wait(shard)
        give_back(pool, shard, slot)
        new = pool.connect(shard)
        assert shard.idle == [new]

    def test_a_connection_out_of_date_on_arrival_is_replaced_at_once(self, make):
        """Its caller does not wait for its goodbye while there is a permit to connect with."""
        pool, shard = make(max_size=2)
        waiter = pool.wait(shard)
        pool.shared.generation += 1
        pool.connect(shard)
        assert len(shard.effects.closing) == 1
        assert len(shard.effects.opening) == 1
        assert pool.connect(shard) is waiter.result

    def test_a_cancelled_connect_is_made_again(self, make):
        """Somebody ended the task; the caller still waits."""
        pool, shard = make(max_size=1)
        waiter = pool.wait(shard)
        slot = shard.effects.opening.pop()
        shard.connect_cancelled(slot, pool.now)
        assert slot.state is SlotState.GONE
        assert pool.connect(shard) is waiter.result
        assert pool.permits.in_use == 1

    def test_a_single_caller_beyond_the_ramp_gets_its_turn(self, make):
        """The timer is set for the next step, to the moment."""
        pool, shard = make(max_size=10)
        for _ in range(4):
            pool.wait(shard)
        assert (len(shard.effects.opening), shard.effects.wake) == (3, pool.now + 0.020)
        pool.pass_time(0.020)
        assert len(shard.effects.opening) == 4

    def test_connects_are_counted_with_their_times(self, make):
        """And each is told of, with its own."""
        pool, shard = make(max_size=2)
        slots = []
        for seconds in (0.25, 0.5):
            slots.append(shard.open_one(pool.now))
            pool.now += seconds
            pool.connect(shard)
        assert (shard.counters.opened, shard.counters.connect_seconds) == (2, 0.75)
        assert shard.effects.connect_times == list(zip(slots, (0.25, 0.5), strict=True))

    @pytest.mark.parametrize(("max_connecting", "opening"), [(None, 3), (2, 2)])
    def test_a_larger_pool_has_more_connects_in_flight(self, make, max_connecting, opening):
        """At once, for the callers that wait; unless `max_connecting` says otherwise."""
        pool, shard = make(max_size=2, max_connecting=max_connecting)
        for _ in range(5):
            pool.wait(shard)
        assert len(shard.effects.opening) == 2
        pool.reconfigure(max_size=10)
        pool.pass_time(0.0)
        assert len(shard.effects.opening) == opening


class TestConnectFailures:
    def test_who_came_when_a_connect_was_under_way_does_not_hear_of_its_failure(self, make):
        """It may have failed of what was before his time; the next one is his."""
        pool, shard = make(max_size=1)
        early = pool.wait(shard)
        pool.now += 1
        late = pool.wait(shard)
        error = pool.refuse(shard)
        assert early.exception is error
        assert not late.done()
        pool.pass_time(1)
        error = pool.refuse(shard)
        assert late.exception is error

    def test_everybody_is_told_if_there_is_nothing_else_to_hope_for(self, make):
        """Without a deadline and without any connection, all who wait learn what went wrong."""
        pool, shard = make(max_size=4)
        waiters = [pool.wait(shard) for _ in range(3)]
        error = pool.refuse(shard)
        assert [waiter.exception for waiter in waiters] == [error] * 3
        assert not shard.waiters

    def test_only_the_first_is_told_if_a_connection_may_come_back(self, make):
        """With connections in use, one failed connect is one caller's."""
        pool, shard = make(max_size=4)
        pool.lend(shard, 1)
        waiters = [pool.wait(shard) for _ in range(3)]
        error = pool.refuse(shard)
        assert [waiter.exception for waiter in waiters] == [error, None, None]

    def test_who_has_a_deadline_waits_on(self, make):
        """Until then the next attempt may succeed; those behind it without one are told."""
        pool, shard = make(max_size=4)
        patient = pool.wait(shard, has_deadline=True)
        others = [pool.wait(shard) for _ in range(2)]
        error = pool.refuse(shard)
        assert [waiter.exception for waiter in (patient, *others)] == [None, error, error]
        assert shard.last_error is error

    def test_with_a_connection_in_use_the_first_without_a_deadline_is_told(self, make):
        """Those with a deadline are passed over."""
        pool, shard = make(max_size=4)
        pool.lend(shard, 1)
        patient = pool.wait(shard, has_deadline=True)
        others = [pool.wait(shard) for _ in range(2)]
        error = pool.refuse(shard)
        assert [waiter.exception for waiter in (patient, *others)] == [None, error, None]

    def test_a_failed_hook_tells_the_first_whatever_its_deadline(self, make):
        """A callback of the user's is at fault: waiting does not help, and one failure is one caller's."""
        pool, shard = make(max_size=4)
        patient, other = pool.wait(shard, has_deadline=True), pool.wait(shard)
        error = pool.refuse(shard, ValueError("init"), is_final=True)
        assert [waiter.exception for waiter in (patient, other)] == [error, None]
        assert shard.last_error is None

    def test_where_connecting_has_no_timeout_a_connect_is_its_callers_own(self, make):
        """If its caller has gone, a caller that has come since does not hear of its failure, and gets another."""
        pool, shard = make(max_size=1, timeout_covers_connecting=False)
        gone = pool.wait(shard)
        shard.dequeue(gone)
        pool.pass_time(0.01)
        later = pool.wait(shard)
        pool.refuse(shard, ValueError("cut"), is_final=True)
        assert not later.done()
        assert pool.connect(shard) is later.result

    def test_a_failed_hook_causes_no_pause(self, make):
        """The server is fine: the others' connects go on at once."""
        pool, shard = make(max_size=1)
        first, second = pool.wait(shard), pool.wait(shard)
        pool.refuse(shard, ValueError("init"), is_final=True)
        assert first.done()
        assert pool.connect(shard) is second.result

    def test_a_server_that_refuses_is_asked_again_after_a_pause(self, make):
        """By one prober, after 50 ms, then 100 ms; and when it answers, the caller is served."""
        pool, shard = make(max_size=4)
        waiter = pool.wait(shard, has_deadline=True)
        pool.wait(shard, has_deadline=True)
        pool.refuse(shard)
        pool.refuse(shard)
        for seconds in (0.0, 0.06, 0.03):
            pool.pass_time(seconds)
            assert shard.effects.opening == []
        pool.pass_time(0.02)
        assert len(shard.effects.opening) == 1
        assert pool.connect(shard) is waiter.result
        assert shard.last_error is None

    def test_a_caller_that_comes_during_the_pause_does_not_end_it(self, make):
        """New demand does not make a refusing server be asked more often."""
        pool, shard = make(max_size=4)
        pool.wait(shard, has_deadline=True)
        pool.refuse(shard)
        pool.wait(shard, has_deadline=True)
        assert shard.effects.opening == []
        assert shard.effects.wake == pytest.approx(pool.now + 0.05)

    def test_a_failed_connect_returns_its_permit(self, make):
        """As often as it fails."""
        pool, shard = make(max_size=1)
        for _ in range(3):
            pool.wait(shard)
            pool.refuse(shard)
            assert pool.permits.in_use == 0
            pool.pass_time(1.0)
        assert shard.counters.connect_failures == 3
        assert not shard.slots

    def test_a_cancelled_caller_is_not_told(self, make):
        """The error goes to somebody who can still hear it."""
        pool, shard = make(max_size=4)
        pool.lend(shard, 1)
        gone, there = pool.wait(shard), pool.wait(shard)
        gone.cancel()
        error = pool.refuse(shard)
        assert there.exception is error

    def test_the_prober_starts_when_its_pause_is_over(self, make):
        """To the moment for which the timer was set."""
        pool, shard = make(max_size=4)
        pool.wait(shard, has_deadline=True)
        pool.refuse(shard)
        pool.pass_time(shard.effects.wake - pool.now)
        assert len(shard.effects.opening) == 1

    def test_a_failed_hook_is_told_to_who_came_when_the_connect_was_under_way(self, make):
        """The first in the queue hears of it, although the connect began for another."""
        pool, shard = make(max_size=1)
        gone = pool.wait(shard)
        pool.now += 1
        there = pool.wait(shard)
        shard.dequeue(gone)
        error = pool.refuse(shard, ValueError("init"), is_final=True)
        assert there.exception is error

    def test_each_failure_is_told_of(self, make):
        """With the connection that there is not."""
        pool, shard = make(max_size=1)
        slot = shard.open_one(pool.now)
        error = pool.refuse(shard)
        assert shard.effects.failures == [(slot, error)]


class TestFloor:
    def test_the_floor_is_kept_once_it_is_asked_for(self, make):
        """A loop that only borrowed does not open `min_size` connections; one that opened the pool does."""
        pool, shard = make(min_size=2)
        pool.pass_time(10.0)
        assert shard.effects.opening == []
        shard.keep_floor(pool.now)
        assert len(shard.effects.opening) == 1

    def test_a_dead_floor_is_noticed_and_restored(self, make):
        """Within a second of its death, although nobody uses the pool."""
        pool, shard = make(min_size=2)
        pool.with_idle(shard, 2)
        shard.keep_floor(pool.now)
        kill(*shard.idle)
        assert shard.effects.wake <= pool.now + 1.0
        pool.pass_time(1.0)
        assert len(shard.effects.opening) == 1

    def test_a_connection_lost_below_the_floor_is_replaced(self, make):
        """At once, when its place is free."""
        pool, shard = make(min_size=1)
        (slot,) = pool.lend(shard, 1)
        shard.keep_floor(pool.now)
        give_back(pool, shard, slot, BROKEN)
        assert len(shard.effects.opening) == 1
        assert shard.restoring == set(shard.effects.opening)

    def test_the_floor_counts_all_loops(self, make):
        """What is open elsewhere need not be opened here."""
        pool, shard = make(min_size=3)
        pool.lend(pool.shard(), 2)
        shard.keep_floor(pool.now)
        assert len(shard.effects.opening) == 1

    def test_restoring_is_paced_while_the_server_refuses(self, make):
        """After a failure the next attempt is a second away, then two; each is reported."""
        pool, shard = make(min_size=1)
        shard.keep_floor(pool.now)
        starts = []
        for _ in range(4):
            error = pool.refuse(shard)
            failed_at = pool.now
            while not shard.effects.opening:
                pool.pass_time(0.25)
            starts.append(pool.now - failed_at)
        assert starts == [1.0, 2.0, 4.0, 8.0]
        assert len(shard.effects.floor_failures) == 4
        assert shard.effects.floor_failures[-1] is error
        assert shard.restoring == set(shard.effects.opening)

    def test_a_restored_floor_starts_afresh(self, make):
        """After a connect that ended well, the next failure is followed by a second's pause again."""
        pool, shard = make(min_size=1)
        shard.keep_floor(pool.now)
        for seconds in (1.0, 2.0):
            pool.refuse(shard)
            pool.pass_time(seconds)
        slot = pool.connect(shard)
        assert not shard.restoring
        shard.discard(slot, "lost")
        pool.refuse(shard)
        pool.pass_time(1.0)
        assert len(shard.effects.opening) == 1

    def test_a_floor_is_restored_a_few_at_a_time(self, make):
        """One at first, and two for each answer: every process that uses a server does so when that has come back."""
        pool, shard = make(min_size=20, max_size=20)
        shard.keep_floor(pool.now)
        opened = []
        while shard.effects.opening:
            pool.pass_time(60.0)  # a server that is busy sets the pace
            opened.append(len(shard.effects.opening))
            while shard.effects.opening:
                pool.connect(shard)
            pool.pass_time(0.02)
        assert opened == [1, 2, 4, 8, 5]

    def test_a_floor_that_cannot_be_restored_is_tried_by_one(self, make):
        """And those that fail together count as one failure each: the pause is the last one's."""
        pool, shard = make(min_size=20, max_size=20)
        shard.keep_floor(pool.now)
        while shard.effects.opening:
            pool.refuse(shard)
        for _ in range(5):
            pool.pass_time(60.0)
            assert len(shard.effects.opening) == 1
            pool.refuse(shard)
        pool.pass_time(60.0)
        pool.connect(shard)
        pool.pass_time(1.0)
        assert len(shard.effects.opening) == 2

    def test_no_more_connects_for_the_floor_than_may_be_in_flight(self, make):
        """`max_connecting` holds for all."""
        pool, shard = make(min_size=20, max_size=20, max_connecting=2)
        shard.keep_floor(pool.now)
        for _ in range(5):
            pool.connect(shard)
            pool.pass_time(0.02)
            assert len(shard.effects.opening) == 2

    def test_the_floor_never_exceeds_the_permits(self, make):
        """With `max_size` in use elsewhere there is no place for it."""
        pool, shard = make(min_size=2, max_size=2)
        other = pool.shard()
        (slot,) = pool.lend(other, 1)
        give_back(pool, other, slot, WORN_OUT)  # a session still, though no connection of the pool any more
        shard.keep_floor(pool.now)
        assert len(shard.effects.opening) == 1
        assert pool.permits.in_use == 2
        pool.connect(shard)
        pool.pass_time(1.0)
        assert shard.effects.opening == []
        pool.closed(other)
        pool.pass_time(1.0)
        assert len(shard.effects.opening) == 1

    def test_a_floor_is_not_restored_on_a_closed_pool(self, make):
        """Connections that end while the pool closes are not replaced, and failures are not reported."""
        pool, shard = make(min_size=1)
        shard.keep_floor(pool.now)
        shard.shut(RuntimeError)
        pool.refuse(shard)
        assert shard.effects.floor_failures == []
        pool.pass_time(60.0)
        assert not shard.slots

    def test_without_a_floor_there_is_nothing_to_look_after(self, make):
        """No timer is set for it."""
        pool, shard = make(min_size=0)
        shard.keep_floor(pool.now)
        assert shard.effects.wake == NEVER

    def test_a_floor_that_is_there_is_looked_at_once_a_second(self, make):
        """Not more often: neither when the last connect for it has begun, nor when more is open."""
        pool, shard = make(min_size=1)
        shard.keep_floor(pool.now)
        assert (len(shard.effects.opening), shard.effects.wake) == (1, pool.now + 1.0)
        pool.connect(shard)
        pool.with_idle(shard, 1)
        pool.pass_time(1.0)
        assert shard.effects.wake == pool.now + 1.0

    def test_a_floor_that_lacks_more_is_looked_at_with_the_next_step(self, make):
        """Also where few connects may be in flight."""
        pool, shard = make(min_size=4, max_connecting=2)
        shard.keep_floor(pool.now)
        pool.connect(shard)
        pool.pass_time(0.020)
        assert (len(shard.effects.opening), shard.effects.wake) == (2, pool.now + 0.020)

    def test_the_prober_for_the_floor_is_followed_by_nobody_until_it_ends(self, make):
        """While the server refuses, no step of the ramp is due."""
        pool, shard = make(min_size=2)
        shard.keep_floor(pool.now)
        pool.refuse(shard)
        pool.pass_time(2.0)
        assert (len(shard.effects.opening), shard.effects.wake) == (1, pool.now + 1.0)

    def test_a_floor_that_is_lost_again_is_restored_from_the_foot_of_the_ramp(self, make):
        """However fast it was restored the last time."""
        pool, shard = make(min_size=6, max_size=6)
        shard.keep_floor(pool.now)
        while shard.effects.opening:
            pool.connect(shard)
            pool.pass_time(0.020)
        assert shard.size == 6
        pool.pass_time(1.0)
        kill(*shard.idle)
        pool.pass_time(1.0)
        assert len(shard.effects.opening) == 1

    def test_a_cancelled_connect_is_not_the_floors_any_more(self, make):
        """Another is made for it within a second."""
        pool, shard = make(min_size=1)
        shard.keep_floor(pool.now)
        shard.connect_cancelled(shard.effects.opening.pop(), pool.now)
        assert not shard.restoring
        pool.pass_time(1.0)
        assert len(shard.effects.opening) == 1

    def test_a_refill_ends_the_pause(self, make):
        """Of a floor that could not be restored."""
        pool, shard = make(min_size=2)
        shard.keep_floor(pool.now)
        pool.refuse(shard)
        shard.refill(pool.now)
        assert len(shard.effects.opening) == 1

    def test_a_refill_opens_one_connection_without_a_floor(self, make):
        """If there is none."""
        pool, shard = make(min_size=0)
        for _ in range(2):
            shard.refill(pool.now)
            assert len(shard.slots) == 1
        slot = pool.connect(shard)
        assert slot.opened_at == pool.now
        shard.refill(pool.now)
        assert shard.slots == {slot}

    def test_a_refill_opens_nothing_on_a_loop_that_is_not_running(self, make):
        """The connect would never end, and keep its permit from the loops that run."""
        pool, shard = make(min_size=0)
        shard.effects.is_running = False
        shard.refill(pool.now)
        assert (shard.slots, pool.permits.in_use) == (set(), 0)

    def test_a_higher_floor_is_filled_at_once(self, make):
        """A few at a time, as any other, however small the pool was."""
        pool, shard = make(min_size=1, max_size=1)
        shard.keep_floor(pool.now)
        pool.connect(shard)
        pool.reconfigure(min_size=5, init_size=5, max_size=5)
        pool.pass_time(0.0)
        assert (len(shard.effects.opening), shard.effects.wake) == (2, pool.now + 0.020)

    def test_a_larger_pools_new_loop_fills_the_floor_by_the_new_size(self, make):
        """Not by that with which the pool was made."""
        pool, _ = make(max_size=1)
        pool.reconfigure(min_size=5, init_size=5, max_size=5)
        new = pool.shard()
        new.keep_floor(pool.now)
        assert len(new.effects.opening) == 1
        pool.connect(new)
        pool.pass_time(0.020)
        assert len(new.effects.opening) == 2

    def test_a_floor_that_is_filled_one_by_one_is_filled_without_pauses(self, make):
        """The next connect follows the last within a step of the ramp."""
        pool, shard = make(min_size=4, max_connecting=1)
        shard.keep_floor(pool.now)
        for _ in range(3):
            pool.connect(shard)
            pool.pass_time(0.020)
            assert len(shard.effects.opening) == 1
