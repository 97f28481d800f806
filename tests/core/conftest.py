from __future__ import annotations

import pytest

from fakes import FakePool


@pytest.fixture
def make():
    """Makes a pool with the settings given, and its first loop's shard."""

    def make(**settings):
        pool = FakePool(**settings)
        return pool, pool.shard()

    return make
