"""
Show what a command looks like on a terminal, as an image: `python docs/make_screens.py [options] OUT.svg COMMAND ...`.

The command runs on a terminal of its own, `--columns` wide, and what it has printed is drawn by rich. Needs rich, and a
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
from typing import Final

from rich.console import Console
from rich.text import Text

LINES: Final = 200
TIMEOUT_SECONDS: Final = 120.0
# Rich has browsers fetch its font from elsewhere. Whatever is monospaced will do.
_FETCHED_FONT: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


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
    """Draw what was *printed* on a terminal of so many *columns*, as SVG."""
    console = Console(record=True, width=columns, file=io.StringIO(), highlight=False, color_system="truecolor")
    console.print(Text(f"$ {title}\n"), Text.from_ansi(printed), sep="\n")
    svg = console.export_svg(title=title, unique_id="screen")
    return _FETCHED_FONT.sub("", svg)


if __name__ == "__main__":
    sys.exit(main())
