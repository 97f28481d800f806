"""A live view of pools, for readers outside the process: `loopaware-pool top`, curl, a script."""

from __future__ import annotations

from loopaware_pool.live.server import (
    LiveView,
    serve_live,
)

__all__ = [
    "LiveView",
    "serve_live",
]

for _name in __all__:
    _object = globals()[_name]
    if getattr(_object, "__module__", "").startswith(__name__):
        _object.__module__ = __name__
