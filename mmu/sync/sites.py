"""Lock classes by creation site: all locks that one line of a program makes obey one order, as in
the kernel.

The kernel's `mutex_init()` is a macro with a static key, so every place that makes locks is a class
of its own, and the text of its argument is the class's name. Here the place is a code object's name
and an offset in it, which costs a look-up; the name is read from the source, once for each place:
`Account.lock (bank.py:12)`.
"""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Hashable
from pathlib import Path
from types import FrameType

from mmu.stack import short_path
from mmu.sync.lockdep import LockClass, LockDep

_HERE = str(Path(__file__).parent)
_TARGET = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(?::[^=]*)?=(?!=)")
"""The target of an assignment, with or without an annotation."""


def class_by_site(
    lockdep: LockDep, *, kind: str, sleeping: bool, recursive_read: bool = False
) -> LockClass:
    """The class of the locks that the calling line of the user's program makes."""
    frame = _user_frame()
    code = frame.f_code
    key: Hashable = (kind, code.co_filename, code.co_qualname, frame.f_lasti)
    if code.co_filename.startswith("<"):
        key = (key, _maker(frame))
    known = lockdep.registered(key)
    if known is not None:
        return known
    return lockdep.register(
        _name(frame, kind), sleeping=sleeping, recursive_read=recursive_read, key=key
    )


def _user_frame() -> FrameType:
    """The frame outside this package in which a lock is being made."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return frame


def _maker(frame: FrameType) -> str:
    """Generated code, such as a dataclass's `__init__`, has no place of its own; the class that it
    belongs to tells it apart."""
    owner = type(frame.f_locals.get("self"))
    return f"{owner.__module__}.{owner.__qualname__}"


def _name(frame: FrameType, kind: str) -> str:
    """What to call the locks made at `frame`: the attribute or variable they are assigned to, and
    the place."""
    code = frame.f_code
    if code.co_filename.startswith("<"):
        return f"{kind} of {_maker(frame)}"
    found = _TARGET.match(linecache.getline(code.co_filename, frame.f_lineno))
    target = found[1] if found else kind
    if target.startswith("self."):
        target = f"{_owner(frame)}{target[4:]}"
    return f"{target} ({short_path(code.co_filename)}:{frame.f_lineno})"


def _owner(frame: FrameType) -> str:
    """The class in whose method the lock is made."""
    scope = frame.f_code.co_qualname.rpartition(".")[0]
    return scope.rpartition("<locals>.")[2] or type(frame.f_locals.get("self")).__qualname__
