"""
The fields that every log record of ours carries, for logs that machines read.

A field's name is neither an attribute of `logging.LogRecord`, which `logging` refuses, nor a key that structlog gives a
meaning, such as "event".
"""

from __future__ import annotations

from typing import Any

from loopaware_pool._platform.event_loops import label, running

__all__ = ["error_type", "fields"]


def fields(event: str, pool: str | None, *, loop: str | None = None, **facts: Any) -> dict[str, Any]:
    """
    Return the `extra` of a log record.

    Args:
        event: What happened, as a stable name.
        pool: The pool's name; None if no pool is concerned.
        loop: The name of the loop that it happened on; None for the running one, if there is one.
        **facts: More fields. Their names begin with `pool_` unless they could belong to nothing else.
    """
    if loop is None and (here := running()) is not None:
        loop = label(here)
    return {"pool": pool, "pool_event": event, "pool_loop": loop, **facts}


def error_type(error: BaseException | None) -> str:
    """Return the full name of an error's class. Its text is in the message, or is withheld from it."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
