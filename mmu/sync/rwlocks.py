"""`readerwriterlock` with its traps closed: the same classes and handles, each misuse a report
instead of a hang.

The locks below are `readerwriterlock`'s own. Its state is in handles and none of it in threads, so
it cannot notice what goes wrong: here every acquisition gets a fresh handle, the thread that made
it is its owner, and lockdep knows the modes.

    table_lock = RWLockFair()
    with table_lock.read(): ...     # or gen_rlock(), as in readerwriterlock
    with table_lock.write(): ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, ClassVar

from readerwriterlock import rwlock

from mmu import stack as stacks
from mmu.errors import BrokenLock, BrokenRule, MmuError, SelfDeadlock
from mmu.sync.default import default_sync
from mmu.sync.factory import Sync
from mmu.sync.lockdep import MODES, READ, WRITE, ChainNode, Hold
from mmu.sync.locks import report_bad_unlock, report_not_held
from mmu.sync.sites import class_by_site
from mmu.sync.waiting import Part, Patience, describe_holder, report_hung
from mmu.task import Task, current

CONVOY_S = 0.25
"""How long a non-blocking read waits for other readers to leave the library's inner lock, in
seconds."""


class Grant(Hold):
    """One acquisition: whose, in which mode, and the library's handle for it."""

    __slots__ = ("raw",)

    def __init__(self, lock: ReaderWriterLock, raw: Any, mode: int, site: stacks.Stack) -> None:
        super().__init__(lock.lock_class)
        self.raw = raw
        self.mode = mode
        self.site = site


