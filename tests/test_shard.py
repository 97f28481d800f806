"""Stories of one loop's share of a pool, told without a loop: what comes of each thing that can happen to it."""

from __future__ import annotations

import pytest

from fakes import NEVER, FakeFuture, FakePool
from loopaware_pool._core.config import IdleOrder
from loopaware_pool._core.shard import GOODBYE_GRACE_SECONDS
from loopaware_pool._core.slot import SlotState
from loopaware_pool._core.terms import Phase
from loopaware_pool.driver import Liveness, ReturnCheck

PATIENCE = 0.0625  # seconds; a sum of such is exact
READY, RESET, WORN_OUT, BROKEN = ReturnCheck.READY, ReturnCheck.RESET, ReturnCheck.WORN_OUT, ReturnCheck.BROKEN
RESET_SENT = ReturnCheck.RESET_SENT


@pytest.fixture
def make():
    """Makes a pool with the settings given, and its first loop's shard."""

    def make(**settings):
        pool = FakePool(**settings)
        return pool, pool.shard()

    return make


def give_back(pool, shard, slot, check=READY):
    shard.returned(slot, check, pool.now)


def kill(*slots):
    for slot in slots:
        slot.session.life = Liveness.DEAD


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
        shard.housekeeper.sweep(pool.now + lasts - 0.001)
        assert slot.state is SlotState.RESETTING
        shard.housekeeper.sweep(pool.now + lasts)
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
        shard.phase = Phase.SUSPENDED
        assert shard.growth_left == 0
        shard.phase = Phase.OPEN
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

    def test_who_waits_for_the_answer_of_a_silent_server_waits_in_line(self, make):
        """A second after the oldest reset has been sent, all its callers count."""
        pool, shard = make(max_size=2)
        first, second = pool.lend(shard, 2)
        give_back(pool, shard, first, RESET_SENT)
        pool.pass_time(0.5)
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
        pool.pass_time(20)
        give_back(pool, shard, second, RESET_SENT)
        pool.pass_time(15)
        assert (first.state, second.state) == (SlotState.GONE, SlotState.RESETTING)
        assert shard.effects.reasons == ["reset not answered"]

    def test_what_is_past_its_use_is_closed_without_waiting(self, make):
        """Its answer would be of no use to anybody."""
        pool, shard = make(max_size=2)
        expired, last = pool.lend(shard, 2)
        pool.terms.generation += 1
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
        pool.terms.generation += 1
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
        assert shard.effects.wake == pool.now + 30.0
        pool.now += 10.0
        give_back(pool, shard, second, RESET_SENT)
        pool.pass_time(20.0)
        assert (first.state, second.state) == (SlotState.GONE, SlotState.RESETTING)
        assert shard.effects.wake == pool.now + 10.0

    def test_an_answer_is_late_after_a_step_of_the_ramp(self, make):
        """To the moment: a connection is opened then for who waits."""
        pool, shard = make(max_size=2)
        (slot,) = pool.lend(shard, 1)
        give_back(pool, shard, slot, RESET_SENT)
        pool.wait(shard)
        assert (shard.effects.opening, shard.effects.wake) == ([], pool.now + 0.020)
        pool.pass_time(0.020)
        assert len(shard.effects.opening) == 1


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
        pool.terms.generation += 1
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
        pool.permits.resize(10)
        shard.resized(pool.now)
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


