"""Text that does nothing to whoever looks at it. Titles, names of files and recordings come from
anywhere; an escape sequence in them could draw a PASS over a FAIL."""

from __future__ import annotations

import re
from typing import Final

_ACTIVE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tabs and ends of lines
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions of writing
    "\u200b-\u200d\u2028\u2029\u2060\ufeff"  # what takes no room, or ends lines
    "\ud800-\udfff]"  # bytes of a file's name that are no UTF-8
)


def printable(text: str) -> str:
    """The text with escapes in the place of characters that are not seen but acted on."""
    return text if text.isprintable() else _ACTIVE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")
