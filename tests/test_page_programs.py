"""Every Python block of every page runs as it is printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import page_programs

ROOT = Path(__file__).parents[1]
# Files of tests that run the blocks of their page in another way.
ELSEWHERE = {
    "docs/testing.md": "test_testing.py",
    "docs/upstream-defects.md": "test_upstream_defects.py",
    "docs/recipes": "test_recipes.py",
}
# Pages whose blocks are tests, and what these take for granted.
TESTS = {
    "docs/operations.md": """
class Client:
    async def get(self, path): ...

@pytest.fixture
def client():
    return Client()
""",
    "docs/pytest-plugin.md": """
@pytest_asyncio.fixture
async def pool():
    async with loopaware_pool.create_pool(DSN, min_size=1) as pool:
        yield pool
""",
}


def pages():
    """Those with Python blocks, by their names."""
    found = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    names = [page.relative_to(ROOT).as_posix() for page in found if [*page_programs.blocks(page)]]
    return [name for name in names if not any(name.startswith(place) for place in [*ELSEWHERE, *TESTS])]


def ended_well(*command, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", pages())
def test_the_programs_of_a_page_run(name, dsn):
    """One after the other, in one process."""
    ended_well(page_programs.__file__, name, dsn)


@pytest.mark.parametrize("name", TESTS)
def test_the_tests_of_a_page_pass(name, dsn, tmp_path):
    """Each in a file of its own, by a pytest of its own."""
    head = f"import loopaware_pool, pytest, pytest_asyncio\nDSN = {dsn!r}\n"
    blocks = [code for _, code in page_programs.blocks(ROOT / name)]
    for number, code in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(head + TESTS[name] + code)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    said = ended_well("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", tmp_path, PYTEST_ADDOPTS="")
    assert f"{len(blocks)} passed" in said


def test_a_block_that_fails_is_noticed(tmp_path, monkeypatch, dsn):
    """With the page's own line in the traceback."""
    monkeypatch.setattr(page_programs, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("# Page\n\n```python\nx = 1\n```\n\n```python\nx += missing\n```\n")
    with pytest.raises(NameError) as caught:
        page_programs.main("page.md", dsn)
    assert caught.traceback[-1].lineno == 7
