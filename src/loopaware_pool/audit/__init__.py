"""Finds out whether a piece of a program leaves fds, or registrations with an event loop, behind."""

from __future__ import annotations

from loopaware_pool.audit.fd_audit import (
    AuditUnavailable,
    FdAudit,
    OpenFd,
    Registration,
    Registrations,
    assert_zero_fd_delta,
    fd_leak_per,
    stale_registrations,
)

__all__ = [
    "AuditUnavailable",
    "FdAudit",
    "OpenFd",
    "Registration",
    "Registrations",
    "assert_zero_fd_delta",
    "fd_leak_per",
    "stale_registrations",
]

for _name in __all__:
    _object = globals()[_name]
    if getattr(_object, "__module__", "").startswith(__name__):
        _object.__module__ = __name__
