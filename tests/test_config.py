"""The settings of a pool: what is accepted, and what an error says of what is not."""

from __future__ import annotations

import dataclasses
import math

import pytest

from loopaware_pool._core.checks import check_number
from loopaware_pool._core.config import PoolConfig

SIZES = {"min_size": 1, "init_size": 1, "max_size": 2}
SECONDS = ["max_idle", "max_lifetime", "keepalive", "patience"]
OPTIONAL_SECONDS = ["shed_after", "leak_threshold", "close_timeout"]


def config(**settings):
    return PoolConfig(**{**SIZES, **settings})


def test_sizes_are_all_it_takes():
    """Every limit is off by default, except for the tenth that lifetimes would vary by."""
    made = config()
    off = {name: getattr(made, name) for name in ("max_idle", "max_lifetime", "keepalive", "max_waiting")}
    assert set(off.values()) == {0}
    for name in (*OPTIONAL_SECONDS, "max_connecting", "on_event"):
        assert getattr(made, name) is None
    assert (made.lifetime_jitter, made.patience) == (0.1, 0.05)


def test_a_pool_without_a_name_gets_a_number():
    """The names are "pool-N", each used once."""
    first, second = config().name, config().name
    assert first != second
    assert first.startswith("pool-")
    assert first.removeprefix("pool-").isdigit()


def test_settings_cannot_be_changed():
    """A pool's settings are fixed when they have been checked."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().max_size = 5


@pytest.mark.parametrize("sizes", [(0, 0, 1), (0, 5, 5), (5, 5, 5), (1, 3, 5)])
def test_sizes_in_order_are_accepted(sizes):
    """`min_size` <= `init_size` <= `max_size`, with 0 for a pool that starts empty."""
    made = config(**dict(zip(SIZES, sizes, strict=True)))
    assert (made.min_size, made.init_size, made.max_size) == sizes


@pytest.mark.parametrize("sizes", [(2, 1, 5), (1, 6, 5), (6, 6, 5)])
def test_sizes_out_of_order_are_refused(sizes):
    """The message tells all three, and the order expected."""
    settings = dict(zip(SIZES, sizes, strict=True))
    with pytest.raises(ValueError) as refusal:
        config(**settings)
    assert all(f"{name}={size}" in str(refusal.value) for name, size in settings.items())
    assert "min_size <= init_size <= max_size" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "least"), [("min_size", 0), ("init_size", 0), ("max_size", 1), ("max_waiting", 0), ("max_connecting", 1)]
)
def test_counts_below_the_least_are_refused(name, least):
    """The message tells the argument, the value, and the least allowed."""
    with pytest.raises(ValueError, match=f"{name}={least - 1}: expected {least} or more"):
        config(**{name: least - 1})


@pytest.mark.parametrize("name", ["min_size", "init_size", "max_size", "max_waiting", "max_connecting"])
@pytest.mark.parametrize("value", [1.0, "1", True, math.nan, [1]], ids=repr)
def test_a_count_is_a_whole_number(name, value):
    """Neither a float, nor a string, nor True passes for a count."""
    with pytest.raises(TypeError, match=f"{name}="):
        config(**{name: value})


@pytest.mark.parametrize("name", SECONDS + OPTIONAL_SECONDS)
@pytest.mark.parametrize("value", [0, 0.0, 1, 0.001, 1e9], ids=repr)
def test_seconds_are_any_finite_number(name, value):
    """Whole or not, from 0 on."""
    assert getattr(config(**{name: value}), name) == value


@pytest.mark.parametrize("name", SECONDS + OPTIONAL_SECONDS)
@pytest.mark.parametrize("value", [-1, -0.001, math.inf, -math.inf, math.nan], ids=repr)
def test_seconds_that_make_no_sense_are_refused(name, value):
    """Negative, infinite or not a number: the message says how to turn the limit off instead."""
    with pytest.raises(ValueError, match=f"{name}={value!r}: .*turns it off"):
        config(**{name: value})


@pytest.mark.parametrize("name", SECONDS + OPTIONAL_SECONDS)
@pytest.mark.parametrize("value", ["1", True, [1.0], 1j], ids=repr)
def test_seconds_are_numbers(name, value):
    """Anything else is of the wrong type."""
    with pytest.raises(TypeError, match=f"{name}="):
        config(**{name: value})


@pytest.mark.parametrize("name", SECONDS)
def test_limits_that_0_turns_off_are_never_none(name):
    """None is how the others are turned off."""
    with pytest.raises(TypeError, match=f"{name}=None: .*0 turns it off"):
        config(**{name: None})


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 0.999])
def test_jitter_is_a_fraction(value):
    """From 0 on, and less than all of the lifetime."""
    assert config(lifetime_jitter=value).lifetime_jitter == value


@pytest.mark.parametrize("value", [1, 1.0, -0.1, math.nan, math.inf])
def test_jitter_that_makes_no_sense_is_refused(value):
    """A lifetime of nothing, or less, is none."""
    with pytest.raises(ValueError, match="lifetime_jitter="):
        config(lifetime_jitter=value)


@pytest.mark.parametrize("value", ["0.1", None, True])
def test_jitter_is_a_number(value):
    """As with all other numbers, a value of another type is a TypeError."""
    with pytest.raises(TypeError, match="lifetime_jitter="):
        config(lifetime_jitter=value)


@pytest.mark.parametrize("value", [b"pool", 5, ["pool"]])
def test_a_name_is_a_string(value):
    """It goes into messages and metrics as it is."""
    with pytest.raises(TypeError, match="name="):
        config(name=value)


def test_a_name_is_not_empty():
    """An empty one would name nothing."""
    with pytest.raises((TypeError, ValueError), match="name=''"):
        config(name="")


def test_a_listener_can_be_called():
    """Anything callable may listen; anything else is refused at once, not at the first event."""
    assert config(on_event=print).on_event is print
    with pytest.raises(TypeError, match="on_event='print'"):
        config(on_event="print")


@pytest.mark.parametrize("value", [0, -1, 2.5, math.inf])
def test_a_call_may_have_any_number_for_a_timeout(value):
    """asyncio takes a timeout in the past, and an endless one; so does a call."""
    check_number("timeout", value)


@pytest.mark.parametrize("value", ["1", True, None, [1]], ids=repr)
def test_a_timeout_is_a_number(value):
    """Anything else is refused before the caller waits."""
    with pytest.raises(TypeError, match="timeout="):
        check_number("timeout", value)


def test_nan_is_no_timeout():
    """Every comparison with it is false, so it would never end."""
    with pytest.raises(ValueError, match="timeout=nan"):
        check_number("timeout", math.nan)
