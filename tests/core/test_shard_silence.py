"""A shard whose server says nothing: it asks on its idle connections, and frees permits that wait for an answer."""

from __future__ import annotations

import pytest

from loopaware_pool._core.connect_pacing import STEP_SECONDS
from loopaware_pool._core.shard import LONGEST_ANSWER_SECONDS, READ_SECONDS, SILENT_SECONDS, SLOW_SECONDS
from loopaware_pool._core.slot import SlotState
from shard_stories import BROKEN, READY, RESET, RESET_SENT, WORN_OUT, give_back, kill


@pytest.fixture
def three(make):
    """Two connections that have been idle for long, and one that is lent."""
    pool, shard = make(max_size=3)
    (lent,) = pool.lend(shard, 1)
    idle = pool.with_idle(shard, 2)
    pool.pass_time(SILENT_SECONDS)
    return pool, shard, lent, idle


class TestDoubt:
    def test_one_that_comes_back_broken_has_the_idle_ones_asked(self, three):
        """Those of a server that has frozen look alive. Those that are seen dead are closed."""
        pool, shard, lent, (dead, alive) = three
        kill(dead)
        give_back(pool, shard, lent, BROKEN)
        assert (dead.state, shard.effects.pinging, shard.idle) == (SlotState.GONE, [alive], [])

    @pytest.mark.parametrize("check", [READY, WORN_OUT])
    def test_one_that_is_well_has_nobody_asked(self, three, check):
        """A connection that has only had its time says nothing about the server."""
        pool, shard, lent, idle = three
        give_back(pool, shard, lent, check)
        assert (shard.effects.pinging, shard.idle[:2]) == ([], idle)

    def test_one_that_was_heard_a_moment_ago_is_not_asked(self, three):
        """A program that closes each of its connections would else have a ping for each lease."""
        pool, shard, lent, (first, last) = three
        assert shard.take(pool.now) is last
        give_back(pool, shard, last)
        give_back(pool, shard, lent, BROKEN)
        assert (shard.effects.pinging, shard.idle) == ([first], [last])

    def test_a_reset_that_its_caller_does_not_wait_for_has_the_others_asked(self, three):
        """The time of its caller was up, and the server has not answered since."""
        pool, shard, lent, idle = three
        give_back(pool, shard, lent, RESET)
        assert shard.effects.pinging == []
        shard.left_to_pool(lent, pool.now, is_late=True)
        assert shard.effects.pinging == idle

    def test_a_caller_that_goes_early_leaves_no_doubt_but_a_permit(self, three):
        """It was cancelled: the server may be well. If it is silent, the permit is not kept from callers."""
        pool, shard, lent, idle = three
        give_back(pool, shard, lent, RESET)
        shard.left_to_pool(lent, pool.now, is_late=False)
        assert (shard.effects.pinging, shard.idle) == ([], idle)
        for _ in idle:
            shard.take(pool.now)
        pool.wait(shard)
        pool.run_for(SILENT_SECONDS)
        assert (lent.state, len(shard.effects.opening)) == (SlotState.GONE, 1)

    def test_a_reset_that_is_over_leaves_no_doubt(self, three):
        """It has ended in the moment in which its caller went."""
        pool, shard, lent, _ = three
        give_back(pool, shard, lent, RESET)
        shard.serviced(lent, pool.now)
        shard.left_to_pool(lent, pool.now, is_late=True)
        assert (shard.effects.pinging, len(shard.idle)) == ([], 3)

    def test_a_reset_that_is_never_answered_has_the_others_asked(self, make):
        """Half a minute after it was sent."""
        pool, shard = make(max_size=2)
        (lent,) = pool.lend(shard, 1)
        (idle,) = pool.with_idle(shard, 1)
        give_back(pool, shard, lent, RESET_SENT)
        pool.run_for(30.0)
        assert (lent.state, shard.effects.pinging) == (SlotState.GONE, [idle])

    def test_one_that_answers_serves_a_caller_who_came_meanwhile(self, make):
        """Nothing is opened in its place, although it could be: an answer comes within milliseconds."""
        pool, shard = make(max_size=3)
        (lent,) = pool.lend(shard, 1)
        (idle,) = pool.with_idle(shard, 1)
        pool.pass_time(SILENT_SECONDS)
        give_back(pool, shard, lent, BROKEN)
        waiter = pool.wait(shard)
        assert shard.effects.opening == []
        shard.serviced(idle, pool.now)
        assert waiter.result is idle

    def test_who_waits_for_an_answer_waits_for_no_other_caller(self, make):
        """So the first one who comes does not count towards `max_waiting`."""
        pool, shard = make(max_size=2)
        pool.lend(shard, 1)
        pool.with_idle(shard, 1)
        pool.pass_time(SILENT_SECONDS)
        shard.suspect(pool.now)
        counts = []
        for _ in range(2):
            pool.wait(shard)
            counts.append(shard.waiting_in_line(pool.now))
        assert counts == [0, 1]

    @pytest.mark.parametrize("seconds", [0.0625, 1.0])
    def test_a_server_far_away_has_twice_as_long_as_its_last_answer_took(self, make, seconds):
        """Else each timeout of a query would have connections opened in vain. A quarter of a second is the most."""
        pool, shard = make(max_size=3)
        (idle,) = pool.with_idle(shard, 1)
        shard.housekeeper.ping_all(pool.now)
        pool.pass_time(seconds)
        shard.serviced(shard.effects.pinging.pop(), pool.now)
        pool.pass_time(SILENT_SECONDS)
        shard.suspect(pool.now)
        pool.wait(shard)
        limit = min(2 * seconds, LONGEST_ANSWER_SECONDS)
        pool.pass_time(limit - STEP_SECONDS)
        assert (shard.effects.pinging, shard.effects.opening) == ([idle], [])
        pool.pass_time(STEP_SECONDS)
        assert len(shard.effects.opening) == 1

    def test_one_that_does_not_answer_at_once_lets_another_be_opened(self, make):
        """For a caller who waits."""
        pool, shard = make(max_size=3)
        (lent,) = pool.lend(shard, 1)
        pool.with_idle(shard, 1)
        pool.pass_time(SILENT_SECONDS)
        give_back(pool, shard, lent, BROKEN)
        pool.wait(shard)
        pool.pass_time(STEP_SECONDS)
        assert len(shard.effects.opening) == 1


