"""A schema of our own on the server, gone afterwards."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["scratch_table"]


@asynccontextmanager
async def scratch_table(dsn: str, columns: str, select: str) -> AsyncIterator[str]:
    """
    Make a table with *columns*, fill it from *select*, and have the server look at it.

    Yields:
        Its name, with the schema's.
    """
    schema = f"loopaware_bench_{uuid4().hex[:12]}"
    table = f"{schema}.rows"
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            f"CREATE SCHEMA {schema}; CREATE TABLE {table} ({columns}); INSERT INTO {table} {select}"
        )
        await connection.execute(f"VACUUM ANALYZE {table}")
        yield table
    finally:
        await connection.execute(f"SET client_min_messages = warning; DROP SCHEMA IF EXISTS {schema} CASCADE")
        await connection.close()
