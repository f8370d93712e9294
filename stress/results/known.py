"""What a command knows of its outcome, in memory that outlives its process.

A command runs in a child of its supervisor (`stress.commands.supervisor`), which shares this
memory. The child may end in any way: by a signal, by `os._exit` in somebody's variant, out of
memory. What it has noted here is then all that is left of it besides the files that it has written.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stress.results.verdict import ExitCode, Verdict

_CODE, _VERDICT, _PATH = 0, 1, 2
_SIZE: Final = 1 << 14
"""Bytes; the longest path that Linux takes has 4,096."""


class Known:
    """What is known of one command: the worst verdict so far, the directory that it keeps its
    result in, and the exit code once it has ended in order."""

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self.memory = memory

    def share(self) -> None:
        """From now on, children of this process that are forked note things here for it."""
        self.memory = mmap.mmap(-1, _SIZE)

    def clear(self) -> None:
        """A command begins: nothing is known."""
        self.memory[:] = bytes(_SIZE)

    @property
    def code(self) -> int | None:
        """The exit code; None while the command goes on, or if it ended out of order."""
        return self.memory[_CODE] - 1 if self.memory[_CODE] else None

    def ends_with(self, code: int) -> None:
        """Note the exit code: from now on nothing changes it."""
        self.memory[_CODE] = code + 1

    @property
    def verdict(self) -> Verdict | None:
        """The worst verdict so far; None if nothing was judged yet."""
        from stress.results.verdict import Verdict  # noqa: PLC0415 - in the child

        return Verdict(self.memory[_VERDICT] - 1) if self.memory[_VERDICT] else None

    def judged(self, verdict: Verdict) -> None:
        """Note a verdict. A better one than is known changes nothing."""
        self.memory[_VERDICT] = max(self.memory[_VERDICT], verdict + 1)

    @property
    def directory(self) -> Path | None:
        """The directory of the command's result, absolute; None while there is none."""
        name = bytes(self.memory[_PATH:]).partition(b"\0")[0]
        return Path(os.fsdecode(name)) if name else None

    def keeps_in(self, directory: Path) -> None:
        """Note the directory that the command keeps its result in."""
        name = os.fsencode(directory.absolute())[: _SIZE - _PATH - 1]
        self.memory[_PATH : _PATH + len(name) + 1] = name + b"\0"

    def code_or(self, otherwise: ExitCode) -> ExitCode:
        """The exit code that stands for the verdict, where there is one."""
        return otherwise if self.verdict is None else self.verdict.exit_code


KNOWN: Final = Known(bytearray(_SIZE))
"""What is known of the command that this process carries out."""


class Owner:
    """The process that a record names as its own: while it lives, the record is in its hands."""

    pid: int | None = None
    """None is this process; a supervised command names its supervisor, which ends after it."""
