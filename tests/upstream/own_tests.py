"""Runs the own tests of a library that is used. Its wheel has none: they come from its source distribution."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest

import servers

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
# No run needs a third of this.
RUN_SECONDS = 300

__all__ = ["Outcome", "base_environment", "run_pytest", "unpacked"]


def unpacked(package, *kept):
    """
    The folder with the source of an installed package, downloaded once per machine and version.

    Args:
        package: Its name.
        kept: The files and folders that are unpacked.
    """
    root = f"{package}-{version(package)}"
    home = servers.CACHE / root
    if not home.is_dir():
        servers.CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=servers.CACHE) as scratch:
            archive = _download(package, Path(scratch))
            _unpack(archive, Path(scratch) / "unpacked", [f"{root}/{name}" for name in kept])
            servers.rename_unless_someone_did(Path(scratch) / "unpacked" / root, home)
    return home


def _download(package, scratch):
    """Fetch and check the source distribution."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(_locked_requirement(package))
    completed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", f"--no-binary={package}", "--require-hashes"),
            *(f"--requirement={requirements}", f"--dest={scratch}"),
        ],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if completed.returncode:
        reason = f"{package}'s tests could not be downloaded: {completed.stderr.strip()[-200:]}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return next(scratch.glob("*.tar.gz"))


def _unpack(archive, target, kept):
    with tarfile.open(archive) as tar:
        members = [
            member for member in tar if any(member.name == name or member.name.startswith(f"{name}/") for name in kept)
        ]
        tar.extractall(target, members, filter="data")


def _locked_requirement(package):
    """What the lock files say of the installed package: the version and the hashes."""
    for lock in sorted(REPOSITORY.glob("requirements*.lock")):
        found = re.search(rf"^{package}=={re.escape(version(package))} .*(?:\n .*)*", lock.read_text(), re.MULTILINE)
        if found:
            return found[0] + "\n"
    pytest.skip(f"{package} {version(package)} is in no lock file")


def base_environment():
    """What upstream's tests are run with: nothing that means this run of pytest, and the plugins of this folder."""
    path = [str(HERE), *(folder for folder in sys.path if folder and Path(folder) != REPOSITORY)]
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PG", "PYTEST", "USE_UVLOOP"))},
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


class Outcome(NamedTuple):
    """What became of tests, by their names, and what was printed."""

    passed: set[str]
    skipped: set[str]
    failed: set[str]
    output: str


def run_pytest(*arguments, cwd, env, report, name_of, interpreter=()):
    """
    Run tests with another pytest, in a process of its own.

    Args:
        arguments: For pytest: options, and what to run.
        cwd: Where to run it.
        env: Its environment.
        report: The file to write a report to.
        name_of: Returns what a test is called here, from the names of its class and of itself.
        interpreter: Options for Python.
    """
    completed = subprocess.run(
        [
            *(sys.executable, *interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"),
            *(f"--junitxml={report}", *arguments),
        ],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS,
    )
    output = completed.stdout + completed.stderr
    assert report.is_file(), output
    outcome = Outcome(set(), set(), set(), output)
    for case in ET.parse(report).iter("testcase"):
        what = {child.tag for child in case}
        has_failed = what & {"failure", "error"}
        found = outcome.failed if has_failed else outcome.skipped if "skipped" in what else outcome.passed
        found.add(name_of(case.get("classname"), case.get("name")))
    outcome.passed.difference_update(outcome.failed, outcome.skipped)  # one name may stand for several
    return outcome
