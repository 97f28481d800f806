"""For all tests of many loops."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True)
def _without_collector(server):
    """The collector may not help: what is left behind stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()  # what it has to say, it says of this test
