"""A Redis server for brokers: the installed one, or Debian's, unpacked in a folder of ours."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from between import own_port
from debian import environment_for, find_program
from examples.program import until
from servers import ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["redis_server"]

# What it needs: `redis-server` is a link to a program of `redis-tools`.
_LIBRARIES = r"redis-tools|libatomic1|libjemalloc2|liblzf1|libssl[\w.]+|libsystemd0"


@contextmanager
def redis_server() -> Iterator[str]:
    """Start one that keeps nothing; its URL. Skips the test where there is none to be had."""
    try:
        program = find_program("redis-server", libraries=_LIBRARIES)
    except ServerUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Redis server: {reason}")
    with own_port() as port, tempfile.TemporaryDirectory(prefix="loopaware-redis-") as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        process = subprocess.Popen([program, *options], env=environment_for(program), stdout=subprocess.PIPE, text=True)
        try:
            until(lambda: "Ready to accept connections" in process.stdout.readline(), lambda: "Redis is not ready")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