class TestSilence:
    def test_callers_get_the_permits_of_those_that_do_not_answer(self, three):
        """After a second, the one first that was asked first, and no more than they need."""
        pool, shard, lent, (first, last) = three
        give_back(pool, shard, lent, RESET)
        shard.left_to_pool(lent, pool.now, is_late=True)
        for _ in range(2):
            pool.wait(shard)
        pool.run_for(SILENT_SECONDS - STEP_SECONDS)
        assert shard.effects.opening == []
        pool.run_for(STEP_SECONDS)
        assert [slot.state for slot in (lent, first, last)] == [SlotState.GONE, SlotState.GONE, SlotState.RESETTING]
        assert shard.effects.reasons == ["did not answer"] * 2
        assert len(shard.effects.opening) == 2

    def test_a_reset_in_passing_that_is_not_answered_frees_its_permit_too(self, make):
        """It has half a minute, if nobody waits."""
        pool, shard = make(max_size=1)
        (lent,) = pool.lend(shard, 1)
        give_back(pool, shard, lent, RESET_SENT)
        pool.run_for(2 * SILENT_SECONDS)
        assert lent.state is SlotState.RESETTING
        pool.wait(shard)
        pool.run_for(READ_SECONDS)
        assert (lent.state, len(shard.effects.opening)) == (SlotState.GONE, 1)

    def test_a_server_that_is_only_slow_keeps_them(self, three):
        """It has answered on another connection since. To connect anew would make it slower."""
        pool, shard, lent, (first, last) = three
        give_back(pool, shard, lent, BROKEN)
        pool.connect(shard, shard.open_one(pool.now))
        other = shard.take(pool.now)
        pool.pass_time(STEP_SECONDS)
        give_back(pool, shard, other)
        assert shard.take(pool.now) is other
        pool.wait(shard)
        pool.pass_time(2 * SILENT_SECONDS)
        assert [slot.state for slot in (first, last)] == [SlotState.RESETTING] * 2

    def test_a_slow_server_whose_resets_are_all_late_keeps_them(self, make):
        """A connection that its caller brings back, and that must be reset, shows as well that the server answers."""
        pool, shard = make(max_size=2)
        first, last = pool.lend(shard, 2)
        give_back(pool, shard, first, RESET_SENT)
        pool.wait(shard)
        pool.pass_time(SILENT_SECONDS / 2)
        give_back(pool, shard, last, RESET_SENT)
        pool.pass_time(SILENT_SECONDS / 2)
        assert first.state is SlotState.RESETTING

    def test_what_was_heard_counts_for_a_while_only(self, make):
        """A caller may return a connection that it has not used since the server froze."""
        pool, shard = make(max_size=2)
        first, unused = pool.lend(shard, 2)
        give_back(pool, shard, first, RESET)
        shard.left_to_pool(first, pool.now, is_late=True)
        pool.pass_time(STEP_SECONDS)
        give_back(pool, shard, unused)
        assert shard.take(pool.now) is unused
        pool.wait(shard)
        pool.run_for(SLOW_SECONDS - STEP_SECONDS)
        assert first.state is SlotState.RESETTING
        pool.run_for(STEP_SECONDS)
        assert (first.state, len(shard.effects.opening)) == (SlotState.GONE, 1)

    def test_nobody_who_waits_takes_nothing(self, three):
        """A ping then has its own time."""
        pool, shard, lent, idle = three
        give_back(pool, shard, lent, BROKEN)
        pool.pass_time(2 * SILENT_SECONDS)
        assert shard.effects.pinging == idle

    def test_a_reset_that_its_caller_waits_for_is_let_be(self, make):
        """The caller is to hear how it went, however long that takes."""
        pool, shard = make(max_size=1)
        (lent,) = pool.lend(shard, 1)
        give_back(pool, shard, lent, RESET)
        pool.wait(shard)
        pool.pass_time(2 * SILENT_SECONDS)
        assert shard.effects.resetting == [lent]

    def test_another_loop_gets_them_too(self, make):
        """What waits for an answer on one loop is no use to it, and a caller waits on another."""
        pool, shard = make(max_size=1)
        other = pool.shard()
        (lent,) = pool.lend(shard, 1)
        give_back(pool, shard, lent, RESET)
        shard.left_to_pool(lent, pool.now, is_late=True)
        pool.wait(other)
        pool.pass_time(SILENT_SECONDS)
        pool.deliver()
        pool.pass_time(SILENT_SECONDS)
        pool.deliver()
        assert (lent.state, len(other.effects.opening)) == (SlotState.GONE, 1)

    @pytest.mark.parametrize("check", [RESET, RESET_SENT])
    def test_a_loop_that_was_blocked_first_reads_what_has_come(self, make, check):
        """The answer came long ago. A caller that comes in the same moment takes nothing."""
        pool, shard = make(max_size=1)
        (lent,) = pool.lend(shard, 1)
        give_back(pool, shard, lent, check)
        if check is RESET:
            shard.left_to_pool(lent, pool.now, is_late=False)
        pool.now += 40.0  # while its caller computes
        waiter = pool.wait(shard)
        pool.pass_time(0.0)
        assert lent.state is SlotState.RESETTING
        (shard.serviced if check is RESET else shard.reset_answered)(lent, pool.now)
        assert waiter.result is lent

    @pytest.mark.parametrize("check", [RESET, RESET_SENT])
    def test_a_loop_that_was_blocked_gives_up_soon_if_nothing_has_come(self, make, check):
        """A tenth of a second later."""
        pool, shard = make(max_size=1)
        (lent,) = pool.lend(shard, 1)
        give_back(pool, shard, lent, check)
        if check is RESET:
            shard.left_to_pool(lent, pool.now, is_late=False)
        pool.now += 40.0
        pool.wait(shard)
        pool.run_for(READ_SECONDS)
        assert (lent.state, len(shard.effects.opening)) == (SlotState.GONE, 1)


