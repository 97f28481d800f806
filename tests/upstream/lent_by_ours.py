"""A plugin for asyncpg's own tests of its connection: what they have is lent by a pool of ours."""

from __future__ import annotations

from typing import Any

from asyncpg import _testbase

from loopaware_pool.asyncpg import PoolConnectionProxy, create_pool


def set_up(case: Any) -> None:
    """Stand in for `ConnectedTestCase.setUp`, which connects; the pool ends with the others of a test."""
    _testbase.ClusterTestCase.setUp(case)
    wanted = getattr(getattr(type(case), case._testMethodName), "__connect_options__", {})
    pool = create_pool(min_size=0, max_size=1, **case.get_connection_spec(dict(wanted)))
    case._pools.append(pool)

    async def lend() -> PoolConnectionProxy:
        await pool
        return await pool.acquire()

    case.con = case.loop.run_until_complete(lend())
    case.server_version = case.con.get_server_version()


_testbase.ConnectedTestCase.setUp = set_up
