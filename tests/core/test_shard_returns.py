"""A connection comes back to its shard: checked, reset, closed, or lent on to the queue."""

from __future__ import annotations

import pytest

from fakes import FakeFuture
from loopaware_pool._core.config import IdleOrder
from loopaware_pool._core.shard import READ_SECONDS
from loopaware_pool._core.slot import SlotState
from loopaware_pool.driver import ReturnCheck
from shard_stories import BROKEN, PATIENCE, RESET, RESET_SENT, WORN_OUT, give_back


class TestComingBack:
    def test_a_connection_that_needs_a_reset_is_out_of_reach(self, make):
        """It is nobody's until the reset has ended, then the first waiter's."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        waiter = pool.wait(shard)
        give_back(pool, shard, slot, RESET)
        assert shard.effects.resetting == [slot]
        assert not waiter.done()
        shard.effects.resetting.clear()
        shard.serviced(slot, pool.now)
        assert waiter.result is slot

    def test_a_reset_that_ends_too_late_is_ignored(self, make):
        """The end of a reset cannot bring back what was given up meanwhile."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        give_back(pool, shard, slot, RESET)
        shard.discard(slot, "reset failed")
        shard.serviced(slot, pool.now)
        assert slot.state is SlotState.GONE
        assert shard.idle == []

    @pytest.mark.parametrize(("check", "is_polite"), [(WORN_OUT, True), (BROKEN, False)])
    def test_what_cannot_be_used_again_is_closed(self, make, check, is_polite):
        """Politely if the session is sound, at once if it is not; a waiter gets a new one when the permit is back."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        waiter = pool.wait(shard)
        give_back(pool, shard, slot, check)
        assert (shard.effects.closing == [slot]) is is_polite
        if is_polite:
            assert shard.effects.opening == []
            pool.closed(shard)
        assert pool.connect(shard) is waiter.result
        assert shard.effects.reasons == [check.value]

    def test_an_idle_connection_is_parked(self, make):
        """Each time it becomes idle, but not when it is handed on."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        shard.effects.parked.clear()
        waiter = pool.wait(shard)
        give_back(pool, shard, slot)
        assert shard.effects.parked == []
        give_back(pool, shard, pool.claim(shard, waiter))
        assert shard.effects.parked == [slot]

    def test_a_null_pool_keeps_only_what_somebody_waits_for(self, make):
        """The rest is closed, politely."""
        pool, shard = make(max_size=1, idle_order=IdleOrder.NONE)
        first = pool.wait(shard)
        pool.connect(shard)
        slot = pool.claim(shard, first)
        second = pool.wait(shard)
        give_back(pool, shard, slot)
        give_back(pool, shard, pool.claim(shard, second))
        assert shard.effects.closing == [slot]
        pool.closed(shard)
        assert shard.effects.reasons == ["nobody waits for it"]

    def test_a_loop_that_ends_keeps_only_what_somebody_waits_for(self, make):
        """The rest is closed at once: there is no time for a goodbye."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        shard.is_ending = True
        waiter = pool.wait(shard)
        give_back(pool, shard, slot)
        give_back(pool, shard, pool.claim(shard, waiter))
        assert slot.state is SlotState.GONE
        assert shard.effects.reasons == ["the loop ends"]

    @pytest.mark.parametrize("check", [RESET, RESET_SENT])
    def test_a_loop_that_ends_resets_nothing(self, make, check):
        """Nobody would hear the answer: the connection is closed at once."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        shard.is_ending = True
        give_back(pool, shard, slot, check)
        assert (slot.state, shard.effects.resetting) == (SlotState.GONE, [])
        assert shard.effects.reasons == [ReturnCheck.STRANDED.value]


