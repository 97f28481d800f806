"""Programs of Debian's packages, for tests: downloaded once per machine, and unpacked in a folder of ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from servers import CACHE, ServerUnavailable, rename_unless_someone_did

__all__ = ["command_of", "environment_for", "find_program"]

_SYSTEM_FOLDERS = ("usr/bin", "usr/sbin")


def find_program(package: str, *, program: str = "", libraries: str = "", release: str = "") -> Path:
    """
    The installed program, or Debian's.

    Args:
        package: Name of the package.
        program: Name of the program in it; the package's if left out.
        libraries: What the names of those packages match that it depends on, itself or by another, and needs to run.
        release: Debian's release to take it from, with every library of that release's, whatever is installed; this
            machine's if left out. Start it as `command_of` says.
    """
    program = program or package
    if not release:
        for folder in (None, *(f"/{folder}" for folder in _SYSTEM_FOLDERS)):
            if installed := shutil.which(program, path=folder):
                return Path(installed)
    home = CACHE / (f"{package}-{release}" if release else package)
    if not home.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            rename_unless_someone_did(_download(Path(scratch), package, libraries, release), home)
    return next(home / folder / program for folder in _SYSTEM_FOLDERS if (home / folder / program).exists())


def environment_for(program: Path) -> dict[str, str]:
    """The environment in which a program that was found finds the libraries that came with it."""
    if not program.is_relative_to(CACHE) or _loader(program) is not None:
        return dict(os.environ)
    return os.environ | {"LD_LIBRARY_PATH": _library_path(program)}


def command_of(program: Path) -> list[str]:
    """The words that start a program that was found: one of another release needs that release's loader."""
    loader = _loader(program) if program.is_relative_to(CACHE) else None
    return [str(program)] if loader is None else [str(loader), "--library-path", _library_path(program), str(program)]


def _loader(program: Path) -> Path | None:
    return next(program.parents[2].glob("usr/lib*/ld-linux-*"), None)


def _library_path(program: Path) -> str:
    return ":".join(str(path) for path in program.parents[2].glob("usr/lib/*-linux-*"))


def _download(scratch: Path, package: str, libraries: str, release: str) -> Path:
    for folder in ("lists", "cache/archives", "packages"):
        (scratch / folder).mkdir(parents=True)
    # Lists and packages of our own: nothing of the system's is changed, and nobody needs to be root.
    options = [f"Dir::State::Lists={scratch}/lists", f"Dir::Cache={scratch}/cache", "APT::Sandbox::User=root"]
    if release:
        sources = scratch / "sources.list"
        sources.write_text(_source_of(package, release))
        options += [f"Dir::Etc::SourceList={sources}", "Dir::Etc::SourceParts=/dev/null"]
    flags = ["-qq", *(word for option in options for word in ("-o", option))]
    _run(scratch, package, "apt-get", *flags, "update")
    needed = _run(scratch, package, "apt-cache", *flags, "depends", "--recurse", "--important", package)
    wanted = {name for name in re.findall(r"Depends: (\S+)", needed) if re.fullmatch(libraries, name)}
    _run(scratch / "packages", package, "apt-get", *flags, "download", package, *wanted)
    for file in (scratch / "packages").glob("*.deb"):
        _run(scratch, package, "dpkg-deb", "-x", str(file), str(scratch / "unpacked"))
    return scratch / "unpacked"


def _source_of(package: str, release: str) -> str:
    """Where this machine's Debian packages come from, for another release."""
    told = _run(Path.cwd(), package, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Component: main")
    for address in told.splitlines():
        if address.rstrip("/").endswith("/debian"):
            return f"deb {address} {release} main\n"
    raise ServerUnavailable(f"{package} of {release}: no source of Debian packages is known here")


def _run(folder: Path, package: str, *command: str) -> str:
    try:
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()[-200:]
        raise ServerUnavailable(f"{package} is not installed, and could not be downloaded: {reason}") from None
