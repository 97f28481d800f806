"""
Spans for the acquires that had to wait, by OpenTelemetry: `trace_acquires(pool)`. Without that call there are none.

An acquire that finds an idle connection does nothing more than before, because it never reaches the queue.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool._core.acquire import Queue
from loopaware_pool._core.pool import PoolCore
from loopaware_pool.driver import S

try:
    from opentelemetry.trace import StatusCode, TracerProvider, get_tracer
except ImportError as _missing:
    raise ImportError(
        f"loopaware_pool.tracing needs opentelemetry-api ({_missing}): pip install 'loopaware-pool[otel]'"
    ) from _missing

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from loopaware_pool._core.acquire import Line
    from loopaware_pool._core.runner import ShardRunner
    from loopaware_pool._core.shard import Shard
    from loopaware_pool._core.slot import Slot

__all__ = ["trace_acquires"]

# The first three are names of OpenTelemetry's semantic conventions.
_SYSTEM: Final = "db.system.name"
_POOL: Final = "db.client.connection.pool.name"
_ERROR: Final = "error.type"
_SPAN: Final = "loopaware_pool.acquire"
_WAITED_FOR: Final = "loopaware_pool.waited_for"
_WAITING: Final = "loopaware_pool.waiting"


def trace_acquires(pool: Any, tracer_provider: TracerProvider | None = None) -> None:
    """
    Make a span `loopaware_pool.acquire` of each wait for a connection, from now on, as a child of the caller's span.

    Its attributes:

    * `db.client.connection.pool.name`: the pool's name.
    * `loopaware_pool.waited_for`: "connect" if the caller got a connection that was opened meanwhile, or left without
      one while connections were being opened or connecting had failed; otherwise "queue": all connections were in use.
    * `loopaware_pool.waiting`: how many callers of this loop were in the queue already.
    * `error.type`: the class of the exception that the wait ended with. The status is "error" then, except after a
      cancellation.

    Args:
        pool: A pool of any flavour; of an engine of SQLAlchemy's, its `pool`. `engine.dispose()` gives the engine
            another pool, for which this is to be called again.
        tracer_provider: Makes the tracer; None for OpenTelemetry's global one.

    Raises:
        TypeError: *pool* is not one of our pools.
    """
    core = getattr(pool, "_core", None)
    if not isinstance(core, PoolCore):
        raise TypeError(f"expected a pool of loopaware_pool, got {type(pool).__name__}")
    core.queue = _TracedQueue(core, get_tracer("loopaware_pool", tracer_provider=tracer_provider))


class _TracedQueue(Queue[S]):
    """The waiting callers of one pool, with a span for each."""

    def __init__(self, core: PoolCore[S], tracer: Tracer) -> None:
        super().__init__(core)
        self._tracer = tracer

    async def wait(self, runner: ShardRunner[S], timeout: float | None, line: Line | None = None) -> Slot[S]:
        """Queue for a connection, as the base class does."""
        began = monotonic()
        waiting = len(runner.shard.waiters)
        attributes: dict[str, str | int] = {
            _SYSTEM: "postgresql",
            _POOL: self._registry.shared.config.name,
            _WAITING: waiting,
        }
        # Not the current span: a coroutine that is closed together with its loop cannot restore the one before.
        span = self._tracer.start_span(_SPAN, attributes=attributes)
        try:
            slot = await super().wait(runner, timeout, line)
        except BaseException as error:
            span.set_attribute(_WAITED_FOR, _vainly_waited_for(runner.shard))
            span.set_attribute(_ERROR, type(error).__qualname__)
            if isinstance(error, Exception):
                span.record_exception(error)
                span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
            raise
        else:
            is_new = slot.holder is None and slot.opened_at >= began
            span.set_attribute(_WAITED_FOR, "connect" if is_new else "queue")
            return slot
        finally:
            span.end()


def _vainly_waited_for(shard: Shard[Any]) -> str:
    return "connect" if shard.connecting or shard.last_error is not None else "queue"