class ReaderWriterLock:
    """What the six classes share. `preference` says whom the lock lets pass: "fair", "reader" or
    "writer".

    `name`, `atomic` and `sync` are as for `Lock`; the rest is `readerwriterlock`'s.
    """

    raw_class: ClassVar[Callable[..., Any]]
    preference: ClassVar[str]

    def __init__(
        self,
        lock_factory: Callable[[], Any] | None = None,
        time_source: Callable[[], float] = time.monotonic,
        *,
        name: str = "",
        atomic: bool = False,
        sync: Sync | None = None,
    ) -> None:
        self._sync = sync or default_sync()
        self._lockdep = lockdep = self._sync.lockdep
        recursive = self.preference == "reader"
        kind = type(self).__name__
        if name:
            self.lock_class = lockdep.register(name, sleeping=not atomic, recursive_read=recursive)
        else:
            self.lock_class = class_by_site(
                lockdep, kind=kind, sleeping=not atomic, recursive_read=recursive
            )
        self.name = self.lock_class.name
        self._raw = type(self).raw_class(
            lock_factory=lock_factory or self._sync.runtime.lock, time_source=time_source
        )
        self._grants: dict[Task, Grant] = {}
        self._writers = self._sync.runtime.counter(f"{self.name}.writers")
        self._granted = self._sync.runtime.counter(f"{self.name}.granted")
        self._broken = self._sync.runtime.cell(f"{self.name}.broken", "")

    def read(self) -> ReadHandle:
        """A context in which the lock is held shared."""
        return ReadHandle(self)

    def write(self) -> WriteHandle:
        """A context in which the lock is held exclusively."""
        return WriteHandle(self)

    gen_rlock = read
    gen_wlock = write

    def held_mode(self) -> int:
        """0, `READ` or `WRITE`: how the calling thread holds the lock."""
        grant = self._mine(current.task)
        return grant.mode if grant is not None else 0

    def assert_held(self) -> None:
        """lockdep_assert_held(): a report unless the calling thread holds it, in either mode."""
        if not self.held_mode():
            report_not_held(self._lockdep, self.name, "held")

    def assert_held_write(self) -> None:
        """lockdep_assert_held_write()."""
        if self.held_mode() != WRITE:
            report_not_held(self._lockdep, self.name, "held for write", self.held_mode())

    def holders(self) -> list[Hold]:
        """Everybody's record who holds the lock now."""
        return list(self._grants.values())

    def locked(self) -> bool:
        """Whether anybody holds it, in either mode."""
        return bool(self._grants)

    def __repr__(self) -> str:
        held = ", ".join(f"{MODES[hold.mode]} by {hold.task}" for hold in self.holders())
        return f"<{type(self).__name__} {self.name}, {held or 'free'}>"

    def take(self, mode: int, blocking: bool, timeout: float, site: stacks.Stack) -> Grant | None:
        """Acquire for the calling thread; None when not blocking or timed out."""
        task = current.task
        mine = self._mine(task)
        if mine is not None:
            return self._take_again(mine, mode, blocking, timeout)
        self._refuse_broken()
        node = self._enter(task, mode, blocking)
        raw = self._raw.gen_rlock() if mode == READ else self._raw.gen_wlock()
        if mode == WRITE:
            self._writers.add(1)
        taken = False
        try:
            taken = self._acquire(task, raw, mode, blocking, timeout)
        finally:
            if mode == WRITE and not taken:
                self._writers.add(-1)
        if not taken:
            return None
        grant = Grant(self, raw, mode, site)
        self._grants[task] = grant
        self._granted.add(1)
        task.chain = node
        task.held.append(grant)
        return grant

    def give(self, grant: Grant) -> None:
        """Release what `take` has granted; by another thread it is a report, and done all the
        same."""
        task = grant.task
        if task is not current.task:
            self._report_foreign(grant)
        if grant.depth:
            grant.depth -= 1
            return
        # two threads have released one handle: the library would let both
        if self._grants.pop(task, None) is not grant:
            report_bad_unlock(self._lockdep, self.name)
            raise RuntimeError("release unlocked lock")
        was, grant.mode = grant.mode, 0
        if task is current.task:
            self._lockdep.leave(grant)
        self._guarded(grant.raw.release)
        if was == WRITE:
            self._writers.add(-1)

    def lower(self, grant: Grant) -> None:  # noqa: ARG002 - two of the six can
        """Downgrade: from exclusive to shared, with nobody in between."""
        self._report_downgrade()
        raise MmuError(
            f"{type(self).__name__} cannot downgrade {self.name}: use RWLockFairD or RWLockWriteD"
        )

    def report_handle(self, code: str, headline: str, sentence: str) -> None:
        """A handle was misused, in a way that the library lets pass."""
        here = stacks.caller()
        parts: tuple[Part, ...] = tuple(
            part for hold in self.holders() for part in describe_holder(hold)
        )
        self._lockdep.report(
            code,
            headline,
            sentence,
            "readerwriterlock 1.0.10",
            subject=f"{self.name} in {here}",
            extra=parts,
        )

    def _mine(self, task: Task) -> Grant | None:
        return self._grants.get(task)

    def _enter(self, task: Task, mode: int, blocking: bool) -> ChainNode:
        """Lockdep's part, before anything can block."""
        lockdep, lock_class = self._lockdep, self.lock_class
        chain = task.chain or lockdep.root
        if blocking and lock_class.sleeping:
            doing = f"taking {self.name} ({MODES[mode]})"
            if chain.spinning is not None:
                lockdep.might_sleep(doing)
            self._sync.rcu.forbid_sleep(doing)
        known = chain.children.get(lock_class.key(mode, not blocking))
        return known or lockdep.extend(task, lock_class, mode, trylock=not blocking)

    def _acquire(self, task: Task, raw: Any, mode: int, blocking: bool, timeout: float) -> bool:
        if self._guarded(raw.acquire, False):
            return True
        if not blocking:
            # The library's readers meet in an inner lock, and a non-blocking one fails there
            # although no writer is near.
            return (
                mode == READ
                and not self._writers.value
                and bool(self._guarded(raw.acquire, True, CONVOY_S))
            )
        before, task.waiting_for = task.waiting_for, f"{self.name} ({MODES[mode]})"
        try:
            return self._wait(task, raw, timeout)
        finally:
            task.waiting_for = before

    def _wait(self, task: Task, raw: Any, timeout: float) -> bool:
        """Wait, but not in silence, and not for a lock that has been broken meanwhile."""
        patience = self._sync.hung_seconds
        granted = self._granted.value
        wait = Patience(self._sync.runtime, patience, timeout)
        while not wait.acquire(lambda seconds: bool(self._guarded(raw.acquire, True, seconds))):
            if not wait.left:
                return False
            self._refuse_broken()
            report_hung(
                self._lockdep,
                task,
                self.name,
                patience,
                self.holders(),
                self._granted.value - granted,
            )
        return True

    def _guarded(self, step: Callable[..., Any], *args: Any) -> Any:
        """Run the library's code; an exception in the middle of it leaves its inner locks as they
        are, perhaps for ever."""
        try:
            return step(*args)
        except BaseException as error:
            self._broken.value = f"{type(error).__name__} in {current.task}"
            # what interrupted the thread weighs more than that it was here
            with suppress(BrokenRule):
                self._report_interrupted(error)
            raise

    def _report_interrupted(self, error: BaseException) -> None:
        self._lockdep.report(
            "interrupted-lock",
            f"BUG: {type(error).__name__} inside {self.name}: its inner locks may stay held for "
            "ever",
            "readerwriterlock is not safe against exceptions from outside: only a thread that gets "
            "no signals may wait in it",
            "readerwriterlock 1.0.10, acquire() and release()",
            subject=self.name,
        )

    def _refuse_broken(self) -> None:
        if self._broken.value:
            raise BrokenLock(
                f"{self.name} was left half taken by {self._broken.value}: make a new lock"
            )

    def _take_again(self, mine: Grant, mode: int, blocking: bool, timeout: float) -> Grant | None:
        """The calling thread holds the lock already: a read in a read is counted, everything else
        can never be granted. Whoever only tries waits for nobody, and may."""
        if mine.mode == READ and mode == READ:
            if blocking and not self.lock_class.recursive_read:
                self._report_nesting(
                    mine,
                    mode,
                    "a waiting writer blocks the inner read, and the outer read blocks the writer",
                )
            mine.depth += 1
            return mine
        if not blocking:
            return None
        self._report_nesting(
            mine,
            mode,
            "the thread would wait for itself; the lock has no upgrade and is not recursive",
        )
        if timeout >= 0:
            return None
        raise SelfDeadlock(
            f"{mine.task} holds {self.name} for {MODES[mine.mode]} and asks for {MODES[mode]}: "
            "release it first"
        )

    def _report_nesting(self, mine: Grant, mode: int, why: str) -> None:
        self._lockdep.report(
            f"{MODES[mode]}-in-{MODES[mine.mode]}",
            f"WARNING: possible recursive locking detected: {self.name} ({MODES[mode]} inside "
            f"{MODES[mine.mode]})",
            f"{self.name} is not recursive: {why}",
            "Documentation/locking/lockdep-design (recursive read locks)",
            subject=self.name,
            extra=((f"{self.name} was taken at", stacks.render(mine.site)),),
        )

    def _report_foreign(self, grant: Grant) -> None:
        self._lockdep.report(
            "released-by-other",
            f"WARNING: bad unlock balance detected: {self.name} is released by a thread that does "
            "not hold it",
            f"a lock is released by the thread that took it, and that was {grant.task}",
            "kernel/locking/lockdep.c print_unlock_imbalance_bug()",
            subject=self.name,
            extra=((f"taken by {grant.task} at", stacks.render(grant.site)),),
        )

    def _report_downgrade(self) -> None:
        self._lockdep.report(
            "downgrade-not-atomic",
            f"WARNING: {self.name}: a downgrade that lets other writers in between",
            f"after a downgrade the state is still what the writer left; {type(self).__name__} "
            "cannot promise that",
            "readerwriterlock 1.0.10, RWLockReadD.downgrade()",
            subject=self.name,
        )


