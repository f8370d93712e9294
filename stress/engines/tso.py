"""The controlled runtime with x86's memory order: words, tables and locks whose plain stores go
through the store buffers of `stress.engines.store_buffers`.

An unlock is a plain store, as spin_unlock() is on x86: until it is drained the lock is held, as far
as others can tell.
"""

from __future__ import annotations

from typing import Any, TypeVar

from mmu.report import Report, section
from mmu.runtime import Cell
from mmu.stack import render
from mmu.sync.poison import FreedWords
from stress.engines.controlled import (
    ControlledCell,
    ControlledCounter,
    ControlledRuntime,
    ControlledTable,
)
from stress.engines.locks import ControlledLock, ControlledRwLock
from stress.engines.scheduler import Scheduler
from stress.engines.steps import READ_RELEASE, RELEASE, STORE
from stress.engines.store_buffers import BufferedStore, StoreBuffer, StoreBuffers
from stress.engines.tasks import ControlledTask

T = TypeVar("T")


class BufferedCell(ControlledCell[T]):
    """One shared word whose plain stores are buffered."""

    __slots__ = ()

    _scheduler: StoreBuffers

    @property
    def value(self) -> T:
        """READ_ONCE: the task's own newest store, if that is still in its buffer."""
        store = self._scheduler.load(self._word)
        seen: T = self._value if store is None else store.value
        return seen

    @value.setter
    def value(self, value: T) -> None:
        """WRITE_ONCE: into the buffer."""
        if self._scheduler.quiet:
            self._put(value)
        else:
            self._put_off(value)

    def store(self, value: T) -> None:
        """smp_store_mb, which is an XCHG."""
        self.xchg(value)

    def reach(self, store: BufferedStore) -> None:
        """The store is drained."""
        self._put(store.value)

    def _put_off(self, value: T) -> None:
        self._scheduler.put_off(STORE, self._word, self, 0, value)

    def _put(self, value: T) -> None:
        self._value = value
        if self._word in self._scheduler.watched:
            self._scheduler.wrote(self._word)


class Announcement(int):
    """What a reader has announced: tells two sections of one epoch apart, by identity."""


class ReaderWord(BufferedCell[int]):
    """The word in which an RCU reader announces itself. That is seen at once, as if there were no
    buffer; that it has left is a plain store, behind those of its section. Where its last leaving
    is still in the buffer, the reader has not left for anybody else, and the new announcement
    takes its place."""

    __slots__ = ("_idle",)

    def __init__(self, scheduler: Scheduler, name: str, value: int) -> None:
        super().__init__(scheduler, name, value)
        self._idle = value

    def _put_off(self, value: int) -> None:
        if value == self._idle:
            super()._put_off(value)
        elif (leaving := self._scheduler.take_back(STORE, self._word)) is not None:
            leaving.value = Announcement(value)
        else:
            self._put(Announcement(value))


class BufferedCounter(BufferedCell[int], ControlledCounter):
    """A shared integer whose plain stores are buffered; its atomic operations empty the buffer."""

    __slots__ = ()


class BufferedTable(ControlledTable):
    """Shared words whose plain stores are buffered."""

    __slots__ = ()

    _scheduler: StoreBuffers

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ControlledTable.__getitem__(self, index)
        store = self._scheduler.load(self._first + index)
        if store is not None:
            return store.value
        try:
            return list.__getitem__(self, index)
        except IndexError:
            return self._again(index)[index]

    def store(self, index: int, value: int) -> None:
        """WRITE_ONCE: into the buffer."""
        scheduler = self._scheduler
        if scheduler.quiet:
            super().store(index, value)
            return
        if not list.__len__(self) or not 0 <= index < self._size:
            self._again(index).store(index, value)
            return
        scheduler.put_off(STORE, self._first + index, self, index, value)

    def reach(self, store: BufferedStore) -> None:
        """The store is drained."""
        try:
            list.__setitem__(self, store.index, store.value)
        except IndexError:
            self._too_late(store)
            return
        if store.word in self._scheduler.watched:
            self._scheduler.wrote(store.word)

    def _too_late(self, store: BufferedStore) -> None:
        """The table was freed while the store was in its buffer."""
        buffer = self._scheduler.running
        assert isinstance(buffer, StoreBuffer)
        if not isinstance(self, FreedWords):
            raise RuntimeError(f"{self.name} is stored to after its end, by {buffer.name}")
        note = self.note
        note.reporter.emit(
            Report(
                "O2",
                "use-after-free",
                f"BUG: use-after-free by a store of {buffer.owner.name} that was still in its "
                "store buffer",
                f"{note.what} was freed, then entry {store.index} written by {buffer.name}",
                "KASAN use-after-free; reference 2.6 handle_removed_pt, invariant I10",
                buffer.owner.name,
                "store buffer",
                (
                    section(f"freed by {note.freed_by}", render(note.freed_stack)),
                    section(
                        f"retired by {note.retired_by or '(freed directly)'}",
                        render(note.retired_stack),
                    ),
                ),
            )
        )