class TestAge:
    def test_an_expired_connection_is_replaced_when_it_is_idle(self, make):
        """Those of an earlier generation are closed when they are next looked at, and not lent."""
        pool, shard = make(max_size=2)
        old, lent = pool.with_idle(shard, 2)
        assert shard.take(pool.now) is lent
        pool.terms.generation += 1
        assert shard.take(pool.now) is None
        assert shard.effects.closing == [old]
        give_back(pool, shard, lent)
        assert shard.effects.closing == [old, lent]
        assert shard.idle == []

    def test_a_connection_opened_after_the_expiry_is_kept(self, make):
        """Expiry is no state of the pool: it concerns what was open then."""
        pool, shard = make()
        pool.terms.generation += 1
        (slot,) = pool.with_idle(shard, 1)
        assert shard.take(pool.now) is slot

    def test_an_expiry_outdates_what_is_open(self, make):
        """And nothing that is opened later."""
        pool, shard = make()
        (old,) = pool.with_idle(shard, 1)
        assert not shard.is_outdated(old)
        pool.terms.generation += 1
        (new,) = pool.with_idle(shard, 1)
        assert (shard.is_outdated(old), shard.is_outdated(new)) == (True, False)

    def test_a_connect_under_way_at_the_expiry_is_too_old(self, make):
        """It may have logged in with what was changed."""
        pool, shard = make(max_size=2)
        shard.open_one(pool.now)
        pool.terms.generation += 1
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
        pool.terms.generation += 1
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
        pool.reconfigure(shard, max_idle=10.0)
        assert shard.idle == [old]
        pool.pass_time(0.0)
        assert (lent, shard.idle, shard.effects.reasons) == (other, [], [])
        assert shard.effects.closing == [old]
        give_back(pool, shard, lent)
        assert shard.effects.wake == pool.now + 10.0

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
        assert shard.housekeeper.ping_all() == slots
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

    def test_another_limit_begins_a_period_of_its_own(self, three):
        """Another setting alone does not; and the timer is set, not for what is far away."""
        pool, shard, slots = three
        pool.pass_time(4.0)
        pool.reconfigure(shard, max_waiting=3)
        assert shard.effects.wake == pool.now
        pool.pass_time(0.0)
        assert shard.effects.wake == pool.now + 6.0
        pool.reconfigure(shard, max_idle=2.0)
        pool.pass_time(0.0)
        assert (shard.idle, shard.effects.wake) == (slots, pool.now + 2.0)
        pool.pass_time(2.0)
        assert shard.effects.closing == slots[:1]
        pool.reconfigure(shard, max_idle=0.0)
        pool.pass_time(100.0)
        assert shard.effects.closing == slots[:1]

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


class TestFloor:
    def test_the_floor_is_kept_once_it_is_asked_for(self, make):
        """A loop that only borrowed does not open `min_size` connections; one that opened the pool does."""
        pool, shard = make(min_size=2)
        pool.pass_time(10.0)
        assert shard.effects.opening == []
        shard.keep_floor(pool.now)
        assert len(shard.effects.opening) == 2

    def test_a_dead_floor_is_noticed_and_restored(self, make):
        """Within a second of its death, although nobody uses the pool."""
        pool, shard = make(min_size=2)
        pool.with_idle(shard, 2)
        shard.keep_floor(pool.now)
        kill(*shard.idle)
        assert shard.effects.wake <= pool.now + 1.0
        pool.pass_time(1.0)
        assert len(shard.effects.opening) == 2

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
        """Every process that uses a server does so when that has come back."""
        pool, shard = make(min_size=20, max_size=20)
        shard.keep_floor(pool.now)
        opened = [len(shard.effects.opening)]
        for _ in range(3):
            pool.pass_time(0.02)
            opened.append(len(shard.effects.opening))
        assert opened == [3, 6, 12, 20]

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
        assert len(shard.effects.opening) == 3

    def test_no_more_connects_for_the_floor_than_may_be_in_flight(self, make):
        """`max_connecting` holds for all."""
        pool, shard = make(min_size=20, max_size=20, max_connecting=2)
        shard.keep_floor(pool.now)
        for _ in range(5):
            pool.pass_time(0.01)
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
        pool.closed(other)
        pool.pass_time(1.0)
        assert len(shard.effects.opening) == 2

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
        pool, shard = make(min_size=2)
        shard.keep_floor(pool.now)
        assert (len(shard.effects.opening), shard.effects.wake) == (2, pool.now + 1.0)
        for _ in range(2):
            pool.connect(shard)
        pool.with_idle(shard, 1)
        pool.pass_time(1.0)
        assert shard.effects.wake == pool.now + 1.0

    def test_a_floor_that_lacks_more_is_looked_at_with_the_next_step(self, make):
        """Also where few connects may be in flight."""
        pool, shard = make(min_size=3, max_connecting=2)
        shard.keep_floor(pool.now)
        assert (len(shard.effects.opening), shard.effects.wake) == (2, pool.now + 0.020)

    def test_the_prober_for_the_floor_is_followed_by_nobody_until_it_ends(self, make):
        """While the server refuses, no step of the ramp is due."""
        pool, shard = make(min_size=2)
        shard.keep_floor(pool.now)
        pool.refuse(shard)
        pool.refuse(shard)
        pool.pass_time(2.0)
        assert (len(shard.effects.opening), shard.effects.wake) == (1, pool.now + 1.0)

    def test_a_floor_that_is_lost_again_is_restored_from_the_foot_of_the_ramp(self, make):
        """However fast it was restored the last time."""
        pool, shard = make(min_size=6, max_size=6)
        shard.keep_floor(pool.now)
        pool.pass_time(0.020)
        for _ in range(6):
            pool.connect(shard)
        pool.pass_time(1.0)
        kill(*shard.idle)
        pool.pass_time(1.0)
        assert len(shard.effects.opening) == 3

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

    def test_a_higher_floor_is_filled_at_once(self, make):
        """A few at a time, as any other, however small the pool was."""
        pool, shard = make(min_size=1, max_size=1)
        shard.keep_floor(pool.now)
        pool.connect(shard)
        pool.terms.min_size = 5
        pool.permits.resize(5)
        shard.resized(pool.now)
        assert (len(shard.effects.opening), shard.effects.wake) == (3, pool.now + 0.020)

    def test_a_larger_pools_new_loop_fills_the_floor_by_the_new_size(self, make):
        """Not by that with which the pool was made."""
        pool, _ = make(max_size=1)
        pool.terms.min_size = 5
        pool.permits.resize(5)
        new = pool.shard()
        new.keep_floor(pool.now)
        assert len(new.effects.opening) == 3

    def test_a_floor_that_is_filled_one_by_one_is_filled_without_pauses(self, make):
        """The next connect follows the last within a step of the ramp."""
        pool, shard = make(min_size=4, max_connecting=1)
        shard.keep_floor(pool.now)
        for _ in range(3):
            pool.connect(shard)
            pool.pass_time(0.020)
            assert len(shard.effects.opening) == 1


