"""Names for locks, queues and the like: what the program calls them where it makes them."""

from __future__ import annotations

import ast
import linecache
import re
import sys
import sysconfig
from types import CodeType, FrameType
from typing import Final

from stress.testing.plain.session import is_harness

_TARGET: Final = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(?::[^=]*)?=(?!=)")
STDLIB: Final = tuple({f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib")})
SITE: Final = tuple({f"{sysconfig.get_path(name)}/" for name in ("purelib", "platlib")})

_known: dict[tuple[CodeType, int], str | None] = {}


def is_stdlib(filename: str) -> bool:
    """Whether a file belongs to the standard library."""
    return filename.startswith("<frozen ") or (
        filename.startswith(STDLIB) and not filename.startswith(SITE)
    )


def name_at(kind: str) -> str:
    """The name of an object of this `kind` that is being made: the variable or attribute that it is
    assigned to, or the kind."""
    frame: FrameType | None = sys._getframe(1)
    indirect = False
    while frame is not None:
        code = frame.f_code
        if not is_harness(code):
            if not is_stdlib(code.co_filename):
                break
            indirect = True
        frame = frame.f_back
    target = _target(frame) if frame is not None else None
    if target is None:
        return kind
    return f"{target}.{kind}" if indirect else target


def _target(frame: FrameType) -> str | None:
    key = (frame.f_code, frame.f_lasti)
    if key not in _known:
        _known[key] = _read_target(frame)
    target = _known[key]
    if target is not None and target.startswith("self."):
        return f"{type(frame.f_locals.get('self')).__name__}{target[4:]}"
    return target


def _read_target(frame: FrameType) -> str | None:
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    match = _TARGET.match(line)
    return match[1] if match else _one_of_many(frame, line)


def _one_of_many(frame: FrameType, line: str) -> str | None:
    """The target of the call at `frame` in `a, b = f(), g()`."""
    try:
        statement = ast.parse(line.strip()).body[0]
    except (SyntaxError, IndexError):
        return None
    if not isinstance(statement, ast.Assign):
        return None
    targets, values = statement.targets[0], statement.value
    if not (isinstance(targets, ast.Tuple) and isinstance(values, ast.Tuple)):
        return None
    positions = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    column = (positions[2] or 0) - (len(line) - len(line.lstrip()))
    for target, value in zip(targets.elts, values.elts, strict=False):
        if value.col_offset <= column < (value.end_col_offset or 0):
            return ast.unparse(target)
    return None
