"""
Which host an asyncpg connect begins with.

asyncpg tries the hosts of a DSN one after the other, and its timeout is for all of them together. A host that accepts a
connection and says nothing, as a frozen server does, uses up all of it. So the next connect begins with the next host.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from loopaware_pool._core.asking import AskedPassword
from loopaware_pool._platform.conninfo import EMPTY_HOST, has_empty_host
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
# The first host, the one that follows it, and no arguments.
_AS_GIVEN: Final[tuple[int, int, dict[str, Any]]] = (0, 1, {})


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
        self._first = 0  # the number of the host to begin with
        self._hosts: list[tuple[str, int]] = []  # as they were given when the first of them was silent
        self._kept_until = 0.0

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """
        Connect as `asyncpg.connect` does, with its arguments.

        If any host will do, or a standby is only preferred, connects begin as given again when `KEPT_SECONDS` have
        passed without a timeout. If not, the hosts that will do are alike, and the order that has led to one is kept.
        Where other hosts are given, connects begin as given, too.

        Raises:
            asyncpg.ClientConfigurationError: A host in a list of hosts is empty.
            Exception: What `asyncpg.connect` raises.
        """
        first, following, hosts = self._order(*args, **kwargs) if self._first else _AS_GIVEN
        try:
            return await asyncpg.connect(*args, **(kwargs | hosts))
        except Exception as error:
            password = kwargs.get("password")
            is_blameless = isinstance(password, AskedPassword) and not password.is_answered
            if first == self._first and not is_blameless:  # else one that began with the same host has failed before
                if isinstance(error, TimeoutError):
                    self._timed_out(following, *args, **kwargs)
                elif first:
                    self._first = following
            dsn = args[0] if args else kwargs.get("dsn")
            if isinstance(error, IndexError) and has_empty_host(dsn or "", os.environ.get("PGHOST", "")):
                raise asyncpg.exceptions.ClientConfigurationError(EMPTY_HOST) from None
            raise

    def _order(self, *args: Any, **kwargs: Any) -> tuple[int, int, dict[str, Any]]:
        """
        Return the number of the host to begin with, that of the host which follows, and arguments for such a connect.

        Where a standby is preferred, that host is the only one: asyncpg would try all, the silent one among them,
        before it is content with a primary.
        """
        first, is_over = self._first, self._clock() >= self._kept_until
        hosts, wanted = _given(*args, **kwargs)
        is_alone = wanted == _PREFER_STANDBY
        if not first or hosts != self._hosts or (is_over and (is_alone or wanted == _ANY)):
            self._first = 0
            return _AS_GIVEN
        following = (first + 1) % (len(hosts) + is_alone)  # the last one is the first host alone, which 0 does not mean
        begin = first % len(hosts)
        hosts = hosts[begin:] + hosts[:begin]
        if is_alone:
            del hosts[1:]
        return first, following, {"host": [host for host, _ in hosts], "port": [port for _, port in hosts]}

    def _timed_out(self, following: int, *args: Any, **kwargs: Any) -> None:
        """Have the next connect with these arguments begin with host number *following*, if there is more than one."""
        self._hosts, _ = _given(*args, **kwargs)
        self._kept_until = self._clock() + KEPT_SECONDS
        self._first = following if len(self._hosts) > 1 else 0


def _given(dsn: str | None = None, **kwargs: Any) -> tuple[list[tuple[str, int]], str]:
    """Find the hosts of a connect with these arguments, and which of them will do."""
    return hosts_of(dsn, kwargs)