class _Downgradable(ReaderWriterLock):
    """The library's downgrade is atomic here: readers that wait are let in, writers are not."""

    def lower(self, grant: Grant) -> None:
        """From exclusive to shared."""
        task = grant.task
        grant.raw = self._guarded(grant.raw.downgrade)
        self._lockdep.leave(grant)
        grant.mode = READ
        # it waits for nobody
        task.chain = self._lockdep.extend(task, self.lock_class, READ, trylock=True)
        task.held.append(grant)
        self._writers.add(-1)


class RWLockRead(ReaderWriterLock):
    """Readers pass waiting writers: a read inside a read is safe, and a writer may starve."""

    raw_class: ClassVar[Callable[..., Any]] = rwlock.RWLockRead
    preference = "reader"


class RWLockWrite(ReaderWriterLock):
    """Writers pass waiting readers: a read inside a read deadlocks once a writer waits, and a
    reader may starve."""

    raw_class: ClassVar[Callable[..., Any]] = rwlock.RWLockWrite
    preference = "writer"


class RWLockFair(ReaderWriterLock):
    """Neither passes the other: a read inside a read deadlocks once a writer waits."""

    raw_class: ClassVar[Callable[..., Any]] = rwlock.RWLockFair
    preference = "fair"


class RWLockReadD(RWLockRead):
    """As `RWLockRead`. The library's downgrade is not atomic here (another writer gets in between):
    it is refused."""

    raw_class: ClassVar[Callable[..., Any]] = rwlock.RWLockReadD


