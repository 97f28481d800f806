"""The tests that the documents name for what they promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A file or a folder of tests, and what is given to pytest's -k.
NAMED = re.compile(r'`(tests/[\w/.]+)(?: -k (?:"([^"`]+)"|(\w+)))?`')


def named():
    for document in ("SECURITY.md", "docs/reliability.md"):
        for path, several, one in NAMED.findall((ROOT / document).read_text()):
            for word in (several or one).split(" or "):
                yield document, path, word


def names_in(file):
    return [file.stem, *re.findall(r"(?:def|class) (test\w+)", file.read_text(), re.IGNORECASE)]


@pytest.mark.parametrize(("document", "path", "word"), sorted(set(named())))
def test_a_test_that_a_document_names_is_there(document, path, word):
    """In the file, or the folder, that it names; under a name that `-k` finds."""
    place = ROOT / path
    assert place.exists()
    files = place.rglob("test_*.py") if place.is_dir() else [place]
    assert not word or any(word in name for file in files for name in names_in(file))


def test_the_readme_names_every_folder_and_helper():
    """So that what is there already is found."""
    here = Path(__file__).parent
    readme = (here / "README.md").read_text()
    folders = {f"{path.name}/" for path in here.iterdir() if path.is_dir() and path.name[0] not in "._"}
    helpers = {path.name for path in here.glob("*.py") if not path.name.startswith("test_")}
    assert {name for name in folders | helpers if f"`{name}`" not in readme} == set()
