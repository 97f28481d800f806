"""
Look for links of the built site that lead nowhere: `python docs/check_site.py build/site`.

Each link and image to a file of the site must exist, and each anchor must be an id of its page. Addresses elsewhere are
not looked at. Exit code 0: all links lead somewhere; 1: some do not.
"""

from __future__ import annotations

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator


class Page(HTMLParser):
    """A page: where it leads, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the element links to, and what it is called."""
        del tag
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(site: Path) -> Iterator[str]:
    """Name each link that leads nowhere, with its page."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for target in sorted(page.targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            is_there = file.exists() and (not parts.fragment or file not in pages or _has(pages[file], parts.fragment))
            if not is_there:
                yield f"{path.relative_to(site)}: {target}"


def _has(page: Page, fragment: str) -> bool:
    return unquote(fragment) in page.anchors


def main(arguments: list[str] | None = None) -> int:
    """Look, print what leads nowhere, and return the exit code."""
    parser = argparse.ArgumentParser(prog="check_site.py", description="Look for links that lead nowhere.")
    parser.add_argument("site", type=Path, help="the folder of the built site")
    site = parser.parse_args(arguments).site.resolve()
    found = list(broken_links(site))
    sys.stderr.writelines(f"check_site: {line}\n" for line in found)
    if not any(site.glob("*.html")):
        sys.stderr.write(f"check_site: {site} has no pages\n")
        return 1
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
