"""`docs/make_screens.py` draws what a command prints on a terminal."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "docs" / "make_screens.py"


def make(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_what_is_printed_on_a_terminal_is_drawn(tmp_path):
    """Colours and all; nothing is fetched from elsewhere to look at it."""
    code = (
        "import os, sys; print(f'\\033[31m{sys.stdout.isatty()} {os.get_terminal_size()[0]}\\033[0m<&>'); sys.exit(1)"
    )
    done = make("--columns", "70", "--title", "a command", tmp_path / "new" / "a.svg", sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    drawn = (tmp_path / "new" / "a.svg").read_text()
    words = " ".join(ET.fromstring(drawn).itertext())
    assert "$ a command" in " ".join(words.split())
    assert "True 70" in " ".join(words.split())
    assert "<&>" in words
    assert "url(http" not in drawn


def test_each_word_stands_in_its_column(tmp_path):
    """By a place of its own: renderers that fold spaces, or have another font, keep the columns."""
    make("--columns", "40", tmp_path / "a.svg", sys.executable, "-c", "print('a        b'); print('         b')")
    texts = ET.parse(tmp_path / "a.svg").iter("{http://www.w3.org/2000/svg}text")
    places = [(element.get("x"), element.get("y")) for element in texts if element.text == "b"]
    assert len(places) == 2
    assert len({x for x, _ in places}) == 1
    assert len({y for _, y in places}) == 2


def test_a_command_that_prints_nothing_is_told_of(tmp_path):
    """No image is written."""
    done = make(tmp_path / "a.svg", sys.executable, "-c", "")
    assert done.returncode == 1
    assert done.stderr == f"make_screens: {sys.executable} printed nothing\n"
    assert not (tmp_path / "a.svg").exists()
