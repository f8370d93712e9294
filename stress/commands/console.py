"""Rich consoles on the command's streams, whose styles come from us and not from what is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from stress.commands.streams import styled
from stress.results.printable import printable

WIDEST: Final = 100
"""Text in longer lines is hard to read."""


class SafeConsole(Console):
    """A console that shows control characters of texts instead of passing them on."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The parts of what is shown."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def console(*, stderr: bool = False, width: int | None = None, quiet: bool = False) -> Console:
    """A console on stdout or stderr, of this `width` where nobody looks at it in a terminal."""
    stream: Any = styled(sys.stderr if stderr else sys.stdout)
    made = SafeConsole(file=stream, quiet=quiet)
    if width is not None and not made.is_terminal:
        made.width = width
    return made


def columns() -> int | None:
    """The width of the terminal that stdout is, at most 100; None where it is none."""
    screen = console()
    return min(screen.width, WIDEST) if screen.is_terminal else None
