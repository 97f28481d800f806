"""What the recipes print is what their tests run."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS / "examples"
PAGES = sorted((DOCS / "recipes").glob("*.md"))
PROGRAMS = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".ipynb"))
# A block, and the last link to a program above it.
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\.\./examples/([^)#]+)\)")


def blocks():
    for page in PAGES:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            linked = LINK.findall(text[: found.start()])
            yield pytest.param(linked[-1:], textwrap.dedent(found[2]), id=f"{page.stem}:{line}")


@pytest.mark.parametrize(("program", "block"), list(blocks()))
def test_a_block_of_a_recipe_is_in_the_program_that_it_names(program, block):
    """Literally, and in whole lines: the program that the last link above the block leads to."""
    assert program, "no link to a program of docs/examples above the block"
    assert f"\n{block}" in "\n" + (EXAMPLES / program[0]).read_text()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.relative_to(EXAMPLES).as_posix())
def test_a_program_is_named_by_a_recipe(program):
    """Else nobody would find it."""
    assert any(program.relative_to(EXAMPLES).as_posix() in LINK.findall(page.read_text()) for page in PAGES)
