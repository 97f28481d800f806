"""The messages that `docs/troubleshooting.md` quotes are real: each has a program in `messages.py` that gets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import messages

PAGE = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text()
QUOTED = dict(re.findall(r"^```text ([\w-]+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def produced():
    """What the programs got, in a process of their own: they leave all kinds of things behind."""
    done = subprocess.run([sys.executable, messages.__file__], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def matches(quoted, message):
    """Whether a message is as the page has it: the same words, where it does not leave some out. Times may differ."""
    quoted = re.sub(r"\bfor \d+\.\d s\b", "for ... s", " ".join(quoted.split()))
    words = [re.escape(part) for part in re.split(r"\s*\.\.\.\s*", quoted)]
    return re.fullmatch(r".*".join(words), " ".join(message.split())) is not None


def test_the_page_quotes_what_the_programs_get(produced):
    """All of them in one run, as each needs the server."""
    otherwise = {name: produced[name] for name in QUOTED if not matches(QUOTED[name], str(produced[name]))}
    assert otherwise == {}


def test_every_block_has_a_program_and_every_program_a_block():
    """None is quoted twice."""
    assert sorted(re.findall(r"^```text(.*)$", PAGE, re.MULTILINE)) == sorted(f" {name}" for name in messages.PROGRAMS)


@pytest.mark.parametrize(
    ("quoted", "message", "is_alike"),
    [
        ("a: b ... c", "a: b and more c", True),
        ("a: b ... c", "a: b c", True),
        ("a:\nb", "a: b", True),
        ("held for\n0.1 s, a", "held for 12.3 s, a", True),
        ("held for 0.1 s, a", "held for 0.1 s, b", False),
        ("a: b", "a: b c", False),
        ("a: ... b", "a: x c", False),
    ],
)
def test_what_is_left_out_may_be_anything(quoted, message, is_alike):
    """And what is not must be there."""
    assert matches(quoted, message) is is_alike
