"""What is released: its metadata, what is in the wheel, and whether it works where nothing else is installed."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REPOSITORY = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
EXTRAS = ("asyncpg", "psycopg", "sqlalchemy", "uvloop", "prometheus", "otel", "cli")

USE = """
import asyncio, importlib.util, sys
import loopaware_pool
assert not {"asyncpg", "psycopg", "psycopg_pool", "sqlalchemy"} & set(sys.modules), "importing it imports no driver"

async def ask_asyncpg(pool):
    return await (await pool).fetchval("SELECT 42")

pool = loopaware_pool.create_pool(sys.argv[1], min_size=0)
print(asyncio.run(ask_asyncpg(pool)), asyncio.run(ask_asyncpg(pool)))

if importlib.util.find_spec("psycopg_binary"):
    from loopaware_pool.psycopg import AsyncConnectionPool

    async def ask_psycopg():
        async with AsyncConnectionPool(sys.argv[1], min_size=0, max_size=1) as pool, pool.connection() as connection:
            return (await (await connection.execute("SELECT 43")).fetchone())[0]

    print(asyncio.run(ask_psycopg()))

if importlib.util.find_spec("sqlalchemy"):
    from sqlalchemy import text
    from loopaware_pool.sqlalchemy import create_async_engine

    async def ask_sqlalchemy():
        async with engine.connect() as connection:
            return await connection.scalar(text("SELECT 44"))

    engine = create_async_engine(sys.argv[1].replace("postgresql:", "postgresql+asyncpg:"))
    print(asyncio.run(ask_sqlalchemy()))
"""


def called(*command, **options):
    """Run *command* and return its output; it must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def interpreters():
    """Find one interpreter of each supported Python that is here, by its version."""
    found = {}
    for minor in range(11, 20):
        versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
        places = [shutil.which(f"python3.{minor}"), *sorted(versions.glob(f"3.{minor}.*/bin/python"))]
        for python in filter(None, places):
            answer = subprocess.run([python, "-V"], capture_output=True, text=True, check=False)
            if answer.stdout.startswith(f"Python 3.{minor}."):
                found[f"3.{minor}"] = python
                break
    return found


INTERPRETERS = interpreters()


