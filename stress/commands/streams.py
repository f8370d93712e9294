"""What a command prints on: streams that never raise, so that no verdict depends on who reads them,
and that show control characters instead of passing them on."""

from __future__ import annotations

import io
import sys
from typing import IO, Any, TextIO

from stress.results.printable import printable


class Output(io.FileIO):
    """An open file descriptor. Once it cannot be written, the rest of the output is dropped, and
    `error` says why."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write what can be written, and claim that it was all."""
        if self.error is None:
            try:
                return super().write(data) or 0
            except OSError as error:
                self.error = error
        return len(data)


class Screen(io.TextIOWrapper):
    """A stream of printable text. What is written to `styled` is passed on as it is."""

    def __init__(self, output: Output, before: TextIO | None, *, by_line: bool) -> None:
        options: Any = {
            "encoding": "utf-8" if before is None else before.encoding,
            "errors": "backslashreplace",
            "write_through": True,
        }
        buffer = io.BufferedWriter(output)
        super().__init__(buffer, line_buffering=by_line, **options)
        self.styled = io.TextIOWrapper(buffer, line_buffering=by_line, **options)

    def write(self, text: str) -> int:
        """Write the text."""
        return super().write(printable(text))


def replaced() -> Output:
    """Put such streams in the place of stdout and stderr; returns that of stdout."""
    output = Output(1, "w", closefd=False)
    sys.stdout = Screen(output, sys.stdout, by_line=output.isatty())
    sys.stderr = Screen(Output(2, "w", closefd=False), sys.stderr, by_line=True)
    return output


def styled(stream: TextIO) -> IO[str]:
    """Where styles go that are meant."""
    return stream.styled if isinstance(stream, Screen) else stream
