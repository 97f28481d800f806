"""rich's console, for text that may be anybody's. Needs rich."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from rich.console import Console

from loopaware_pool.cli.output import unfiltered, visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment

__all__ = ["VisibleConsole"]


class VisibleConsole(Console):
    """
    Makes visible what would command the terminal in what is printed; rich's own sequences do their work.

    Args:
        file: Where to; None for the output.
        options: As rich's.
    """

    def __init__(self, file: TextIO | None = None, **options: Any) -> None:
        super().__init__(file=unfiltered(file or sys.stdout), highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Give the pieces of *renderable*, as rich calls it for each part before it measures and cuts it."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def on_broken_pipe(self) -> NoReturn:
        """Say that the reader has gone, as the output itself does: rich would exit with 1."""
        raise BrokenPipeError
