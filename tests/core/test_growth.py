"""How fast connects follow each other, in exact numbers."""

from __future__ import annotations

import pytest

from loopaware_pool._core.connect_pacing import MinSizeBackoff, SlowStart

BEGAN = 50.0


def never_early():
    """A draw that shortens no pause."""
    return 0.0


def allowances(ramp, seconds):
    return [ramp.allowance(BEGAN + after) for after in seconds]


def test_the_ramp_doubles_every_ten_milliseconds():
    """Three connects may be in flight at first, and twice as many after each further 20 ms of waiting."""
    ramp = SlowStart(1000, never_early)
    times = [0, 0.0199, 0.020, 0.0399, 0.040, 0.060, 0.080, 0.100]
    assert allowances(ramp, times) == [3, 3, 6, 6, 12, 24, 48, 96]


def test_a_step_counts_although_sums_of_seconds_are_not_exact():
    """Steps that a timer takes one by one count in full, whatever floating point makes of their sum."""
    ramp = SlowStart(1000, never_early)
    now, found = BEGAN, []
    for _ in range(6):
        found.append(ramp.allowance(now))
        now += 0.020
    assert found == [3, 6, 12, 24, 48, 96]


@pytest.mark.parametrize(("ceiling", "expected"), [(1, [1, 1, 1]), (4, [3, 4, 4]), (100, [3, 6, 100])])
def test_the_ramp_ends_at_its_ceiling(ceiling, expected):
    """No more connects than the ceiling may be in flight, however long callers wait."""
    assert allowances(SlowStart(ceiling, never_early), [0, 0.020, 3600]) == expected


def test_the_ramp_begins_with_the_first_caller():
    """It counts from when it is first asked, not from when it was made."""
    ramp = SlowStart(1000, never_early)
    assert ramp.allowance(999.0) == 3
    assert ramp.allowance(999.020) == 6


def test_the_ramp_begins_anew_with_new_demand():
    """When nobody waits any more, the next to wait is at the foot of the ramp."""
    ramp = SlowStart(1000, never_early)
    assert allowances(ramp, [0, 0.100]) == [3, 96]
    ramp.demand_ended()
    assert allowances(ramp, [0.110, 0.130]) == [3, 6]


def test_a_time_before_the_ramp_began_is_its_foot():
    """A caller that lost what it was handed queues with its old time, when another has begun the ramp since."""
    ramp = SlowStart(1000, never_early)
    ramp.allowance(BEGAN)
    assert ramp.allowance(BEGAN - 1) == 3


def test_a_refused_connect_leaves_one_prober():
    """After a refusal one connect at a time is allowed, for however long callers have waited."""
    ramp = SlowStart(1000, never_early)
    ramp.allowance(BEGAN)
    ramp.refused(BEGAN + 1)
    assert allowances(ramp, [1.0, 1.05, 60.0]) == [1, 1, 1]


def test_the_prober_pauses_for_longer_each_time():
    """The pauses are 50, 100, 200, 400, then 500 ms, and never longer."""
    ramp = SlowStart(10, never_early)
    pauses = []
    for _ in range(40):
        ramp.refused(BEGAN)
        pauses.append(round(ramp.probe_at - BEGAN, 6))
    assert pauses[:6] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert set(pauses[6:]) == {0.5}


def test_a_connection_ends_the_pauses():
    """Once a connect ends well, the next one may follow at once, and the next refusal starts with 50 ms."""
    ramp = SlowStart(1000, never_early)
    for _ in range(5):
        ramp.refused(BEGAN)
    ramp.succeeded()
    assert ramp.probe_at <= 0.0
    ramp.refused(BEGAN)
    assert ramp.probe_at == BEGAN + 0.05


def test_after_a_refusal_each_answer_allows_one_more():
    """However slow the answers are: the server may be busy with the connects of other processes."""
    ramp = SlowStart(1000, never_early)
    ramp.refused(BEGAN)
    allowed = []
    for _ in range(4):
        ramp.succeeded()
        allowed.append(ramp.allowance(BEGAN + 60))
    assert allowed == [2, 3, 3, 3]
    assert ramp.allowance(BEGAN + 120) == 5
    ramp.demand_ended()
    assert allowances(ramp, [0, 0.020]) == [3, 6]


def test_the_floor_waits_for_the_answer_to_its_first_connect():
    """No caller waits for it."""
    ramp = SlowStart(1000, never_early, waits_for_answers=True)
    assert allowances(ramp, [0, 60]) == [1, 1]
    ramp.succeeded()
    assert ramp.allowance(BEGAN + 60) == 2
    ramp.demand_ended()
    assert allowances(ramp, [0, 60]) == [1, 1]


@pytest.mark.parametrize(
    ("draw", "probe_seconds", "floor_seconds"), [(0.0, 0.5, 60.0), (0.5, 0.375, 45.0), (1.0, 0.25, 30.0)]
)
def test_pauses_are_shortened_at_random(draw, probe_seconds, floor_seconds):
    """By half at most, so that processes that have lost a server together do not come back together."""
    ramp, pace = SlowStart(1000, lambda: draw), MinSizeBackoff(lambda: draw)
    for _ in range(10):
        ramp.refused(BEGAN)
        pace.failed(BEGAN)
    assert (ramp.probe_at, pace.retry_at) == (BEGAN + probe_seconds, BEGAN + floor_seconds)


def test_the_end_of_demand_does_not_end_the_pauses():
    """A server that refuses is asked by one prober also for the callers that come later."""
    ramp = SlowStart(1000, never_early)
    ramp.refused(BEGAN)
    ramp.demand_ended()
    assert ramp.probe_at == BEGAN + 0.05
    assert ramp.allowance(BEGAN + 0.05) == 1


def test_the_floor_is_tried_again_after_longer_and_longer():
    """The pauses are 1, 2, 4, 8, 16, 32 s, then a minute, and never longer."""
    pace = MinSizeBackoff(never_early)
    pauses = []
    for _ in range(9):
        pace.failed(BEGAN)
        pauses.append(pace.retry_at - BEGAN)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_a_connection_for_the_floor_shortens_the_pauses():
    """Once one ends well, the next failure is followed by a second's pause again."""
    pace = MinSizeBackoff(never_early)
    for _ in range(4):
        pace.failed(BEGAN)
    pace.succeeded()
    assert pace.retry_at == 0.0
    pace.failed(BEGAN)
    assert pace.retry_at == BEGAN + 1.0


def test_the_floor_may_be_tried_at_once():
    """Before anything has failed there is no pause."""
    assert MinSizeBackoff(never_early).retry_at == 0.0
    assert SlowStart(1, never_early).probe_at == 0.0