class TestSuspension:
    def test_nobody_is_served_while_suspended(self, make):
        """Not from the idle, not by a release, not by connecting."""
        pool, shard = make(max_size=3)
        lent, idle = pool.with_idle(shard, 2)[::-1]
        assert shard.take(pool.now) is lent
        shard.phase = Phase.SUSPENDED
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
        shard.phase = Phase.SUSPENDED
        waiters = [pool.wait(shard) for _ in range(3)]
        shard.resume(pool.now)
        assert [waiter.result for waiter in waiters] == [warm, cold, None]
        assert len(shard.effects.opening) == 1

    def test_resuming_finds_the_dead(self, make):
        """Connections that died during the suspension are all dropped, and those who waited get new ones."""
        pool, shard = make(max_size=3)
        kill(*pool.with_idle(shard, 3))
        shard.phase = Phase.SUSPENDED
        waiter = pool.wait(shard)
        shard.resume(pool.now)
        assert shard.idle == []
        assert shard.counters.found_dead == 3
        assert pool.connect(shard) is waiter.result

    def test_with_nobody_waiting_resuming_changes_nothing(self, make):
        """The idle stay where they are, the warmest on top."""
        pool, shard = make()
        slots = pool.with_idle(shard, 3)
        shard.phase = Phase.SUSPENDED
        shard.resume(pool.now)
        assert shard.phase is Phase.OPEN
        assert shard.idle == slots

    def test_a_closed_pool_does_not_resume(self, make):
        """Resuming concerns what is suspended."""
        pool, shard = make()
        shard.shut(RuntimeError)
        shard.resume(pool.now)
        assert shard.phase is Phase.CLOSED


class TestClosing:
    def test_a_pool_that_is_shut_closes_what_is_idle(self, make):
        """Politely; what is lent follows when it comes back, what is connecting when it has connected."""
        pool, shard = make(max_size=3)
        (lent,) = pool.lend(shard, 1)
        (idle,) = pool.with_idle(shard, 1)
        connecting = shard.open_one(pool.now)
        shard.shut(RuntimeError)
        assert not shard.is_open()
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
        here.phase = Phase.SUSPENDED
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
        shard.housekeeper.ping_all()
        pool.pass_time(5.0)
        assert (shard.idle, shard.effects.pinging) == ([slot], [])
        shard.effects.is_running = True
        pool.pass_time(0.0)
        assert (shard.idle, shard.effects.pinging) == ([], [slot])


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


class TestCounts:
    def test_every_connection_is_counted_in_one_place(self, make):
        """The statistics tell each state, and callers in the queue."""
        pool, shard = make(max_size=6)
        lent, resetting, closing, reserved = pool.lend(shard, 4)
        pool.with_idle(shard, 1)
        give_back(pool, shard, resetting, RESET)
        give_back(pool, shard, closing, WORN_OUT)
        shard.phase = Phase.SUSPENDED
        waiters = [pool.wait(shard) for _ in range(2)]
        shard.phase = Phase.OPEN
        give_back(pool, shard, reserved)
        assert waiters[0].result is reserved
        shard.grow(pool.now)
        stats = shard.stats("my loop")
        assert (stats.loop, stats.lent, stats.idle, stats.waiting) == ("my loop", 2, 1, 1)
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
        shard.phase = Phase.SUSPENDED
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
