"""Errors that the model raises when going on would hang or corrupt it; broken rules are reports,
not errors.

MmuError
  SelfDeadlock     a thread would wait for itself for ever
  BrokenLock       a lock was left half taken or half released; waiting for it could last for ever
  BrokenRule       a report, raised in the thread that broke the rule, as the user asked
  KvmError         an ioctl refused, with the kernel's errno
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmu.report import Report


class MmuError(Exception):
    """Root of what `mmu` raises."""


class SelfDeadlock(MmuError):
    """The thread asked for a lock in a way that can never be granted (upgrade, write in write);
    already reported."""


class BrokenLock(MmuError):
    """An exception has interrupted somebody inside the lock; what its words say is no longer true.
    Already reported."""


class BrokenRule(MmuError):
    """A rule was broken; `report` is the evidence, and the text its splat."""

    def __init__(self, report: Report) -> None:
        super().__init__("\n" + report.render())
        self.report = report


class KvmError(MmuError):
    """An operation on the VM was refused; `errno` is the kernel's number, the text says what to
    do."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"-{errno.errorcode.get(number, number)}: {why}")
        self.errno = number
