"""Look at the interpreter and the machine that doctor runs on."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from loopaware_pool import __version__
from loopaware_pool.cli.doctor.facts import Host

__all__ = ["look_at_host"]

_PACKAGES = ("asyncpg", "psycopg", "psycopg-pool", "uvloop", "gunicorn", "uvicorn")


def look_at_host() -> Host:
    """Gather the facts; connects to nothing."""
    loop, is_proactor = _default_loop()
    implementation, libpq, failure = _psycopg()
    return Host(
        python=platform.python_version(),
        loop=loop,
        is_proactor=is_proactor,
        versions={"loopaware-pool": __version__} | {name: _version(name) for name in _PACKAGES},
        psycopg_implementation=implementation,
        psycopg_failure=failure,
        libpq=libpq,
        start_method=multiprocessing.get_all_start_methods()[0],
        can_hear_of_forks=hasattr(os, "register_at_fork"),
        fd_limit=_fd_limit(),
        shows_fds=_shows_fds(),
        worker_count=os.environ.get("WEB_CONCURRENCY"),
        gunicorn_arguments=os.environ.get("GUNICORN_CMD_ARGS", ""),
    )


def _default_loop() -> tuple[str, bool]:
    loop = asyncio.new_event_loop()
    try:
        kind = type(loop)
        selector = getattr(loop, "_selector", None)
        name = f"{kind.__module__.partition('.')[0]}'s {kind.__name__.lstrip('_')}"
        is_proactor = any(base.__name__ == "BaseProactorEventLoop" for base in kind.__mro__)
        return name if selector is None else f"{name} with {type(selector).__name__}", is_proactor
    finally:
        loop.close()


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


def _shows_fds() -> bool:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            os.listdir(folder)
        except OSError:
            continue
        return True
    return False