class RWLockWriteD(RWLockWrite, _Downgradable):
    """As `RWLockWrite`, with `downgrade()`."""

    raw_class: ClassVar[Callable[..., Any]] = rwlock.RWLockWriteD


class RWLockFairD(RWLockFair, _Downgradable):
    """As `RWLockFair`, with `downgrade()`."""

    raw_class: ClassVar[Callable[..., Any]] = rwlock.RWLockFairD


class ReadHandle:
    """One section of one thread in a reader-writer lock; acquire it once, release it once."""

    __slots__ = ("_grant", "_lock", "_used")

    mode = READ

    def __init__(self, lock: ReaderWriterLock) -> None:
        self._lock = lock
        self._grant: Grant | None = None
        self._used = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; false only when not blocking or timed out."""
        if self._grant is not None:
            return self._acquire_twice(blocking and timeout < 0)
        self._used = True
        frame = sys._getframe(1)
        self._grant = self._lock.take(self.mode, blocking, timeout, (frame.f_code, frame.f_lasti))
        return self._grant is not None

    __enter__ = acquire

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._grant is not None:
            self.release()

    def release(self) -> None:
        """Give it back. Of a handle that holds nothing this is a report and, as in the library, a
        RuntimeError."""
        grant, self._grant = self._grant, None
        if grant is None:
            report_bad_unlock(
                self._lock._lockdep, self._lock.name, self._lock.held_mode(), self.mode
            )
            raise RuntimeError("release unlocked lock")
        self._lock.give(grant)

    def locked(self) -> bool:
        """Whether this handle holds the lock. One that was never acquired is asked about the lock
        by mistake: it is reported, and answered for the lock."""
        if self._used:
            return self._grant is not None
        self._lock.report_handle(
            "locked-of-fresh-handle",
            f"WARNING: locked() of a handle of {self._lock.name} that was never acquired",
            "a handle knows only of itself; ask the lock: lock.locked(), lock.held_mode(), "
            "lock.assert_held()",
        )
        return self._lock.locked()

    def _acquire_twice(self, for_ever: bool) -> bool:
        """The library would count the holder twice and forget it once, or lose the lock
        altogether."""
        lock = self._lock
        assert self._grant is not None
        lock.report_handle(
            "handle-acquired-twice",
            f"WARNING: a {MODES[self.mode]} handle of {lock.name} is acquired again before it was "
            "released",
            f"a handle stands for one acquisition; this one belongs to {self._grant.task}: make "
            "one for each, lock.read() or lock.write()",
        )
        if not for_ever:
            return False
        raise SelfDeadlock(
            f"this handle of {lock.name} is in use by {self._grant.task}: make another one"
        )


class WriteHandle(ReadHandle):
    """The same for exclusive holding."""

    __slots__ = ()

    mode = WRITE

    def downgrade(self) -> ReadHandle:
        """Hold the lock shared from now on, with no writer in between; returns the handle to
        release in the end."""
        if self._grant is None:
            report_bad_unlock(self._lock._lockdep, self._lock.name, self._lock.held_mode(), WRITE)
            raise RuntimeError("downgrade of a handle that holds nothing")
        self._lock.lower(self._grant)
        reader = ReadHandle(self._lock)
        reader._used = True
        reader._grant, self._grant = self._grant, None
        return reader
