"""Many processes that lose one server at the same moment, in simulated time: how many connects come together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.herd import LOSSES, run

# A third of the processes, so that a test takes less than a second.
FEWER = [replace(scenario, processes=100, watch_seconds=4.0) for scenario in LOSSES]


@pytest.mark.parametrize("scenario", [FEWER[0], FEWER[1], FEWER[5]], ids=lambda scenario: scenario.name)
def test_processes_do_not_come_back_all_at_once(scenario):
    """The server has less than half as many connects to do at one time as if each process were alone."""
    ours, alone = run(scenario), run(scenario, "each process by itself")
    assert ours.most_at_once * 2 < alone.most_at_once
    assert ours.failed_callers == 0


@pytest.mark.parametrize("scenario", [FEWER[0], FEWER[5]], ids=lambda scenario: scenario.name)
def test_all_of_them_come_back(scenario):
    """Each has its `min_size` again in the end, or more."""
    assert len(run(scenario).connects) >= scenario.processes * scenario.min_size
