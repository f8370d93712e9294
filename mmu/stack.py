"""Call stacks as small values: cheap to capture, formatted only when a report is printed."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmu.task import Task

Stack = tuple[CodeType | int, ...]
"""Innermost frame first: of each its code object, and next to it the offset of the instruction that
it was executing. A flat tuple is one object to make, to keep and to collect, and an offset costs
less to take than a line: stacks are taken at every lock."""

NO_FRAMES = ["(no frames)"]
"""What `render` makes of a stack in which there is nothing to show, such as that of a thread that
is ending."""

_HIDDEN = (
    "mmu/report.py",
    "mmu/sync/lockdep.py",
    "mmu/sync/locks.py",
    "mmu/sync/default.py",
    "mmu/sync/factory.py",
    "mmu/sync/poison.py",
    "mmu/sync/rwlocks.py",
    "mmu/sync/threads.py",
    "mmu/sync/waiting.py",
    "threading.py",
    "mmu/stack.py",
    "mmu/task.py",
    "mmu/sync/probe.py",
)
"""This package's own machinery, which no report shows."""

_folders: tuple[str, ...] = (f"{Path(__file__).parent}/",)
_plumbing: tuple[str, ...] = _HIDDEN


def register_package(folder: Path, plumbing: tuple[str, ...] = ()) -> None:
    """Show paths of the package in `folder` from its name on, and leave `plumbing` out of stacks.

    `plumbing` are paths of files, or of folders with a slash at the end, that begin with the
    package's name. Lambdas of a package with plumbing are left out, too. Call it from the package's
    `__init__`.
    """
    global _folders, _plumbing  # noqa: PLW0603 - changes while packages are imported, read by reports
    _folders = tuple(dict.fromkeys((*_folders, f"{folder}/")))
    _plumbing = tuple(dict.fromkeys((*_plumbing, *plumbing)))


def capture(skip: int = 1, limit: int = 12) -> Stack:
    """The caller's stack, innermost first, without the `skip` youngest frames; at most `limit`
    frames."""
    return of_frame(sys._getframe(skip), limit)


def of_frame(frame: FrameType | None, limit: int = 12) -> Stack:
    """The stack that ends in `frame`; used for other threads through `sys._current_frames`."""
    found: list[CodeType | int] = []
    while frame is not None and limit:
        found += (frame.f_code, frame.f_lasti)
        frame = frame.f_back
        limit -= 1
    return tuple(found)


def frames(stack: Stack) -> Iterator[tuple[CodeType, int]]:
    """The code object and the line of each frame, innermost first."""
    for code, offset in zip(stack[::2], stack[1::2], strict=True):
        assert isinstance(code, CodeType)
        assert isinstance(offset, int)
        yield code, _line(code, offset)


def innermost(stack: Stack) -> str:
    """The qualified name of the youngest function."""
    code = stack[0]
    assert isinstance(code, CodeType)
    return code.co_qualname


def _line(code: CodeType, offset: int) -> int:
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno


def of_task(task: Task, limit: int = 16) -> Stack:
    """What the task is executing at this moment; empty when it is gone."""
    frame = frames_of_threads().get(task.ident) if task.find_frame is None else task.find_frame()
    return of_frame(frame, limit)


_collector = threading.Lock()


def frames_of_threads() -> dict[int, FrameType]:
    """`sys._current_frames()`, without a garbage collection in the middle of it: up to CPython 3.11
    that hangs the process, if it frees a `threading.local`, on a lock of the interpreter that the
    call holds (python/cpython#106883)."""
    with _collector:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if enabled:
                gc.enable()


def short_path(filename: str) -> str:
    """`filename` from the package directory on, so that reports read the same on every machine."""
    for folder in _folders:
        if filename.startswith(folder):
            return filename[folder.rindex("/", 0, -1) + 1 :]
    return filename.rsplit("/", 1)[-1]


def render(stack: Stack) -> list[str]:
    """One line a frame, `Class.function (file:line)`; the machinery that took the stack is left
    out."""
    lines = []
    for code, line in frames(stack):
        path = short_path(code.co_filename)
        if not (
            path.startswith(_plumbing)
            or ("<lambda>" in code.co_qualname and not path.startswith("mmu/"))
        ):
            lines.append(f"{code.co_qualname.replace('<locals>.', '')} ({path}:{line})")
    return lines or NO_FRAMES


def caller() -> str:
    """The function, outside the synchronisation primitives, on whose behalf the caller runs."""
    return render(capture(2))[0].split(" (")[0]
