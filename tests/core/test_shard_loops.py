"""The shards of several loops share what the pool may have open."""

from __future__ import annotations

import pytest

from fakes import NEVER
from loopaware_pool._core.slot import SlotState
from shard_stories import BROKEN, PATIENCE, RESET, WORN_OUT, give_back


class TestTwoLoops:
    @pytest.fixture
    def two(self, make):
        """A pool of two connections and two loops."""
        pool, here = make(max_size=2, patience=PATIENCE)
        return pool, here, pool.shard()

    def test_an_idle_connection_is_given_up_for_a_loop_that_has_none(self, two):
        """It is asked for, closed politely, and its permit opens one over there."""
        pool, here, there = two
        cold, warm = pool.with_idle(here, 2)
        waiter = pool.wait(there)
        assert there.effects.opening == []
        assert pool.messages == [("ask", here)]
        pool.deliver()
        assert here.effects.closing == [cold]
        assert here.idle == [warm]
        pool.closed(here)
        assert here.effects.reasons == ["given to another loop"]
        assert pool.messages == [("tell", there)]
        pool.deliver()
        assert pool.connect(there) is waiter.result
        assert (pool.permits.held(here), pool.permits.held(there)) == (1, 1)

    def test_a_connection_that_comes_free_is_given_up_for_a_loop_that_has_none(self, two):
        """At once, if nobody waits for it here."""
        pool, here, there = two
        slots = pool.lend(here, 2)
        pool.wait(there)
        give_back(pool, here, slots[0])
        assert here.effects.closing == [slots[0]]
        pool.closed(here)
        pool.deliver()
        give_back(pool, here, slots[1])
        assert here.idle == [slots[1]]

    def test_own_callers_come_first_within_patience(self, two):
        """As long as patience lasts; then a loop that has nothing gets its turn."""
        pool, here, there = two
        slots = pool.lend(here, 2)
        mine = [pool.wait(here) for _ in range(2)]
        pool.wait(there)
        give_back(pool, here, slots[0])
        assert mine[0].result is slots[0]
        pool.now += PATIENCE
        give_back(pool, here, slots[1])
        assert here.effects.closing == [slots[1]]
        assert not mine[1].done()
        pool.closed(here)
        assert here.effects.reasons == ["given to another loop"]

    def test_a_connection_opened_for_a_caller_serves_it_first(self, make):
        """Connects take longer than patience: if each new one were given up, two loops would connect for ever."""
        pool, here = make(max_size=1, patience=PATIENCE)
        there = pool.shard()
        mine, theirs = pool.wait(here), pool.wait(there)
        pool.pass_time(0.15)
        slot = pool.connect(here)
        assert mine.result is slot
        give_back(pool, here, pool.claim(here, mine))
        pool.closed(here)
        pool.deliver()
        pool.pass_time(0.15)
        assert pool.connect(there) is theirs.result

    def test_a_permit_that_is_not_needed_any_more_goes_back(self, two):
        """The caller left before the permit arrived: another loop may take it."""
        pool, here, there = two
        slots = pool.lend(here, 2)
        waiter = pool.wait(there)
        give_back(pool, here, slots[0], BROKEN)
        assert pool.permits.held(there) == 1
        there.dequeue(waiter)
        pool.deliver()
        assert there.effects.opening == []
        assert pool.permits.in_use == 1
        assert here.open_one(pool.now) is not None

    def test_a_caller_that_leaves_takes_its_claim_along(self, two):
        """No connection is closed for somebody who is gone."""
        pool, here, there = two
        slots = pool.lend(here, 2)
        there.dequeue(pool.wait(there))
        give_back(pool, here, slots[0])
        assert here.idle == [slots[0]]

    def test_a_caller_that_was_served_takes_its_claim_along(self, two):
        """Neither for somebody who got a connection of the own loop meanwhile."""
        pool, here, there = two
        (ours,), (theirs,) = pool.lend(here, 1), pool.lend(there, 1)
        pool.wait(there)
        give_back(pool, there, theirs)
        pool.now += 1.0
        give_back(pool, here, ours)
        assert here.idle == [ours]
        assert not pool.permits.claims

    def test_two_busy_loops_do_not_take_from_each_other(self, two):
        """Each has one of two connections and callers without end: nobody closes anything."""
        pool, here, there = two
        slots = [*pool.lend(here, 1), *pool.lend(there, 1)]
        for _ in range(20):
            for shard, slot in zip((here, there), slots, strict=True):
                waiter = pool.wait(shard)
                pool.pass_time(0.1)
                give_back(pool, shard, slot)
                assert pool.claim(shard, waiter) is slot
            pool.deliver()
        assert here.counters.closed == there.counters.closed == 0

    def test_a_loop_that_is_overdue_asks_again(self, two):
        """A loop that has a connection waits for patience before it takes another's idle one; a timer sees to it."""
        pool, here, there = two
        pool.with_idle(here, 1)
        pool.lend(there, 1)
        pool.wait(there)
        assert pool.messages == []
        assert there.effects.wake == pool.now + PATIENCE
        pool.pass_time(PATIENCE)
        assert pool.messages == [("ask", here)]
        pool.deliver()
        assert len(here.effects.closing) == 1

    def test_an_ask_for_what_has_been_lent_meanwhile_is_forgotten(self, two):
        """The connection is given up when it comes back."""
        pool, here, there = two
        pool.with_idle(here, 2)
        pool.wait(there)
        slots = [here.take(pool.now), here.take(pool.now)]
        pool.deliver()
        assert here.effects.closing == []
        give_back(pool, here, slots[0])
        assert here.effects.closing == [slots[0]]

    def test_a_failed_connect_gives_its_permit_to_the_loop_that_waits(self, two):
        """The permit changes hands, whatever ended its use."""
        pool, here, there = two
        pool.lend(here, 1)
        pool.wait(here)
        pool.wait(there)
        pool.refuse(here)
        assert pool.messages == [("tell", there)]
        pool.deliver()
        assert len(there.effects.opening) == 1
        assert pool.permits.in_use == 2

    def test_the_richer_loop_gives_to_one_that_is_overdue(self, make):
        """Although both have callers, and the one that gives waits for a permit as well."""
        pool, here = make(max_size=4, patience=PATIENCE)
        there = pool.shard()
        slots = pool.lend(here, 3)
        pool.lend(there, 1)
        pool.wait(here)
        pool.wait(there)
        pool.now += PATIENCE
        give_back(pool, here, slots[0])
        assert here.effects.closing == [slots[0]]

    def test_own_callers_come_first_however_old_the_connection_is(self, two):
        """Patience counts from when the other loop began to wait."""
        pool, here, there = two
        slots = pool.lend(here, 2)
        pool.now += 1.0
        mine = pool.wait(here)
        pool.wait(there)
        give_back(pool, here, slots[0])
        assert mine.result is slots[0]

    def test_a_suspended_loop_gives_nothing_up_for_itself(self, two):
        """Its own claim is no reason to close what comes back."""
        pool, here, there = two
        (slot,) = pool.lend(here, 1)
        pool.lend(there, 1)
        pool.wait(here)
        pool.shared.is_suspended = True
        pool.now += PATIENCE
        give_back(pool, here, slot)
        assert here.idle == [slot]

    def test_a_permit_that_was_waited_for_is_used_and_not_passed_on(self, two):
        """A third loop that waits gets the next one; who needs two claims again."""
        pool, here, there = two
        third = pool.shard()
        slots = pool.lend(here, 2)
        for shard in (there, there, third):
            pool.wait(shard)
        give_back(pool, here, slots[0], BROKEN)
        pool.deliver()
        assert (len(there.effects.opening), third.effects.opening) == (1, [])
        assert list(pool.permits.claims) == [third, there]


