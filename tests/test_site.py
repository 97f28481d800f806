"""`docs/check_site.py` finds what leads nowhere; `make docs` runs it on the built site."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "check_site.py"
TARGET = '<html><h1 id="there">There</h1></html>'


def check(site):
    return subprocess.run([sys.executable, SCRIPT, site], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("link", "is_broken"),
    [
        ('<a href="sub/target.html">', False),
        ('<a href="sub/target.html#there">', False),
        ('<a href="#here">', False),
        ('<img src="sub/target.html">', False),
        ('<a href="https://example.invalid/missing">', False),
        ('<a href="sub/target.html#missing">', True),
        ('<a href="#missing">', True),
        ('<a href="missing.html">', True),
        ('<img src="missing.png">', True),
    ],
)
def test_a_link_leads_to_a_file_and_an_anchor(tmp_path, link, is_broken):
    """Of the site; addresses elsewhere are left alone."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "target.html").write_text(TARGET)
    (tmp_path / "index.html").write_text(f'<html><p id="here">{link}</p></html>')
    done = check(tmp_path)
    assert done.returncode == int(is_broken)
    assert ("check_site: index.html: " in done.stderr) == is_broken


def test_a_site_without_pages_is_no_site(tmp_path):
    """Else a build that wrote elsewhere would pass."""
    assert check(tmp_path).returncode == 1
