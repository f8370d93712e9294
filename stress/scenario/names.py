"""The nearest valid name to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(value: object, names: Iterable[str]) -> str:
    """A hint such as "did you mean vcpus?", or nothing."""
    close = difflib.get_close_matches(str(value), list(names), 1, 0.5)
    return f"did you mean {close[0]}?" if close else ""
