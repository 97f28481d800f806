"""Look at the process that doctor runs in."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from loopaware_pool.cli.doctor.facts import Host

__all__ = ["look_at_host"]

_PACKAGES = ("loopaware-pool", "asyncpg", "psycopg", "psycopg-pool", "uvloop")


def look_at_host() -> Host:
    """Gather the facts; connects to nothing."""
    implementation, libpq, failure = _psycopg()
    packages = {name: _version(name) for name in _PACKAGES}
    return Host(
        versions={"Python": platform.python_version(), **packages, "libpq": libpq},
        psycopg_implementation=implementation,
        psycopg_failure=failure,
        fd_limit=_fd_limit(),
    )


def _psycopg() -> tuple[str | None, str | None, str | None]:
    """Which implementation, which libpq, and why neither."""
    try:
        from psycopg import pq
    except ImportError as error:  # without a libpq it cannot even be imported
        return None, None, " ".join(str(error).split())
    number = pq.version()
    return pq.__impl__, f"{number // 10000}.{number % 10000}", None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _fd_limit() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
