"""What a contender's sessions cost the server, where the server runs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["server_seconds"]


async def server_seconds(dsn: str, names: Iterable[str]) -> dict[str, float] | None:
    """
    Add up the processor time that the sessions now open have had since they were opened.

    Args:
        dsn: The server.
        names: Application names of sessions.

    Returns:
        Seconds by application name; None where the server is not here or the kernel does not count so finely.
    """
    connection = await asyncpg.connect(dsn)
    try:
        sessions = await connection.fetch(
            "SELECT application_name, pid FROM pg_stat_activity WHERE application_name = ANY($1)", list(names)
        )
    finally:
        await connection.close()
    seconds = dict.fromkeys(names, 0.0)
    try:
        for name, pid in sessions:
            seconds[name] += _seconds_of(pid)
    except OSError:
        return None
    return seconds


def _seconds_of(pid: int) -> float:
    folder = Path("/proc", str(pid))
    if (folder / "comm").read_text().strip() != "postgres":
        raise ProcessLookupError(f"process {pid} is not a server's: the server is on another machine")
    # In nanoseconds; what ps and psutil read counts in steps of 10 ms, which is more than a round takes.
    return int((folder / "schedstat").read_text().split()[0]) * 1e-9
