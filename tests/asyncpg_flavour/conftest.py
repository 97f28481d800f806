"""What a program does with asyncpg's pool it does with ours: tests run on both, but for what only ours promises."""

from __future__ import annotations

import asyncpg
import pytest

import loopaware_pool.asyncpg


@pytest.fixture(params=[asyncpg.create_pool, loopaware_pool.asyncpg.create_pool], ids=["theirs", "ours"])
def create_pool(request):
    """Makes a pool: asyncpg's own, which shows what is right, or ours."""
    return request.param