class TestAwaitingAnAnswer:
    def test_the_first_waiter_gets_the_connection_with_the_answer(self, make):
        """Not before, and without a task."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        waiter = pool.wait(shard)
        give_back(pool, shard, slot, RESET_SENT)
        assert (slot.state, shard.effects.resetting, waiter.done()) == (SlotState.RESETTING, [], False)
        shard.reset_answered(slot, pool.now)
        assert waiter.result is slot
        assert not shard.unanswered

    @pytest.mark.parametrize(("given", "lasts"), [(None, 30.0), (2.0, 2.0), (0.01, 1.0), (99.0, 30.0)])
    def test_the_caller_says_how_long_an_answer_may_take(self, make, given, lasts):
        """From one second, as nobody waits for it, to 30."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        shard.returned(slot, RESET_SENT, pool.now, given)
        pool.run_for(lasts - 0.001)
        assert slot.state is SlotState.RESETTING
        pool.run_for(0.001)
        assert slot.state is SlotState.GONE

    def test_an_answer_that_nobody_waits_for_changes_nothing(self, make):
        """As of the reset of a lease that was followed at once, when a task has the connection by then."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        give_back(pool, shard, slot, RESET)
        shard.reset_answered(slot, pool.now)
        assert slot.state is SlotState.RESETTING

    def test_who_waits_for_a_connection_of_its_own_waits_for_nobody(self, make):
        """Nor does a caller for whom one can be opened, unless connecting fails, or the pool is suspended."""
        pool, shard = make(max_size=5)
        for _ in range(5):
            pool.wait(shard)
        assert len(shard.effects.opening) == 3
        assert (shard.waiting_in_line(pool.now), shard.growth_left) == (2, 2)
        pool.shared.is_suspended = True
        assert shard.growth_left == 0
        pool.shared.is_suspended = False
        pool.refuse(shard)
        assert shard.growth_left == 0

    def test_growth_counts_where_it_is_to(self, make):
        """As with psycopg_pool's pools."""
        pool, shard = make(max_size=5, counts_growth=True)
        for _ in range(5):
            pool.wait(shard)
        assert (shard.waiting_in_line(pool.now), shard.growth_left) == (5, 0)

    def test_who_waits_for_an_answer_opens_no_connection_for_a_while(self, make):
        """But does when the answer is late."""
        pool, shard = make(max_size=2, counts_growth=True)
        (slot,) = pool.lend(shard, 1)
        give_back(pool, shard, slot, RESET_SENT)
        pool.wait(shard)
        assert shard.effects.opening == []
        assert shard.waiting_in_line(pool.now) == 0
        pool.wait(shard)
        assert len(shard.effects.opening) == 1
        assert shard.waiting_in_line(pool.now) == 1
        pool.pass_time(0.05)
        assert len(shard.slots) == 2

    def test_who_waits_for_the_answer_of_a_slow_server_waits_in_line(self, make):
        """A second after the oldest reset has been sent, all its callers count, although another has been answered."""
        pool, shard = make(max_size=3)
        first, second, third = pool.lend(shard, 3)
        give_back(pool, shard, first, RESET_SENT)
        pool.pass_time(0.5)
        give_back(pool, shard, third)
        assert shard.take(pool.now) is third
        give_back(pool, shard, second, RESET_SENT)
        pool.wait(shard)
        pool.wait(shard)
        pool.pass_time(0.25)
        assert shard.waiting_in_line(pool.now) == 0
        pool.pass_time(0.25)
        assert shard.waiting_in_line(pool.now) == 2
        shard.reset_answered(first, pool.now)
        assert shard.waiting_in_line(pool.now) == 0

    def test_an_answer_that_does_not_come_costs_the_connection(self, make):
        """After half a minute; the others, which came back later, have their time."""
        pool, shard = make(max_size=2)
        first, second = pool.lend(shard, 2)
        give_back(pool, shard, first, RESET_SENT)
        pool.run_for(20)
        give_back(pool, shard, second, RESET_SENT)
        pool.run_for(15)
        assert (first.state, second.state) == (SlotState.GONE, SlotState.RESETTING)
        assert shard.effects.reasons == ["reset not answered"]

    def test_what_is_past_its_use_is_closed_without_waiting(self, make):
        """Its answer would be of no use to anybody."""
        pool, shard = make(max_size=2)
        expired, last = pool.lend(shard, 2)
        pool.shared.generation += 1
        give_back(pool, shard, expired, RESET_SENT)
        shard.shut(RuntimeError)
        give_back(pool, shard, last, RESET_SENT)
        assert shard.effects.closing == [expired, last]

    def test_a_pool_that_is_shut_waits_for_no_answer(self, make):
        """What has been sent is sent; the goodbye follows it."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        give_back(pool, shard, slot, RESET_SENT)
        shard.shut(RuntimeError)
        assert shard.effects.closing == [slot]
        assert not shard.unanswered
        pool.closed(shard)
        assert shard.effects.reasons == ["pool closed"]

    def test_a_loop_keeps_what_its_own_callers_wait_for(self, make):
        """Another loop that has none is given it if nobody here waits, though its answer be due."""
        pool, here = make(max_size=1, patience=PATIENCE)
        there = pool.shard()
        (slot,) = pool.lend(here, 1)
        give_back(pool, here, slot, RESET_SENT)
        pool.wait(there)
        waiter = pool.wait(here)
        here.permit_requested(pool.now)
        assert slot.state is SlotState.RESETTING
        waiter.cancel()
        here.dequeue(waiter)
        here.permit_requested(pool.now)
        assert slot.state is SlotState.CLOSING

    def test_an_expiry_closes_what_waits_for_an_answer(self, make):
        """What was opened since, and waits for one as well, stays."""
        pool, shard = make(max_size=2)
        (old,) = pool.lend(shard, 1)
        give_back(pool, shard, old, RESET_SENT)
        pool.shared.generation += 1
        (new,) = pool.lend(shard, 1)
        give_back(pool, shard, new, RESET_SENT)
        shard.expired()
        assert shard.effects.closing == [old]
        assert list(shard.unanswered) == [new]
        pool.closed(shard)
        assert shard.effects.reasons == ["expired"]

    def test_the_timer_is_set_for_the_answer_that_is_due_first(self, make):
        """To the moment: when one is given up, it is set for the next."""
        pool, shard = make(max_size=2)
        first, second = pool.lend(shard, 2)
        give_back(pool, shard, first, RESET_SENT)
        assert shard.effects.wake == pool.now + 30.0 - READ_SECONDS
        pool.now += 10.0
        give_back(pool, shard, second, RESET_SENT)
        pool.run_for(20.0)
        assert (first.state, second.state) == (SlotState.GONE, SlotState.RESETTING)
        assert shard.effects.wake == pool.now + 10.0 - READ_SECONDS

    def test_an_answer_is_late_after_a_step_of_the_ramp(self, make):
        """To the moment: a connection is opened then for who waits."""
        pool, shard = make(max_size=2)
        (slot,) = pool.lend(shard, 1)
        give_back(pool, shard, slot, RESET_SENT)
        pool.wait(shard)
        assert (shard.effects.opening, shard.effects.wake) == ([], pool.now + 0.020)
        pool.pass_time(0.020)
        assert len(shard.effects.opening) == 1


class TestComingBackToTheQueue:
    """Callers that lost what they were handed before they could run."""

    @staticmethod
    def come_back(pool, shard, since):
        waiter = FakeFuture()
        shard.requeue(waiter, since, pool.now, has_deadline=False)
        return waiter

    def test_a_caller_that_comes_back_has_its_old_place(self, make):
        """It is before those who came after it, and growth begins as for any other."""
        pool, shard = make(max_size=8, max_connecting=1)
        since = pool.now
        pool.pass_time(5.0)
        later = pool.wait(shard)
        again = self.come_back(pool, shard, since)
        assert pool.connect(shard) is again.result
        pool.pass_time(0.020)
        assert pool.connect(shard) is later.result

    def test_callers_that_come_back_together_stay_in_order(self, make):
        """When the server restarts, many do at once."""
        pool, shard = make(max_size=8, max_connecting=1)
        times = [pool.now + number for number in range(3)]
        pool.pass_time(5.0)
        waiters = [self.come_back(pool, shard, since) for since in times]
        for waiter in waiters:
            assert pool.connect(shard) is waiter.result
            pool.pass_time(0.020)

    def test_callers_of_one_moment_stay_in_the_order_of_their_coming_back(self, make):
        """Nobody passes another who has waited for as long."""
        pool, shard = make(max_size=1)
        waiters = [self.come_back(pool, shard, pool.now) for _ in range(3)]
        assert list(shard.waiters) == waiters

    def test_a_caller_that_comes_back_has_its_deadline_still(self, make):
        """So it waits on when a connect fails."""
        pool, shard = make(max_size=1)
        waiter = FakeFuture()
        shard.requeue(waiter, pool.now, pool.now, has_deadline=True)
        pool.refuse(shard)
        assert not waiter.done()
