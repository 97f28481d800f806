"""Mends that can be taken out, to see whether the defects they mend are found."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from loopaware_pool._core import shard
from loopaware_pool._core.acquire import Queue
from loopaware_pool._core.shard import Shard
from loopaware_pool._platform import event_loops
from loopaware_pool.asyncpg import reset_messages as asyncpg_reset
from loopaware_pool.asyncpg import session as asyncpg_session
from loopaware_pool.asyncpg.session import AsyncpgSession
from loopaware_pool.driver import ReturnCheck
from loopaware_pool.psycopg import options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["MENDS"]


def _patched(*changes: tuple[Any, str, Any]) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def patch() -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, replacement in changes:
                stack.enter_context(mock.patch.object(owner, name, replacement))
            yield

    return patch


_send_reset, _retire, _prepare_reset = AsyncpgSession._send_reset, Shard.retire, AsyncpgSession.prepare_reset
_reset_statements = asyncpg_reset.reset_statements


def _send_and_lend(*args: Any, **options: Any) -> ReturnCheck:
    """Whatever the lease has left."""
    _send_reset(*args, **options)
    return ReturnCheck.READY


async def _have_no_guard(_: AsyncpgSession) -> None:
    """So that the reset is sent without one."""


def _reset_all_last(*args: Any) -> tuple[str, ...]:
    """Where the time limit of the lease is that of its whole reset."""
    first, *others = _reset_statements(*args)
    return (*others, first)


def _keep_no_callbacks(session: AsyncpgSession, _: Any) -> None:
    session._query_loggers = session._termination_listeners = frozenset()
    session._starts_exposed = True  # so that each lease counts as one that may have changed them


def _span_that_never_is_0(seconds: float) -> float:
    return 0.0 if seconds == float("inf") else seconds


def _count_own_query(session: AsyncpgSession, user: Any) -> None:
    _prepare_reset(session, user)
    session._uncounted_queries += user is not None


def _retire_at_once(shard: Shard, slot: Any, reason: str, *, politely: bool = True) -> None:
    _retire(shard, slot, reason, politely=politely and reason != "setup failed")


MENDS = {
    "waits-for-answers": _patched(
        (AsyncpgSession, "_send_reset", _send_and_lend),
        (AsyncpgSession, "detect_pooler", _have_no_guard),
        (asyncpg_session, "reset_statements", _reset_all_last),
    ),
    "restores-the-session-user": _patched(
        (asyncpg_reset, "_become", lambda _: ["RESET SESSION AUTHORIZATION;", "RESET ROLE;"])
    ),
    "keeps-callbacks-of-init": _patched((AsyncpgSession, "_keep_callbacks", _keep_no_callbacks)),
    "closes-at-once": _patched((options, "span", _span_that_never_is_0)),
    "lends-before-the-end-of-life": _patched((shard, "math", SimpleNamespace(nextafter=lambda now, _: now))),
    "lets-growth-not-wait": _patched(
        (Queue, "waiting_in_line", lambda queue: sum(len(runner.shard.waiters) for runner in queue._runners()))
    ),
    "counts-no-query-of-its-own": _patched((AsyncpgSession, "prepare_reset", _count_own_query)),
    "closes-what-has-expired": _patched((Shard, "is_outdated", lambda *_: False)),
    "knows-strange-cancellations": _patched((event_loops, "is_cancelled", lambda: True)),
    "ends-setup-in-peace": _patched((Shard, "retire", _retire_at_once)),
}
