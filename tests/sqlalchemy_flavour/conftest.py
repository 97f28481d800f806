from __future__ import annotations

import pytest

from engines import Engines


@pytest.fixture(params=["asyncpg", "psycopg"])
def engines(request: pytest.FixtureRequest, dsn: str) -> Engines:
    """Makes engines on our pool, with each driver."""
    return Engines(dsn, request.param)
