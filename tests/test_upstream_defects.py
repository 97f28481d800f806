"""The programs of docs/upstream-defects.md still show what the page says of drivers and loops."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "upstream-defects.md"
# A heading, then a program and its output.
DEFECT = re.compile(
    r"^### (?P<title>.*?)$.*?^```python\n(?P<program>.*?)^```\n\n```text\n(?P<output>.*?)^```$", re.M | re.S
)
OLD_PYTHON = "(Python 3.11)"


def defects():
    """Those that this Python has, by their titles."""
    found = [match.groupdict() for match in DEFECT.finditer(PAGE.read_text())]
    is_old = sys.version_info < (3, 12)
    return {defect["title"]: defect for defect in found if is_old or not defect["title"].endswith(OLD_PYTHON)}


DEFECTS = defects()


def test_every_defect_has_a_program():
    """None is only told of."""
    titles = re.findall(r"^### (.*)$", PAGE.read_text(), re.M)
    assert DEFECTS.keys() == {title for title in titles if title in DEFECTS or not title.endswith(OLD_PYTHON)}


@pytest.mark.parametrize("title", DEFECTS)
def test_a_defect_is_still_there(title, dsn, tmp_path):
    """Its program prints what the page says; if not, it has been mended, and the page and the code can go."""
    program = tmp_path / "program.py"
    program.write_text(DEFECTS[title]["program"])
    ended = subprocess.run(
        [sys.executable, program, dsn],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    said = ended.stdout
    assert ended.returncode == 0, said
    assert DEFECTS[title]["output"] in said