class TestOtherHosts:
    def test_what_another_host_answers_says_nothing_of_one_that_is_silent(self, three):
        """Else the new primary's answers to callers would keep the permits with the old one."""
        pool, shard, lent, (first, last) = three
        give_back(pool, shard, lent, BROKEN)
        new = pool.connect(shard, shard.open_one(pool.now), address="another")
        assert shard.take(pool.now) is new
        for _ in range(2):
            pool.wait(shard)
        pool.run_for(SILENT_SECONDS / 2)
        give_back(pool, shard, new)
        pool.run_for(SILENT_SECONDS / 2)
        assert [slot.state for slot in (first, last)] == [SlotState.GONE, SlotState.RESETTING]

    @pytest.mark.parametrize("check", [RESET, RESET_SENT])
    def test_one_that_answers_after_a_failover_is_closed(self, make, check):
        """Its server has been replaced meanwhile: the newest connection leads to another."""
        pool, shard = make(max_size=3)
        (lent,) = pool.lend(shard, 1)
        answer = leave_unanswered(pool, shard, lent, check)
        pool.pass_time(STEP_SECONDS)
        pool.connect(shard, shard.open_one(pool.now), address="another")
        pool.pass_time(SILENT_SECONDS)
        answer(lent, pool.now)
        assert (lent.state, shard.effects.closing) == (SlotState.CLOSING, [lent])

    @pytest.mark.parametrize(
        ("address", "seconds", "opened_first"),
        [(None, SILENT_SECONDS, False), ("another", SILENT_SECONDS / 2, False), ("another", SILENT_SECONDS, True)],
        ids=["same host", "in time", "opened before"],
    )
    @pytest.mark.parametrize("check", [RESET, RESET_SENT])
    def test_one_that_answers_otherwise_is_kept(self, make, check, address, seconds, opened_first):
        """A network that was down for a moment costs no connection; nor do programs that spread them over hosts."""
        pool, shard = make(max_size=3)
        (lent,) = pool.lend(shard, 1)
        if opened_first:
            pool.connect(shard, shard.open_one(pool.now), address=address)
        answer = leave_unanswered(pool, shard, lent, check)
        if not opened_first:
            pool.pass_time(STEP_SECONDS)
            pool.connect(shard, shard.open_one(pool.now), address=address)
        pool.pass_time(seconds)
        answer(lent, pool.now)
        assert lent.state is SlotState.IDLE


def leave_unanswered(pool, shard, slot, check):
    """Return a connection whose reset nobody waits for; what is to be called when it is answered."""
    give_back(pool, shard, slot, check)
    if check is RESET_SENT:
        return shard.reset_answered
    shard.left_to_pool(slot, pool.now, is_late=False)
    return shard.serviced
