"""Gives programs our pools under the drivers' own names."""

from __future__ import annotations

from loopaware_pool.swapping.install import NotSwapped, install, uninstall

__all__ = ["NotSwapped", "install", "uninstall"]

for _name in __all__:
    _object = globals()[_name]
    if getattr(_object, "__module__", "").startswith(__name__):
        _object.__module__ = __name__
