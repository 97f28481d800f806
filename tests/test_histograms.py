"""Durations by bucket: how they add up, and what can be told from them."""

from __future__ import annotations

import pytest

from loopaware_pool.stats import BUCKETS_SECONDS, Counters, Histogram


def of(**counts):
    """A histogram with so many in the buckets of so many milliseconds; `more` is the last."""
    bounds = [f"ms{bound * 1000:g}" for bound in BUCKETS_SECONDS]
    return Histogram([counts.pop(bound, 0) for bound in bounds] + [counts.pop("more", 0)])


def test_histograms_add_up_bucket_by_bucket():
    """And go back, though never below nothing."""
    assert of(ms1=1, ms50=2).plus(of(ms1=3, more=1)) == of(ms1=4, ms50=2, more=1)
    assert of(ms1=4, ms50=2).minus(of(ms1=3, more=1)) == of(ms1=1, ms50=2)


def test_counters_add_up_and_go_back_in_all_their_parts():
    """Numbers, histograms, and counts by reason; neither operand is changed."""
    one = Counters(began_at_once=2, wait_times=of(ms1=2), closed=3, closed_because={"idle": 3})
    assert (one.acquired, one.waited, one.acquire_times.counts[0]) == (4, 2, 2)
    other = Counters(began_at_once=1, wait_times=of(ms5=1), closed=3, closed_because={"idle": 1, "expired": 2})
    both = one.plus(other)
    assert both == Counters(
        began_at_once=3, wait_times=of(ms1=2, ms5=1), closed=6, closed_because={"idle": 4, "expired": 2}
    )
    assert both.minus(other) == Counters(
        began_at_once=2, wait_times=of(ms1=2), closed=3, closed_because={"idle": 3, "expired": 0}
    )
    assert one.closed_because == {"idle": 3}


@pytest.mark.parametrize(
    ("counts", "percent", "seconds"),
    [
        ({}, 50, None),
        ({"ms1": 99, "ms50": 1}, 50, 0.001),
        ({"ms1": 99, "ms50": 1}, 99, 0.001),
        ({"ms1": 99, "ms50": 1}, 99.5, 0.05),
        ({"ms1": 1, "more": 1}, 100, float("inf")),
    ],
)
def test_a_percentile_is_the_upper_bound_of_its_bucket(counts, percent, seconds):
    """The most that so many of a hundred have taken."""
    assert of(**counts).percentile(percent) == seconds


@pytest.mark.parametrize("counts", [[], [0] * 16, [0] * 18])
def test_a_histogram_has_as_many_counts_as_buckets(counts):
    """Those of another release may have others, and would be misread."""
    with pytest.raises(ValueError, match="expected 17 numbers"):
        Histogram(counts)