class TestStandingStill:
    """What another thread does in the place of a loop that does not run."""

    def test_nothing_is_opened(self, make):
        """Neither for callers, nor for the floor; a permit goes back, and all is made up for as soon as it runs."""
        pool, shard = make(min_size=1, max_size=2)
        shard.keep_floor(pool.now)
        pool.connect(shard)
        assert shard.take(pool.now) is not None
        shard.effects.is_running = False
        pool.wait(shard)
        assert pool.permits.take(shard)
        shard.permit_granted(pool.now)
        shard.discard(next(iter(shard.slots)), "lost")
        assert (shard.effects.opening, pool.permits.in_use) == ([], 0)
        shard.effects.is_running = True
        pool.pass_time(0.0)
        assert len(shard.effects.opening) == 1

    def test_nothing_is_asked(self, make):
        """An idle connection that waits for the answer to a ping would be out of everybody's reach."""
        pool, shard = make(max_size=1, keepalive=1.0)
        (slot,) = pool.with_idle(shard, 1)
        shard.effects.is_running = False
        shard.housekeeper.ping_all(pool.now)
        pool.pass_time(5.0)
        assert (shard.idle, shard.effects.pinging) == ([slot], [])
        shard.effects.is_running = True
        pool.pass_time(0.0)
        assert (shard.idle, shard.effects.pinging) == ([], [slot])


