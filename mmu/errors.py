"""Errors that the model raises when going on would hang or corrupt it; broken rules are reports, not errors.

MmuError
  SelfDeadlock     a thread would wait for itself for ever
  KvmError         an ioctl refused, with the kernel's errno
"""

from __future__ import annotations

import errno


class MmuError(Exception):
    """Root of what `mmu` raises."""


class SelfDeadlock(MmuError):
    """The thread asked for a lock in a way that can never be granted (upgrade, write in write); already reported."""


class KvmError(MmuError):
    """An operation on the VM was refused; `errno` is the kernel's number, the text says what to do."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"-{errno.errorcode.get(number, number)}: {why}")
        self.errno = number
