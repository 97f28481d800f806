"""The formulas by which `doctor`, and `docs/guide/sizing.md`, tell how large a pool should be."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from loopaware_pool.cli.doctor import command as doctor
from loopaware_pool.cli.doctor.facts import Plan, Work
from loopaware_pool.cli.doctor.findings import Severity
from loopaware_pool.cli.doctor.size_checks import check_size
from loopaware_pool.cli.doctor.sizing import HEADROOM, busy_connections, largest_pool, needed_pool, waiting_share

PAGE = (Path(__file__).parents[1] / "docs" / "guide" / "sizing.md").read_text()


def erlang_c(size, busy):
    """As textbooks have it, with powers and factorials."""
    head = sum(busy**n / math.factorial(n) for n in range(size))
    tail = busy**size / math.factorial(size) * size / (size - busy)
    return tail / (head + tail)


@pytest.mark.parametrize("size", [1, 2, 10, 40])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.9, 0.999])
def test_the_share_of_those_who_wait_is_erlangs(size, part):
    """Computed in another way."""
    assert waiting_share(size, size * part) == pytest.approx(erlang_c(size, size * part))


def test_whoever_has_too_much_work_waits():
    """Beyond the size, the formula does not hold, and the queue has no end; large pools overflow nothing."""
    assert (waiting_share(10, 10), waiting_share(10, 11)) == (1, 1)
    assert waiting_share(5000, 4500) < 0.001


def test_a_pool_that_is_as_large_as_needed_has_headroom():
    """And one that is one smaller has not."""
    needed = needed_pool(1200, 0.02, 4)
    busy = busy_connections(1200, 0.02) / 4
    assert busy / needed <= HEADROOM < busy / (needed - 1)
    assert needed_pool(1, 0.001, 8) == 1


def test_the_largest_pool_is_the_one_that_fits():
    """In every process."""
    assert largest_pool(97, 4) * 4 <= 97 < (largest_pool(97, 4) + 1) * 4
    assert (largest_pool(3, 4), largest_pool(-5, 4)) == (0, 0)


@pytest.mark.parametrize(
    ("pool_size", "severity"), [(9, Severity.OK), (8, Severity.WARNING), (6, Severity.PROBLEM), (5, Severity.PROBLEM)]
)
def test_doctor_judges_the_size(pool_size, severity):
    """By the work: 1,200 leases a second of 20 ms keep 6 connections busy in each of 4 processes."""
    (found,) = check_size(Plan(pool_size, 4, Work(1200, 0.02)))
    assert found.severity is severity
    assert ("--pool-size 9" in found.remedy) == (severity is not Severity.OK)
    assert list(check_size(Plan(pool_size, 4))) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rate", "10"], "--rate and --hold go together"),
        (["--rate", "10", "--hold", "0"], "--hold 0: expected a number above 0"),
        (["--rate", "often", "--hold", "1"], "--rate often: expected a number above 0"),
        (["--rate", "inf", "--hold", "1"], "--rate inf: expected a number above 0"),
    ],
)
def test_work_that_makes_no_sense_is_refused(capsys, arguments, complaint):
    """Before anything is looked at."""
    assert doctor.main(arguments) == 2
    assert complaint in capsys.readouterr().err


def test_the_table_of_the_page_is_the_formulas():
    """Each cell, in percent."""
    parts = [int(part) / 100 for part in re.findall(r"(\d+) % busy \|", PAGE)]
    rows = re.findall(r"^\| (\d+) \|((?: [\d.]+ % \|)+)$", PAGE, re.MULTILINE)
    assert len(parts) == 5
    assert len(rows) == 5
    for size, cells in rows:
        shown = [float(cell) for cell in re.findall(r"([\d.]+) %", cells)]
        assert shown == [round(100 * waiting_share(int(size), int(size) * part), 1) for part in parts]


def test_the_example_of_the_page_is_the_formulas():
    """What the three lines come to."""
    assert f"max_size >= 1200 x 0.02 / 4 / {HEADROOM} = 8.6, so {needed_pool(1200, 0.02, 4)}" in PAGE
    assert f"max_size <= (100 - 3 - 10) / 4 = 21.75, so {largest_pool(100 - 3 - 10, 4)}" in PAGE
