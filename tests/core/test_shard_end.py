"""A shard is suspended, is closed, says goodbye."""

from __future__ import annotations

import pytest

from loopaware_pool._core.shard import GOODBYE_GRACE_SECONDS
from loopaware_pool._core.slot import SlotState
from shard_stories import PATIENCE, give_back, kill


class TestSuspension:
    def test_nobody_is_served_while_suspended(self, make):
        """Not from the idle, not by a release, not by connecting."""
        pool, shard = make(max_size=3)
        lent, idle = pool.with_idle(shard, 2)[::-1]
        assert shard.take(pool.now) is lent
        pool.shared.is_suspended = True
        assert shard.take(pool.now) is None
        waiter = pool.wait(shard)
        give_back(pool, shard, lent)
        pool.pass_time(1.0)
        assert not waiter.done()
        assert shard.idle == [idle, lent]
        assert shard.effects.opening == []

    def test_those_who_waited_are_served_on_resuming(self, make):
        """In their order, by the warmest; and connects are started for the rest."""
        pool, shard = make(max_size=4)
        cold, warm = pool.with_idle(shard, 2)
        pool.shared.is_suspended = True
        waiters = [pool.wait(shard) for _ in range(3)]
        pool.resume()
        assert [waiter.result for waiter in waiters] == [warm, cold, None]
        assert len(shard.effects.opening) == 1

    def test_resuming_finds_the_dead(self, make):
        """Connections that died during the suspension are all dropped, and those who waited get new ones."""
        pool, shard = make(max_size=3)
        kill(*pool.with_idle(shard, 3))
        pool.shared.is_suspended = True
        waiter = pool.wait(shard)
        pool.resume()
        assert shard.idle == []
        assert shard.counters.found_dead == 3
        assert pool.connect(shard) is waiter.result

    def test_with_nobody_waiting_resuming_changes_nothing(self, make):
        """The idle stay where they are, the warmest on top."""
        pool, shard = make()
        slots = pool.with_idle(shard, 3)
        pool.shared.is_suspended = True
        pool.resume()
        assert shard.idle == slots

    def test_a_closed_pool_does_not_resume(self, make):
        """Resuming concerns what is suspended."""
        pool, shard = make()
        pool.shared.is_suspended = True
        shard.shut(RuntimeError)
        pool.resume()
        assert not shard.is_open

    def test_a_resumption_that_comes_after_the_next_suspension_does_nothing(self, make):
        """A loop may hear of it late."""
        pool, shard = make()
        slots = pool.with_idle(shard, 2)
        pool.shared.is_suspended = True
        waiter = pool.wait(shard)
        shard.resume(pool.now)
        assert not waiter.done()
        assert shard.idle == slots

    def test_a_suspension_in_the_middle_of_a_resumption_ends_it(self, make):
        """Another thread may suspend the pool at any moment."""
        pool, shard = make()
        cold, warm = pool.with_idle(shard, 2)
        pool.shared.is_suspended = True
        first, second = pool.wait(shard), pool.wait(shard)
        serve = first.set_result

        def serve_and_suspend(slot):
            serve(slot)
            pool.shared.is_suspended = True

        first.set_result = serve_and_suspend
        pool.resume()
        assert (first.result, second.result) == (warm, None)
        assert shard.idle == [cold]

    def test_a_caller_is_not_served_before_those_who_waited_for_the_resumption(self, make):
        """Although its loop has yet to hear of it. What comes back goes to the first, too."""
        pool, shard = make(max_size=5)
        (lent,) = pool.lend(shard, 1)
        (idle,) = pool.with_idle(shard, 1)
        pool.shared.is_suspended = True
        first, second = pool.wait(shard), pool.wait(shard)
        pool.shared.is_suspended = False
        assert shard.take(pool.now) is None
        third = pool.wait(shard)
        assert len(shard.effects.opening) == 2, "one of the three can have the idle connection"
        give_back(pool, shard, lent)
        shard.resume(pool.now)
        assert (first.result, second.result, third.result) == (lent, idle, None)