@pytest.fixture(scope="module")
def metadata():
    return json.loads(called(sys.executable, "-m", "hatchling", "metadata", cwd=ROOT))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the sdist, and the wheel from nothing but that."""
    folder = tmp_path_factory.mktemp("dist")
    called(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    called(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sdist)
    (wheel,) = folder.glob("*.whl")
    return wheel


# ---- what it says of itself ----


def test_every_link_of_the_readme_is_absolute_in_the_metadata(metadata):
    """An index shows the README where the files that it links to are not."""
    text = metadata["readme"]["text"]
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    own = [link.removeprefix(REPOSITORY) for link in links if link.startswith(REPOSITORY)]
    assert len(own) > 20
    tag = f"v{PROJECT['project']['version']}"
    for link in own:
        _, kind, version, path = link.split("/", 3)
        assert (kind, version) == ("raw" if path.endswith(".png") else "blob", tag)
        assert (ROOT / path.partition("#")[0]).is_file(), path


def test_the_metadata_has_the_projects_addresses(metadata):
    """Each of them is made from the one in pyproject.toml."""
    assert set(metadata["urls"]) == {"Homepage", "Documentation", "Issues", "Changelog"}
    assert all(url.startswith(REPOSITORY) for url in metadata["urls"].values())


def test_the_classifiers_name_the_pythons_that_the_readme_names(metadata):
    """From the oldest to the newest, without a gap."""
    oldest, newest = re.search(r"Python 3\.(\d+) to 3\.(\d+), on asyncio", (ROOT / "README.md").read_text()).groups()
    named = [each.rpartition(".")[2] for each in metadata["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert named == [str(minor) for minor in range(int(oldest), int(newest) + 1)]
    assert metadata["requires-python"] == f">=3.{oldest}"


# ---- what it promises to keep ----

# Modules that are found beside the public ones, and what they are for.
NOT_PUBLIC = {"__main__", "cli", "metrics.table"}
# What each command has, for the command line.
PLUMBING = {"add_arguments", "main", "run"}


def promised():
    """Read the table of docs/stability.md: the names of each module."""
    rows = re.findall(
        r"^\| `(loopaware_pool[\w.]*)` \| (.+) \|$", (ROOT / "docs/stability.md").read_text(), re.MULTILINE
    )
    return {module: re.findall(r"`(\w+)`", names) for module, names in rows}


@pytest.mark.parametrize("module", promised())
def test_the_public_names_are_those_of_the_page(module):
    """What a module offers by `__all__` is what docs/stability.md promises, no more and no less."""
    offered = set(importlib.import_module(module).__all__)
    assert set(promised()[module]) == offered - (PLUMBING if ".cli." in module else set())


def test_the_page_names_every_public_module():
    """Those at the top of the package, and the exporters; what is in a package besides is private, or named, too."""
    package = ROOT / "src/loopaware_pool"
    found = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    found |= {f"metrics.{path.stem}" for path in package.glob("metrics/*.py")} - {"metrics.__init__"}
    public = {name for name in found if not re.search(r"(^|\.)_[a-z]", name)} - NOT_PUBLIC - {"__init__"}
    named = {name.removeprefix("loopaware_pool").removeprefix(".") for name in promised()}
    assert {name for name in public if name not in named} == set()
    assert "" in named


# ---- what is in it ----


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    """No test, no page, and no module of a public name that is none: the benchmarks are in a private place."""
    names = zipfile.ZipFile(wheel).namelist()
    sources = {f"loopaware_pool/{path.relative_to(ROOT / 'src/loopaware_pool')}" for path in package_files()}
    shipped = {name for name in names if name.startswith("loopaware_pool/_shipped/benchmarks/")}
    assert shipped == {f"loopaware_pool/_shipped/{path.relative_to(ROOT)}" for path in benchmark_files()}
    described = {name for name in names if ".dist-info/" in name}
    assert set(names) == sources | shipped | described
    assert "loopaware_pool/py.typed" in names


def package_files():
    return [path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def benchmark_files():
    return [path for path in (ROOT / "benchmarks").rglob("*") if path.is_file() and "__pycache__" not in path.parts]


# ---- whether it works ----


@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", INTERPRETERS)
def test_the_release_works_in_an_empty_environment(wheel, dsn, tmp_path, version):
    """Without an extra it serves asyncpg; then each extra adds what it names. Nothing is taken from this project."""
    called(INTERPRETERS[version], "-m", "venv", tmp_path / "empty")
    python = tmp_path / "empty" / "bin" / "python"
    alone = {"cwd": tmp_path, "env": {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}}

    def install(what):
        called(python, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", "install", what, **alone)
        called(python, "-m", "pip", "--disable-pip-version-check", "check", **alone)

    install(wheel)
    assert called(python, "-I", "-W", "error", "-c", USE, dsn, **alone).split() == ["42", "42"]
    assert "doctor" in called(python.with_name("loopaware-pool"), "--help", **alone)
    install(f"{wheel}[{','.join(EXTRAS)}]")
    assert called(python, "-I", "-W", "error", "-c", USE, dsn, **alone).split() == ["42", "42", "43", "44"]
    assert "doctor" in called(python.with_name("loopaware-pool"), "--help", **alone)
    called(python.with_name("loopaware-pool"), "probe", dsn, **alone)
    called(python, "-I", "-W", "error", "-c", "import loopaware_pool.metrics.prometheus, loopaware_pool.live", **alone)


def test_every_extra_is_tried_or_only_for_the_commands():
    """`demo` is another name of `cli`; `bench` brings what only measures."""
    assert set(PROJECT["project"]["optional-dependencies"]) == {*EXTRAS, "demo", "bench"}
