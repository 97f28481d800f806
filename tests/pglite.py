"""PGlite: PostgreSQL as WebAssembly, with one session for all its clients. It is run by Node.js."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from servers import CACHE, ServerUnavailable, rename_unless_someone_did

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["find_pglite", "pglite"]

# Its package-lock.json has versions and checksums.
_PACKAGE = Path(__file__).parent / "other_servers" / "pglite"
_PROGRAM = "node_modules/@electric-sql/pglite-socket/dist/scripts/server.js"
# Extensions, which the socket's package names as its peers, are not needed; nor are any scripts of packages.
_INSTALL = ("npm", "ci", "--legacy-peer-deps", "--ignore-scripts", "--no-audit", "--no-fund")


def find_pglite() -> Path:
    """The program of its server, installed once per machine and lock file."""
    for needed in ("node", "npm"):
        if shutil.which(needed) is None:
            raise ServerUnavailable(f"PGlite needs Node.js, and there is no {needed} here")
    lock = (_PACKAGE / "package-lock.json").read_bytes()
    home = CACHE / f"pglite-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not home.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            rename_unless_someone_did(_install(Path(scratch)), home)
    return home / _PROGRAM


def _install(scratch: Path) -> Path:
    target = scratch / "pglite"
    shutil.copytree(_PACKAGE, target)
    try:
        subprocess.run(
            [*_INSTALL, "--cache", str(scratch / "cache")], cwd=target, check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()[-200:]
        raise ServerUnavailable(f"PGlite could not be downloaded: {reason}") from None
    return target


@contextmanager
def pglite(program: Path, *, max_connections: int = 1) -> Iterator[str]:
    """
    A server with a database in memory; its DSN.

    Args:
        program: What `find_pglite` gives.
        max_connections: How many clients may be connected; 1 is its default. More share the session, statement by
            statement.
    """
    command = ["node", str(program), "--port=0", f"--max-connections={max_connections}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said = ""
            for line in process.stdout or ():
                said += line
                if found := re.search(r'"port":(\d+)', line):
                    yield f"postgresql://postgres:postgres@127.0.0.1:{found[1]}/postgres"
                    return
            raise ServerUnavailable(f"PGlite did not start: {said[-500:]}")
        finally:
            process.kill()
