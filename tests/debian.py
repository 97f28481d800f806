"""Programs of Debian's packages, downloaded and unpacked in a folder of ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from servers import CACHE, ServerUnavailable, rename_unless_someone_did

__all__ = ["environment_of", "find_program"]


def find_program(name: str, packages: list[str], libraries: str) -> Path:
    """
    Find the program *name*: the installed one, or that of packages, downloaded once per machine.

    Args:
        libraries: A pattern of those dependencies of the packages that are downloaded, too.
    """
    for folder in (None, "/usr/sbin"):
        if installed := shutil.which(name, path=folder):
            return Path(installed)
    home = CACHE / name
    if not home.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            rename_unless_someone_did(_download(Path(scratch), packages, libraries), home)
    return next(path for folder in ("usr/sbin", "usr/bin") if (path := home / folder / name).exists())


def environment_of(program: Path) -> dict[str, str] | None:
    """The environment in which a program that was unpacked finds its libraries; None for an installed one."""
    if not program.is_relative_to(CACHE):
        return None
    libraries = [str(path) for folder in ("usr/lib", "lib") for path in program.parents[2].glob(f"{folder}/*-linux-*")]
    return os.environ | {"LD_LIBRARY_PATH": ":".join(libraries)}


def _download(scratch: Path, packages: list[str], libraries: str) -> Path:
    for folder in ("lists", "cache/archives", "packages"):
        (scratch / folder).mkdir(parents=True)
    # Lists and packages of our own: nothing of the system's is changed, and nobody needs to be root.
    options = [f"Dir::State::Lists={scratch}/lists", f"Dir::Cache={scratch}/cache", "APT::Sandbox::User=root"]
    flags = ["-qq", *(word for option in options for word in ("-o", option))]
    _run(scratch, "apt-get", *flags, "update")
    depends = _run(scratch, "apt-cache", *flags, "depends", *packages)
    needed = re.findall(rf"Depends: ((?:{libraries})\S*)", depends)
    _run(scratch / "packages", "apt-get", *flags, "download", *packages, *needed)
    for archive in (scratch / "packages").glob("*.deb"):
        _run(scratch, "dpkg-deb", "-x", str(archive), str(scratch / "unpacked"))
    return scratch / "unpacked"


def _run(folder: Path, *command: str) -> str:
    try:
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()[-200:]
        raise ServerUnavailable(f"it is not installed, and could not be downloaded: {reason}") from None
