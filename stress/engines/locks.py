"""Locks under control: a mutual-exclusion lock and the reader-writer lock, whose operations are
scheduling points."""

from __future__ import annotations

from mmu.runtime import RawLock
from stress.engines.scheduler import Scheduler
from stress.engines.steps import ACQUIRE, ADD, LOAD, READ_ACQUIRE, READ_RELEASE, RELEASE, RMW
from stress.engines.tasks import ControlledTask


class ControlledLock:
    """A mutual-exclusion lock under control. A second acquire by its owner waits for ever, as a
    mutex does."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.name = name
        self.pending: list[ControlledTask] = []
        self.owner: ControlledTask | None = None
        self._scheduler = scheduler
        self._word = scheduler.number(1, self)

    def peek(self, index: int = 0) -> str:  # noqa: ARG002 - one word
        """Who holds it, without a step."""
        return self.owner.name if self.owner is not None else ""

    def open_to(self, task: ControlledTask) -> bool:  # noqa: ARG002 - all are equal
        """Whether it is free."""
        return self.owner is None

    def owners(self) -> list[ControlledTask]:
        """Who holds it."""
        return [self.owner] if self.owner is not None else []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; one that may not block, or not for ever, looks once and takes it or not."""
        scheduler = self._scheduler
        if not blocking or timeout >= 0:
            scheduler.step(RMW, self._word)
            if self.owner is not None:
                return False
        else:
            scheduler.pass_gate(ACQUIRE, self._word, self, self.name)
        self.owner = scheduler.running
        if self.pending:
            scheduler.gate_changed(self)
        return True

    def release(self) -> None:
        """Give it back; anybody may."""
        scheduler = self._scheduler
        scheduler.step(RELEASE, self._word)
        if self.owner is None:
            raise RuntimeError("release unlocked lock")
        self.owner = None
        if self.pending:
            scheduler.gate_changed(self)

    def locked(self) -> bool:
        """Whether somebody holds it."""
        self._scheduler.step(LOAD, self._word)
        return self.owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _ControlledHandle:
    """One task's way to a `ControlledRwLock`, for one mode."""

    def __init__(self, lock: ControlledRwLock, write: bool) -> None:
        self._lock = lock
        self._write = write

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: ARG002 - the model always waits
        """Take the lock in this handle's mode."""
        self._lock.take_write() if self._write else self._lock.take_read()
        return True

    def release(self) -> None:
        """Give it back."""
        self._lock.drop_write() if self._write else self._lock.drop_read()


class ControlledRwLock:
    """A reader-writer lock whose every operation is one step, with the three preferences of
    `readerwriterlock`.

    `fair`: a writer first closes the gate, for readers and writers alike, and then waits for the
    readers inside. `writer`: a writer that waits keeps readers out. `reader`: readers enter
    whenever no writer is inside. Asking for it is a step of its own, which `rwlock_needbreak` sees.
    """

    def __init__(self, scheduler: Scheduler, preference: str, name: str) -> None:
        self.name = name
        self.preference = preference
        self.pending: list[ControlledTask] = []
        self.readers: list[ControlledTask] = []
        self.writer: ControlledTask | None = None
        self.gate: ControlledTask | None = None
        self.asking = 0
        """How many tasks wait to be let in."""
        self.writers_waiting = 0
        self._scheduler = scheduler
        self._word = scheduler.number(3, self)
        self._asked = self._word + 1
        self._inside = self._word + 2 if preference == "fair" else self._word
        """Where readers leave and a writer that has closed the gate enters; with a gate, nothing
        else has to be ordered."""

    def gen_rlock(self) -> RawLock:
        """A reader's handle."""
        return _ControlledHandle(self, write=False)

    def gen_wlock(self) -> RawLock:
        """A writer's handle."""
        return _ControlledHandle(self, write=True)

    def peek(self, index: int = 0) -> str:
        """Who holds it, or for word 1 how many ask for it, without a step."""
        if index == 1:
            return str(self.asking)
        if self.writer is not None:
            return f"{self.writer.name} (write)"
        return ", ".join(task.name for task in self.readers)

    def is_contended(self) -> bool:
        """rwlock_needbreak(): whether somebody waits for it."""
        scheduler = self._scheduler
        scheduler.step(LOAD, self._asked)
        if scheduler.keep_extras and not scheduler.quiet:
            scheduler.extras.setdefault(len(scheduler.trace) - 1, []).append((LOAD, self._word))
        return self.asking > 0

    def open_to(self, task: ControlledTask) -> bool:
        """Whether the acquisition that `task` has announced could happen now."""
        if task.kind == READ_ACQUIRE:
            if self.preference == "reader":
                return self.writer is None
            if self.preference == "writer":
                return self.writer is None and not self.writers_waiting
            return self.gate is None
        if self.preference == "fair" and self.gate is not task:
            return self.gate is None
        return self.writer is None and not self.readers

    def owners(self) -> list[ControlledTask]:
        """Who keeps others out."""
        holders = [*self.readers, *([self.writer] if self.writer is not None else [])]
        return holders or ([self.gate] if self.gate is not None else [])

    def take_read(self) -> None:
        """A reader enters."""
        scheduler = self._scheduler
        self._ask(1)
        scheduler.pass_gate(READ_ACQUIRE, self._word, self, f"{self.name} (read)")
        self.asking -= 1
        self.readers.append(scheduler.running)
        if self.pending:
            scheduler.gate_changed(self)

    def take_write(self) -> None:
        """A writer enters."""
        scheduler = self._scheduler
        what = f"{self.name} (write)"
        self._ask(1)
        if self.preference == "fair":
            scheduler.pass_gate(ACQUIRE, self._word, self, what)
            self.gate = scheduler.running
        else:
            scheduler.step(RMW, self._word)
            self.writers_waiting += 1
        if self.pending:
            scheduler.gate_changed(self)
        scheduler.pass_gate(ACQUIRE, self._inside, self, what)
        self.asking -= 1
        if self.preference != "fair":
            self.writers_waiting -= 1
        self.writer = scheduler.running
        if self.pending:
            scheduler.gate_changed(self)

    def drop_read(self) -> None:
        """A reader leaves."""
        scheduler = self._scheduler
        scheduler.step(READ_RELEASE, self._inside)
        if scheduler.running not in self.readers:
            raise RuntimeError("release unlocked lock")
        self.readers.remove(scheduler.running)
        if self.pending:
            scheduler.gate_changed(self)

    def drop_write(self) -> None:
        """A writer leaves."""
        scheduler = self._scheduler
        scheduler.step(RELEASE, self._word)
        if self.writer is None:
            raise RuntimeError("release unlocked lock")
        self.writer = self.gate = None
        if self.pending:
            scheduler.gate_changed(self)

    def _ask(self, amount: int) -> None:
        self._scheduler.step(ADD, self._asked)
        self.asking += amount