class BufferedLock(ControlledLock):
    """A mutual-exclusion lock whose release is buffered."""

    _scheduler: StoreBuffers

    def open_to(self, task: ControlledTask) -> bool:
        """Whether it is free, and nothing in the task's buffer."""
        return self.owner is None and not task.buffer.stores

    def release(self) -> None:
        """Put the release into the buffer."""
        scheduler = self._scheduler
        if scheduler.quiet:
            super().release()
            return
        if self.owner is None or scheduler.has_stored(self._word):
            raise RuntimeError("release unlocked lock")
        scheduler.put_off(RELEASE, self._word, self, 0, None)

    def reach(self, store: BufferedStore) -> None:  # noqa: ARG002 - there is one thing to do
        """The release is drained."""
        self.owner = None
        if self.pending:
            self._scheduler.gate_changed(self)

    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._scheduler.load(self._word) is None and self.owner is not None


class BufferedRwLock(ControlledRwLock):
    """A reader-writer lock whose releases are buffered."""

    _scheduler: StoreBuffers

    def open_to(self, task: ControlledTask) -> bool:
        """Whether the acquisition could happen now, and nothing is in the task's buffer."""
        return not task.buffer.stores and super().open_to(task)

    def drop_read(self) -> None:
        """Put a reader's leaving into the buffer."""
        scheduler = self._scheduler
        if scheduler.quiet:
            super().drop_read()
            return
        task = scheduler.running
        if self.readers.count(task) <= scheduler.has_stored(self._inside):
            raise RuntimeError("release unlocked lock")
        scheduler.put_off(READ_RELEASE, self._inside, self, 0, task)

    def drop_write(self) -> None:
        """Put a writer's leaving into the buffer."""
        scheduler = self._scheduler
        if scheduler.quiet:
            super().drop_write()
            return
        if self.writer is None or scheduler.has_stored(self._word):
            raise RuntimeError("release unlocked lock")
        scheduler.put_off(RELEASE, self._word, self, 0, None)

    def reach(self, store: BufferedStore) -> None:
        """A release is drained."""
        if store.kind == RELEASE:
            self.writer = self.gate = None
        else:
            self.readers.remove(store.value)
        if self.pending:
            self._scheduler.gate_changed(self)


class TsoRuntime(ControlledRuntime):
    """Makes everything that tasks share for one schedule, with the memory order of x86."""

    cell_class = BufferedCell
    counter_class = BufferedCounter
    table_class = BufferedTable
    lock_class: type[ControlledLock] = BufferedLock
    rwlock_class = BufferedRwLock

    scheduler: StoreBuffers

    def reader_word(self, name: str, idle: int) -> Cell[int]:
        """The word in which an RCU reader announces itself."""
        return self._unobserved(ReaderWord(self.scheduler, name, idle))

    def mb(self, name: str) -> None:  # noqa: ARG002 - barriers are told apart where they are listed
        """smp_mb(): wait until the task's buffer is empty."""
        self.scheduler.mb()

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass; the task gives its CPU up, which empties the buffer."""
        self.scheduler.mb()
        super().sleep(seconds)