class TestClosing:
    def test_a_pool_that_is_shut_closes_what_is_idle(self, make):
        """Politely; what is lent follows when it comes back, what is connecting when it has connected."""
        pool, shard = make(max_size=3)
        (lent,) = pool.lend(shard, 1)
        (idle,) = pool.with_idle(shard, 1)
        connecting = shard.open_one(pool.now)
        shard.shut(RuntimeError)
        assert not shard.is_open
        assert shard.effects.closing == [idle]
        give_back(pool, shard, lent)
        assert shard.effects.closing == [idle, lent]
        pool.connect(shard, connecting)
        assert shard.effects.closing == [idle, lent, connecting]
        for _ in range(3):
            pool.closed(shard)
        assert shard.effects.reasons == ["pool closed"] * 3
        assert not shard.slots
        assert pool.permits.in_use == 0

    def test_everybody_who_waits_is_told(self, make):
        """Each with an error of its own; and nobody's claim is left."""
        pool, shard = make(max_size=1)
        pool.lend(pool.shard(), 1)
        waiters = [pool.wait(shard) for _ in range(2)]
        waiters.append(cancelled := pool.wait(shard))
        cancelled.cancel()
        assert list(pool.permits.claims) == [shard]
        shard.shut(lambda: RuntimeError("closed"))
        told = [waiter.exception for waiter in waiters]
        assert isinstance(told[0], RuntimeError)
        assert told[0] is not told[1]
        assert not shard.waiters
        assert not pool.permits.claims

    def test_a_closed_pool_lends_nothing(self, make):
        """Nor does time do anything to it."""
        pool, shard = make(min_size=1)
        pool.with_idle(shard, 1)
        shard.shut(RuntimeError)
        assert shard.take(pool.now) is None
        pool.pass_time(100.0)
        assert shard.effects.opening == []

    def test_a_closing_connection_has_its_permit_until_it_is_gone(self, make):
        """It is a session on the server still: another one would be one too many."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        shard.retire(slot, "told so")
        waiter = pool.wait(shard)
        pool.pass_time(GOODBYE_GRACE_SECONDS / 2)
        assert (pool.permits.in_use, shard.effects.opening) == (1, [])
        pool.closed(shard)
        assert pool.connect(shard) is waiter.result

    def test_a_goodbye_that_takes_long_holds_nobody_up(self, make):
        """Those that callers wait for are cut, the oldest first, and no more than they need."""
        pool, shard = make(max_size=3)
        for slot in pool.lend(shard, 3):
            shard.retire(slot, "told so")
        pool.pass_time(5.0)
        oldest, *others = shard.effects.closing
        pool.wait(shard)
        assert shard.effects.closing == [oldest, *others]
        pool.pass_time(GOODBYE_GRACE_SECONDS)
        assert (oldest.state, shard.effects.closing) == (SlotState.GONE, others)
        assert len(shard.effects.opening) == 1

    def test_a_goodbye_that_nobody_waits_for_takes_its_time(self, make):
        """Nor is it cut for a caller who has gone."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        shard.retire(slot, "told so")
        shard.dequeue(pool.wait(shard))
        pool.pass_time(5.0)
        assert shard.effects.closing == [slot]

    def test_retiring_what_is_on_its_way_out_does_nothing(self, make):
        """The first reason stands."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        shard.retire(slot, "one")
        shard.retire(slot, "two")
        pool.closed(shard)
        shard.retire(slot, "three")
        assert shard.effects.reasons == ["one"]

    def test_a_connection_can_be_closed_without_a_goodbye(self, make):
        """At once, with its permit."""
        pool, shard = make(max_size=1)
        (slot,) = pool.lend(shard, 1)
        shard.retire(slot, "told so", politely=False)
        assert (slot.state, pool.permits.in_use) == (SlotState.GONE, 0)

    def test_a_goodbye_is_cut_although_another_loop_has_permits_too(self, make):
        """Whoever waits for a permit does not wait for what its own loop is closing."""
        pool, shard = make(max_size=2)
        pool.lend(pool.shard(), 1)
        (slot,) = pool.lend(shard, 1)
        shard.retire(slot, "told so")
        pool.wait(shard)
        pool.pass_time(GOODBYE_GRACE_SECONDS)
        assert slot.state is SlotState.GONE
        pool.deliver()
        assert len(shard.effects.opening) == 1


class TestGoodbyesElsewhere:
    @pytest.fixture(params=[PATIENCE, 60.0])
    def two(self, make, request):
        """A caller waits on one loop while the only connection says goodbye on another."""
        pool, there = make(max_size=1, patience=request.param)
        here = pool.shard()
        (slot,) = pool.lend(there, 1)
        there.retire(slot, "told so")
        return pool, here, there

    def test_a_goodbye_on_another_loop_holds_nobody_up(self, two):
        """The loop that waits asks the one that has a connection on its way out, which remembers it."""
        pool, here, there = two
        pool.wait(here)
        pool.deliver()
        assert (len(there.effects.closing), here.effects.opening) == (1, [])
        pool.pass_time(GOODBYE_GRACE_SECONDS)
        pool.deliver()
        assert (there.effects.closing, len(here.effects.opening)) == ([], 1)

    def test_one_on_a_loop_that_stands_still_is_cut_at_once(self, two):
        """Nobody is there to hear the server hang up."""
        pool, here, there = two
        there.effects.is_running = False
        pool.wait(here)
        pool.deliver()
        assert (there.effects.closing, len(here.effects.opening)) == ([], 1)