class TestLooks:
    def test_callers_that_have_waited_before_the_claim_are_no_reason_to_look_all_the_time(self, make):
        """As after a suspension. The loop's thread would do nothing else until a permit comes free."""
        pool, here = make(max_size=1, patience=PATIENCE)
        there = pool.shard()
        pool.lend(here, 1)
        pool.shared.is_suspended = True
        pool.wait(there)
        pool.now += 1.0
        pool.resume()
        assert there.effects.wake == pool.now + PATIENCE

    def test_without_patience_a_loop_still_pauses(self, make):
        """It would look all the time otherwise."""
        pool, here = make(max_size=1, patience=0.0)
        pool.lend(here, 1)
        there = pool.shard()
        pool.wait(there)
        assert there.effects.wake > pool.now

    def test_a_connection_that_is_idle_when_a_promise_lapses_is_given_up_then(self, make):
        """The promised permit went to a loop that had none, and the loop that waits looks much later."""
        pool, poor = make(max_size=5, patience=PATIENCE)
        rich, idle, new = pool.shard(), pool.shard(), pool.shard()
        pool.lend(poor, 1)
        slots = pool.lend(rich, 3)
        (last,) = pool.lend(idle, 1)
        pool.wait(poor)
        for _ in range(16):
            pool.pass_time(PATIENCE)
        mine = pool.wait(rich)
        give_back(pool, rich, slots[0])
        assert rich.effects.closing == [slots[0]]
        rich.dequeue(mine)
        pool.wait(new)
        pool.closed(rich)
        assert ("tell", new) in pool.messages
        pool.deliver()
        give_back(pool, idle, last)
        assert idle.idle == [last]
        for _ in range(2):
            pool.pass_time(PATIENCE / 2)
            pool.deliver()
        assert idle.effects.closing == [last]

    def test_who_does_not_react_is_not_asked_twice_in_a_row(self, make):
        """Its thread may be busy with something else for long, and another loop has an idle connection as well."""
        pool, busy = make(max_size=3, patience=PATIENCE)
        useful, here = pool.shard(), pool.shard()
        pool.with_idle(busy, 2)
        pool.with_idle(useful, 1)
        pool.wait(here)
        for _ in range(2):
            pool.pass_time(PATIENCE)
        assert pool.messages == [("ask", busy), ("ask", useful), ("ask", busy)]

    def test_no_loop_is_remembered_for_having_been_asked(self, make):
        """It may be gone."""
        pool, donor = make(max_size=1, patience=PATIENCE)
        here = pool.shard()
        (slot,) = pool.with_idle(donor, 1)
        for served in (False, True):
            waiter = pool.wait(here)
            assert here._asked_donor is donor
            if served:
                pool.deliver()
                pool.closed(donor, slot)
                pool.deliver()
            else:
                pool.messages.clear()
                waiter.cancel()
                here.dequeue(waiter)
            assert here._asked_donor is None

    def test_who_has_an_idle_connection_is_asked_before_who_waits_for_answers(self, make):
        """However many those are: a server that is silent may not answer for seconds."""
        pool, silent = make(max_size=3, patience=PATIENCE)
        useful, here = pool.shard(), pool.shard()
        pool.with_idle(silent, 2)
        pool.with_idle(useful, 1)
        silent.housekeeper.ping_all(pool.now)
        pool.wait(here)
        assert pool.messages == [("ask", useful)]


class TestCounts:
    def test_every_connection_is_counted_in_one_place(self, make):
        """The statistics tell each state, and callers in the queue."""
        pool, shard = make(max_size=6)
        lent, resetting, closing, reserved = pool.lend(shard, 4)
        pool.with_idle(shard, 1)
        give_back(pool, shard, resetting, RESET)
        give_back(pool, shard, closing, WORN_OUT)
        pool.shared.is_suspended = True
        waiters = [pool.wait(shard) for _ in range(3)]
        pool.shared.is_suspended = False
        give_back(pool, shard, reserved)
        assert waiters[0].result is reserved
        shard.grow(pool.now)
        stats = shard.stats("my loop")
        assert (stats.loop, stats.lent, stats.idle, stats.waiting) == ("my loop", 2, 1, 2)
        assert (stats.connecting, stats.resetting, stats.closing) == (1, 1, 1)
        assert stats.size == shard.size == 4
        assert lent.state is SlotState.LENT

    def test_statistics_do_not_change_afterwards(self, make):
        """They tell one moment: the counters in them are a copy."""
        pool, shard = make()
        before = shard.stats("loop")
        pool.lend(shard, 1)
        assert before.counters.acquired == 0
        assert shard.stats("loop").counters.acquired == 1

    def test_what_is_spare_is_what_nobody_waits_for(self, make):
        """While callers wait, as in a suspension, no idle connection is to spare."""
        pool, shard = make()
        pool.with_idle(shard, 2)
        assert shard.spare == 2
        pool.shared.is_suspended = True
        pool.wait(shard)
        assert shard.spare == 0

    def test_the_timer_is_set_only_for_earlier(self, make):
        """In steady use nobody touches it."""
        pool, shard = make()
        pool.with_idle(shard, 1)
        first = shard.effects.wake
        assert first < NEVER
        shard.effects.wake = "untouched"
        for _ in range(5):
            pool.now += 0.1
            give_back(pool, shard, shard.take(pool.now))
        shard.wake_by(first)
        assert shard.effects.wake == "untouched"

    def test_connections_are_in_use_while_a_caller_has_one(self, make):
        """Not by being idle, connecting or closing."""
        pool, shard = make(max_size=4)
        lent, closing = pool.lend(shard, 2)
        pool.with_idle(shard, 1)
        shard.open_one(pool.now)
        shard.retire(closing, "told so")
        assert shard.is_in_use()
        give_back(pool, shard, lent)
        assert not shard.is_in_use()
