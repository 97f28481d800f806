"""
Which host an asyncpg connect begins with.

asyncpg tries the hosts of a DSN one after the other, and its timeout is for all of them together. A host that accepts a
connection and says nothing, as a frozen server does, uses up all of it. So the next connect begins with the next host.
"""

from __future__ import annotations

import os
from typing import Any, Final

import asyncpg

from loopaware_pool._platform.conninfo import EMPTY_HOST, has_empty_host
from loopaware_pool.asyncpg.internals import hosts_of

__all__ = ["HostOrder"]

# With these, it matters which host comes first, or that all are tried.
_ANY: Final = "any"
_PREFER_STANDBY: Final = "prefer-standby"


class HostOrder:
    """
    Begins with another host after each connect that has timed out.

    A host that is begun with for this reason may refuse: asyncpg then tries no other. So the next connect begins with
    another one again, and sooner or later with the first.
    """

    def __init__(self) -> None:
        self._first = 0

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """
        Connect as `asyncpg.connect` does, with its arguments.

        If any host will do, or a standby is only preferred, the connect after a successful one begins as given. If not,
        the hosts that will do are alike, and the order that has led to one is kept.

        Raises:
            asyncpg.ClientConfigurationError: A host in a list of hosts is empty.
            Exception: What `asyncpg.connect` raises.
        """
        first = self._first
        hosts, is_kept, following = _hosts_from(first, *args, **kwargs) if first else ({}, True, 1)
        try:
            connection = await asyncpg.connect(*args, **(kwargs | hosts))
        except Exception as error:
            # If not, another connect that began with the same host has failed before.
            if first == self._first and (first or isinstance(error, TimeoutError)):
                self._first = following
            dsn = args[0] if args else kwargs.get("dsn")
            if isinstance(error, IndexError) and has_empty_host(dsn or "", os.environ.get("PGHOST", "")):
                raise asyncpg.exceptions.ClientConfigurationError(EMPTY_HOST) from None
            raise
        if not is_kept:
            self._first = 0
        return connection


def _hosts_from(first: int, dsn: str | None = None, **kwargs: Any) -> tuple[dict[str, Any], bool, int]:
    """
    Return arguments for a connect that is to begin with host number *first*, whether to keep that order, and the number
    of the host that follows.

    Where a standby is preferred, that host is the only one: asyncpg would try all, the silent one among them, before it
    is content with a primary.
    """
    hosts, wanted = hosts_of(dsn, kwargs)
    if len(hosts) < 2:
        return {}, True, 0
    is_alone = wanted == _PREFER_STANDBY
    following = (first + 1) % (len(hosts) + is_alone)  # the last one is the first host alone, which 0 does not mean
    first %= len(hosts)
    hosts = hosts[first:] + hosts[:first]
    if is_alone:
        del hosts[1:]
    arguments = {"host": [host for host, _ in hosts], "port": [port for _, port in hosts]}
    return arguments, wanted not in (_ANY, _PREFER_STANDBY), following
