"""What the pages show is so: links lead somewhere, names exist, and the table of states is the code's."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "loopaware_pool"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob(".github/*.md"), *DOCS.rglob("*.md")])
# Tells of what was, under the names that it had.
PRESENT_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
FENCED = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
DOTTED = re.compile(r"`(loopaware_pool(?:\.\w+)+)")
SOURCE_FILE = re.compile(r"`((?:\w+/)*\w+\.py)`")
# Names of spans and of their attributes.
SPANS = {
    *("loopaware_pool.acquire", "loopaware_pool.waited_for", "loopaware_pool.waiting"),
    *("loopaware_pool.connection", "loopaware_pool.connection.commit"),  # ddtrace's
}
# Files of a reader's, in examples.
NOT_OURS = {"program.py"}


def prose_of(page):
    """A page without its programs."""
    return FENCED.sub("", page.read_text())


def anchors_of(page):
    """What GitHub makes of the headings of a page; of the second of a name, with a number."""
    met = Counter()
    for heading in HEADING.findall(prose_of(page)):
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        yield f"{plain}-{met[plain]}" if met[plain] else plain
        met[plain] += 1


def links():
    found = {(page, target) for page in PAGES for target in LINK.findall(prose_of(page))}
    return sorted((page, target) for page, target in found if "://" not in target)


def imported_names():
    """Every name of the package that a page's programs import."""
    for page in PRESENT_PAGES:
        for _, language, text in FENCED.findall(page.read_text()):
            if language == "python":
                for node in ast.walk(ast.parse(textwrap.dedent(text))):
                    if isinstance(node, ast.Import):
                        yield from (alias.name for alias in node.names)
                    elif isinstance(node, ast.ImportFrom):
                        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names():
    """Every dotted name of the package in a page, in programs and between them."""
    in_prose = {name for page in PRESENT_PAGES for name in DOTTED.findall(prose_of(page))}
    return sorted(in_prose - SPANS | {name for name in imported_names() if name.startswith("loopaware_pool")})


def source_files():
    return sorted({(page, name) for page in PRESENT_PAGES for name in SOURCE_FILE.findall(prose_of(page))})


@pytest.mark.parametrize(("page", "target"), links(), ids=lambda value: getattr(value, "name", value))
def test_a_link_leads_somewhere(page, target):
    """To a file of the project and, where it names one, to a heading in it."""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.is_relative_to(ROOT)
    assert file.exists()
    assert not anchor or anchor in anchors_of(file)


@pytest.mark.parametrize("name", names())
def test_a_name_that_a_page_shows_exists(name):
    """As a module, or as an attribute of one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(("page", "name"), source_files(), ids=lambda value: getattr(value, "name", value))
def test_a_source_file_that_a_page_names_exists(page, name):
    """Under the name that it has today."""
    found = [path for folder in ("src", "tests", "docs", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert name in NOT_OURS or any(path.as_posix().endswith(f"/{name}") for path in found)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_architecture_page_says_what_each_module_is_for(path):
    """In a row of its own, in the part of its package; commands share a row."""
    text = (DOCS / "architecture.md").read_text().partition("## The modules")[2].partition("\n## ")[0]
    folder = path.relative_to(PACKAGE).parent.as_posix()
    if path.name not in ("__init__.py", "__main__.py") and not folder.startswith("cli"):
        parts = re.split(r"^\| \*\*`?(\w+)/?.*$", text, flags=re.MULTILINE)
        in_folder = "".join(part for name, part in zip(parts[1::2], parts[2::2], strict=True) if name == folder)
        assert f"`{path.name}`" in (in_folder or text) or f"`{folder}/{path.name}`" in text


def lines_that_rely_on_the_lock():
    """The rows of the architecture page's table on free-threaded Python: files, and names in them."""
    section = (DOCS / "architecture.md").read_text().partition("\n## Free-threaded Python\n")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| (`\w+/.*)$", section, flags=re.MULTILINE):
        files, where, *_ = row.split(" | ")
        for name in re.findall(r"`([\w.]+)`", where):
            yield re.findall(r"`([\w/]+)\.py`", files), name


@pytest.mark.parametrize(("files", "name"), [*lines_that_rely_on_the_lock()], ids=str)
def test_what_is_said_to_rely_on_the_interpreters_lock_exists(files, name):
    """In one of the files of its row."""
    modules = [importlib.import_module("loopaware_pool." + file.replace("/", ".")) for file in files]
    assert any(_has(module, name) for module in modules)


def _has(holder, name):
    first, _, rest = name.partition(".")
    return hasattr(holder, first) and (not rest or _has(getattr(holder, first), rest))


def test_the_pages_say_what_the_code_says():
    """States, options, exceptions, events, statistics. To write them anew: `python docs/make_pages.py`."""
    done = subprocess.run([sys.executable, DOCS / "make_pages.py", "--check"], timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("page", "said", "otherwise"),
    [
        ("architecture.md", "abandoned (IDLE)", "abandoned (GONE)"),
        ("options.md", "`keepalive` | `0`", "`keepalive` | `1`"),
        ("exceptions.md", "| `pool` | `str` | Name of the pool. |", "| `pool` | `int` | Name of the pool. |"),
        ("events.md", "## `LoopEnded`", "## `LoopEnds`"),
        ("statistics.md", "| `totals` | `Counters` |", "| `totals` | `Counter` |"),
        ("guide/life-cycle.svg", ">claimed<", ">taken<"),
    ],
)
def test_a_page_that_is_out_of_date_is_noticed(monkeypatch, tmp_path, page, said, otherwise):
    """And written as it should be."""
    monkeypatch.syspath_prepend(DOCS)
    script = importlib.import_module("make_pages")
    for path, text in [*script.pages()]:
        (tmp_path / path.relative_to(DOCS)).parent.mkdir(exist_ok=True)
        (tmp_path / path.relative_to(DOCS)).write_text(text)
    monkeypatch.setattr(script, "DOCS", tmp_path)
    current = (DOCS / page).read_text()
    assert said in current
    (tmp_path / page).write_text(current.replace(said, otherwise))
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0
    assert (tmp_path / page).read_text() == current


def test_a_move_that_is_not_drawn_is_noticed(monkeypatch):
    """The drawing shows what the code permits, or none is made."""
    monkeypatch.syspath_prepend(DOCS)
    script = importlib.import_module("life_cycle")
    monkeypatch.delitem(script.MOVES, ("RESERVED", "abandoned"))
    with pytest.raises(ValueError, match="abandoned"):
        script.draw_life_cycle()


def test_a_page_without_its_markers_is_refused(monkeypatch):
    """Else the states would be written nowhere."""
    monkeypatch.syspath_prepend(DOCS)
    script = importlib.import_module("make_pages")
    with pytest.raises(ValueError, match="lacks one of the markers"):
        script.with_states("# Architecture\n")


def public_modules():
    """Those of the first level; commands have pages of their own, and pytest calls its plugin."""
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    return sorted(name for name in names if not name.startswith("_") and name not in ("cli", "pytest_plugin"))


@pytest.mark.parametrize("name", public_modules())
def test_every_public_module_has_an_api_page(name):
    """In the list of pages; with all of its public names, where the page lists them one by one."""
    page = (DOCS / "api" / f"{name}.rst").read_text()
    assert f"   {name}\n" in (DOCS / "api" / "index.rst").read_text()
    assert f".. automodule:: loopaware_pool.{name}\n" in page
    if ":no-members:" in page.partition("\n\n.. auto")[2].partition("\n\n")[0]:
        shown = set(re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE))
        assert shown == set(importlib.import_module(f"loopaware_pool.{name}").__all__)
