"""How the soak judges what it has seen: what grows is told from what only wavers."""

from __future__ import annotations

import random

import pytest

from torture.slopes import slope_per_hour

LOOKS = 360
MINUTES = [number / 12 for number in range(LOOKS)]


def noise(seed, size=1.0):
    """Such that each look resembles the one before it."""
    rng = random.Random(seed)
    value = 0.0
    for _ in range(LOOKS):
        value = 0.8 * value + rng.gauss(0, size)
        yield value


@pytest.mark.parametrize("seed", range(8))
def test_what_grows_by_more_than_the_bound_is_found_in_the_noise(seed):
    """20 an hour, of which the looks show 10, with a noise of nearly two."""
    values = [100 + 20 * minute / 60 + waver for minute, waver in zip(MINUTES, noise(seed), strict=True)]
    slope = slope_per_hour(MINUTES, values, bound=1.0)
    assert not slope.is_flat
    assert slope.low < 20 < slope.high
    assert "GROWS" in slope.text


def test_what_only_wavers_is_flat():
    """For nearly every noise: an interval of 95 % misses now and then, to both sides."""
    wrong = sum(not slope_per_hour(MINUTES, [*noise(seed)], bound=0.0).is_flat for seed in range(100))
    assert wrong <= 8


def test_what_only_grows_in_the_warm_up_is_flat():
    """Caches that fill, and stay full."""
    values = [min(minute, 9.0) for minute in MINUTES]
    slope = slope_per_hour(MINUTES, values, bound=0.0)
    assert (slope.per_hour, slope.low, slope.high, slope.is_flat) == (0.0, 0.0, 0.0, True)


def test_what_grows_by_less_than_matters_is_flat():
    """However sure it is."""
    values = [minute / 60 for minute in MINUTES]
    assert slope_per_hour(MINUTES, values, bound=1.1).is_flat
    assert not slope_per_hour(MINUTES, values, bound=0.9).is_flat


def test_a_leak_that_begins_late_is_found():
    """In the last half hour of one."""
    values = [max(0.0, minute - 15.0) for minute in MINUTES]
    assert not slope_per_hour(MINUTES, values, bound=1.0).is_flat


def test_too_few_looks_are_refused():
    """They would tell nothing."""
    with pytest.raises(ValueError, match="19 looks after the warm-up: expected 20 at least"):
        slope_per_hour(MINUTES[:28], MINUTES[:28], bound=1.0)
