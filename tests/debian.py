"""Programs of Debian's packages, for tests: downloaded once per machine, and unpacked in a folder of ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from servers import CACHE, ServerUnavailable, rename_unless_someone_did

__all__ = ["environment_for", "find_program"]

_SYSTEM_FOLDERS = ("usr/bin", "usr/sbin")


def find_program(package: str, *, libraries: str = "") -> Path:
    """
    The installed program of the name of its package, or Debian's.

    Args:
        package: Name of the package, and of the program in it.
        libraries: What the names of those packages match that it depends on, itself or by another, and needs to run.
    """
    for folder in (None, *(f"/{folder}" for folder in _SYSTEM_FOLDERS)):
        if installed := shutil.which(package, path=folder):
            return Path(installed)
    home = CACHE / package
    if not home.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            rename_unless_someone_did(_download(Path(scratch), package, libraries), home)
    return next(home / folder / package for folder in _SYSTEM_FOLDERS if (home / folder / package).exists())


def environment_for(program: Path) -> dict[str, str]:
    """The environment in which a program that was found finds the libraries that came with it."""
    if not program.is_relative_to(CACHE):
        return dict(os.environ)
    libraries = ":".join(str(path) for path in program.parents[2].glob("usr/lib/*-linux-*"))
    return os.environ | {"LD_LIBRARY_PATH": libraries}


def _download(scratch: Path, package: str, libraries: str) -> Path:
    for folder in ("lists", "cache/archives", "packages"):
        (scratch / folder).mkdir(parents=True)
    # Lists and packages of our own: nothing of the system's is changed, and nobody needs to be root.
    options = [f"Dir::State::Lists={scratch}/lists", f"Dir::Cache={scratch}/cache", "APT::Sandbox::User=root"]
    flags = ["-qq", *(word for option in options for word in ("-o", option))]
    _run(scratch, package, "apt-get", *flags, "update")
    needed = _run(scratch, package, "apt-cache", *flags, "depends", "--recurse", package)
    wanted = {name for name in re.findall(r"Depends: (\S+)", needed) if re.fullmatch(libraries, name)}
    _run(scratch / "packages", package, "apt-get", *flags, "download", package, *wanted)
    for file in (scratch / "packages").glob("*.deb"):
        _run(scratch, package, "dpkg-deb", "-x", str(file), str(scratch / "unpacked"))
    return scratch / "unpacked"


def _run(folder: Path, package: str, *command: str) -> str:
    try:
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()[-200:]
        raise ServerUnavailable(f"{package} is not installed, and could not be downloaded: {reason}") from None
