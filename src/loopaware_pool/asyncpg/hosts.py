"""
Which host an asyncpg connect begins with.

asyncpg tries the hosts of a DSN one after the other, and its timeout is for all of them together. A host that accepts a
connection and says nothing, as a frozen server does, uses up all of it. So the next connect begins with the next host.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import asyncpg

from loopaware_pool._core.asking import AskedPassword
from loopaware_pool.asyncpg.internals import hosts_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HostOrder"]

# With these, it matters which host comes first, or that all are tried.
_ANY: Final = "any"
_PREFER_STANDBY: Final = "prefer-standby"
# How long another order than the given one is kept with these, counted from the last timeout. A shorter time has more
# connects wait for a host that is still silent, a longer one has connects pass over a host that is back.
KEPT_SECONDS: Final = 60.0


class HostOrder:
    """
    Begins with another host after each connect that has timed out.

    A host that is begun with for this reason may refuse: asyncpg then tries no other. So the next connect begins with
    another one again, and sooner or later with the first.

    Args:
        clock: Tells monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._first = 0
        self._kept_until = 0.0

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """
        Connect as `asyncpg.connect` does, with its arguments.

        If any host will do, or a standby is only preferred, connects begin as given again when `KEPT_SECONDS` have
        passed without a timeout. If not, the hosts that will do are alike, and the order that has led to one is kept.

        Raises:
            asyncpg.ClientConfigurationError: A host in a list of hosts is empty.
            Exception: What `asyncpg.connect` raises.
        """
        first = self._first
        hosts, is_kept, following = _hosts_from(first, *args, **kwargs) if first else ({}, True, 1)
        if not is_kept and self._clock() >= self._kept_until:
            self._first = first = 0
            hosts, following = {}, 1
        try:
            return await asyncpg.connect(*args, **(kwargs | hosts))
        except Exception as error:
            password = kwargs.get("password")
            if not isinstance(password, AskedPassword) or password.is_answered:
                self._failed(error, first, following)
            if isinstance(error, IndexError) and _has_empty_host(*args, **kwargs):
                raise asyncpg.exceptions.ClientConfigurationError(
                    "a host is empty in the list of hosts of the connection string, or of PGHOST: expected "
                    "'first-host:5432,second-host:5432'"
                ) from None
            raise

    def _failed(self, error: Exception, first: int, following: int) -> None:
        """Have the next connect begin with host number *following*, if this one, which began with *first*, says so."""
        if first != self._first:  # another connect that began with the same host has failed before
            return
        has_timed_out = isinstance(error, TimeoutError)
        if has_timed_out:
            self._kept_until = self._clock() + KEPT_SECONDS
        if first or has_timed_out:
            self._first = following


def _hosts_from(first: int, dsn: str | None = None, **kwargs: Any) -> tuple[dict[str, Any], bool, int]:
    """
    Return arguments for a connect that is to begin with host number *first*, whether that order may be kept for good,
    and the number of the host that follows.

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


def _has_empty_host(dsn: str | None = None, **_: Any) -> bool:
    """Whether a list of hosts that asyncpg has read has an empty one."""
    parts = urlsplit(dsn or "")
    lists = [parts.netloc.rpartition("@")[2], *parse_qs(parts.query).get("host", ()), os.environ.get("PGHOST", "")]
    return any("" in hosts.split(",") for hosts in lists if hosts)
