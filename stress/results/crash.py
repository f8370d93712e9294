"""Internal errors: one line for people, and a file with the traceback."""

from __future__ import annotations

import os
import tempfile
import traceback


def line_of(error: BaseException) -> str:
    """The error in one line, with the file that its traceback was written to."""
    said = " ".join(str(error).split())
    name = type(error).__name__
    return f"internal error: {name}{': ' + said if said else ''}; {_kept(error)}"


def _kept(error: BaseException) -> str:
    """Where the traceback is; where no file can be written, the innermost frame."""
    try:
        text = "".join(traceback.format_exception(error))
        handle, name = tempfile.mkstemp(".txt", "stress-error-")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return f"please report it, with {name}"
    except (OSError, MemoryError) as trouble:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
        return f"it came from {place} (no traceback could be kept: {trouble!r})"
