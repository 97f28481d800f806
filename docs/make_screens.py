"""
Show what a command looks like on a terminal, as an image: `python docs/make_screens.py [options] OUT.svg COMMAND ...`.

The command runs on a terminal of its own, `--columns` wide, and what it has printed is drawn. Needs rich, and a
system with pseudo-terminals. Exit code 0: drawn; 1: the command took too long, or printed nothing; what the command's
own exit code was does not matter, as commands that find something say so with it.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import select
import subprocess
import sys
import termios
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.segment import Segment

LINES: Final = 200
TIMEOUT_SECONDS: Final = 120.0
THEME: Final = SVG_EXPORT_THEME
BUTTONS: Final = ("#ff5f57", "#febc2e", "#28c840")
FONTS: Final = "'DejaVu Sans Mono', 'Liberation Mono', Menlo, Consolas, monospace"
# In pixels. Most monospaced fonts are some 0.6 of their size wide.
FONT_SIZE: Final = 15
CELL: Final = 9.05
LINE: Final = 20
BASELINE: Final = 15
MARGIN: Final = 14
TOP: Final = 42


class NothingToShow(Exception):
    """The command printed nothing, or did not end; the message says which."""


def main(arguments: list[str] | None = None) -> int:
    """Draw what the command prints, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make_screens.py", description="Show what a command looks like, as SVG.")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write")
    parser.add_argument("--title", help="what is shown as the command (default: the command)")
    parser.add_argument("--columns", type=int, default=100, metavar="N", help="of the terminal (default: 100)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="and its arguments")
    options = parser.parse_args(arguments)
    if not options.command:
        parser.error("a command is missing: give it after OUT")
    try:
        printed = run(options.command, options.columns)
    except NothingToShow as error:
        sys.stderr.write(f"make_screens: {error}\n")
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(draw(printed, options.title or " ".join(options.command), options.columns))
    return 0


def run(command: list[str], columns: int) -> str:
    """
    Run *command* on a terminal, and give what it has printed, colours and all.

    Raises:
        NothingToShow: It printed nothing, or did not end in `TIMEOUT_SECONDS`.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (LINES, columns))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=env | {"TERM": "xterm-256color"}
    ) as process:
        os.close(theirs)
        try:
            printed = _read(ours, monotonic() + TIMEOUT_SECONDS)
        except TimeoutError:
            process.kill()
            raise NothingToShow(f"{command[0]} did not end within {TIMEOUT_SECONDS:g} s") from None
        finally:
            os.close(ours)
    if not printed.strip():
        raise NothingToShow(f"{command[0]} printed nothing")
    return printed.replace("\r\n", "\n").strip("\n")


def _read(terminal: int, deadline: float) -> str:
    printed = b""
    while (left := deadline - monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            try:
                printed += os.read(terminal, 65536)
            except OSError:  # nobody has the terminal open any more
                return printed.decode(errors="replace")
    raise TimeoutError


def draw(printed: str, title: str, columns: int) -> str:
    """
    Draw what was *printed* on a terminal of so many *columns*, as SVG.

    Each word has a place of its own. A renderer may know no `white-space`, no `textLength` and no font of ours, and
    still the columns stand.
    """
    console = Console(width=columns, file=io.StringIO(), highlight=False, color_system="truecolor", force_terminal=True)
    lines = console.render_lines(Text.assemble(f"$ {title}\n\n", Text.from_ansi(printed)), pad=False)
    width, height = round(columns * CELL + 2 * MARGIN), round(len(lines) * LINE + TOP + MARGIN)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        f'  font-family="{FONTS}" font-size="{FONT_SIZE}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{THEME.background_color.hex}"/>',
        *(f'<circle cx="{MARGIN + 8 + 22 * n}" cy="20" r="7" fill="{fill}"/>' for n, fill in enumerate(BUTTONS)),
    ]
    for number, line in enumerate(lines):
        drawn += _draw_line(line, TOP + number * LINE)
    return "\n".join([*drawn, "</svg>", ""])


def _draw_line(line: list[Segment], top: float) -> Iterator[str]:
    """Draw the words of a line where they stand."""
    column = 0
    for text, style, _ in line:
        look = style or Style()
        fill, ground = (colour and colour.get_truecolor(THEME) for colour in (look.color, look.bgcolor))
        if look.reverse:
            fill, ground = ground or THEME.background_color, fill or THEME.foreground_color
        if ground is not None:
            at = f'x="{MARGIN + column * CELL:.1f}" y="{top:.1f}" width="{cell_len(text) * CELL:.1f}" height="{LINE}"'
            yield f'<rect {at} fill="{ground.hex}"/>'
        for word in re.finditer(r"\S+", text):
            start, cells = column + cell_len(text[: word.start()]), cell_len(word[0])
            weight = ' font-weight="bold"' if look.bold else ""
            at = f'x="{MARGIN + start * CELL:.1f}" y="{top + BASELINE:.1f}" textLength="{cells * CELL:.1f}"'
            yield f'<text {at} fill="{(fill or THEME.foreground_color).hex}"{weight}>{escape(word[0])}</text>'
        column += cell_len(text)


if __name__ == "__main__":
    sys.exit(main())
