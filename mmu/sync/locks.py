"""Mutex, spinlock and `mmu_lock`: raw locks of the runtime with lockdep's rules on top.

Misuse is reported and does no harm: a release without an acquire is ignored after its report, a
read inside a read is counted, and a request that could never be granted raises `SelfDeadlock`
instead of hanging.
"""

from __future__ import annotations

import functools
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from mmu.errors import SelfDeadlock
from mmu.runtime import RawLock, RawRwLock, Runtime
from mmu.stack import caller, capture
from mmu.sync.lockdep import MODES, READ, WRITE, Hold, LockDep
from mmu.sync.probe import SyncProbe
from mmu.task import Task, is_time_to_tidy

if TYPE_CHECKING:
    from mmu.sync.rcu import Rcu


class Mutex:
    """A lock that may sleep (`struct mutex`): not to be taken in atomic context."""

    sleeping = True

    def __init__(
        self, runtime: Runtime, lockdep: LockDep, name: str, rcu: Rcu | None = None
    ) -> None:
        self.name = name
        self.lock_class = lockdep.register(name, sleeping=self.sleeping)
        self._lockdep = lockdep
        self._rcu = rcu
        self._key = self.lock_class.key(WRITE)
        self._raw: RawLock = runtime.lock(name)
        self._local = runtime.local(functools.partial(Hold, self.lock_class))
        self._doing = f"taking {name}"

    def acquire(self) -> None:
        """Take the lock; lockdep checks the order before the thread can block."""
        hold = self._local.mine
        task = hold.task
        lockdep = self._lockdep
        if hold.mode:
            self._self_deadlock(hold)
        if self.sleeping:
            self._lockdep.might_sleep(self._doing)
            if self._rcu is not None:
                self._rcu.forbid_sleep(self._doing)
        node = lockdep.chain_of(task)
        task.chain = node.children.get(self._key) or lockdep.extend(task, self.lock_class, WRITE)
        hold.mode = -WRITE
        before, task.waiting_for = task.waiting_for, self.name
        self._raw.acquire()
        task.waiting_for = before
        hold.mode = WRITE
        hold.site = capture(2, 6)
        task.held.append(hold)

    def release(self) -> None:
        """Give the lock back; by a thread that does not hold it, this is a report and nothing
        else."""
        hold = self._local.mine
        if not hold.mode:
            report_bad_unlock(self._lockdep, self.name)
            return
        hold.mode = 0
        self._lockdep.leave(hold)
        self._raw.release()

    def held(self) -> bool:
        """Whether the calling thread holds the lock."""
        return self._local.mine.mode != 0

    def assert_held(self) -> None:
        """lockdep_assert_held."""
        if not self._local.mine.mode:
            report_not_held(self._lockdep, self.name, "held")

    def assert_not_held(self) -> None:
        """lockdep_assert_not_held."""
        if self._local.mine.mode:
            report_not_held(self._lockdep, self.name, "not held")

    def _self_deadlock(self, hold: Hold) -> None:
        self._lockdep.report(
            "recursive-lock",
            f"WARNING: possible recursive locking detected: {self.name}",
            f"{hold.task} takes {self.name}, which it already holds; it would wait for itself for "
            "ever",
            "kernel/locking/lockdep.c check_deadlock()",
            subject=self.name,
        )
        raise SelfDeadlock(
            f"{hold.task} already holds {self.name}: release it first, or pass the lock held"
        )

    def __enter__(self) -> Mutex:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class SpinLock(Mutex):
    """A lock whose holder may not sleep (`spinlock_t`)."""

    sleeping = False


class RwHold(Hold):
    """A thread's record of a reader-writer lock, with its own pair of `readerwriterlock` handles.

    The handles keep the lock's state, so each thread has its own and never takes one twice.
    """

    __slots__ = ("read_acquire", "read_release", "write_acquire", "write_release")

    def __init__(self, lock: RwLock) -> None:
        super().__init__(lock.lock_class)
        reader, writer = lock.raw.gen_rlock(), lock.raw.gen_wlock()
        self.read_acquire = reader.acquire
        self.read_release = reader.release
        self.write_acquire = writer.acquire
        self.write_release = writer.release


class RwLock:
    """`mmu_lock`: a spinning reader-writer lock over `readerwriterlock` (`preference`: fair, reader
    or writer)."""

    def __init__(
        self,
        runtime: Runtime,
        lockdep: LockDep,
        name: str,
        preference: str = "fair",
        probe: SyncProbe | None = None,
        rcu: Rcu | None = None,
    ) -> None:
        self.name = name
        self.preference = preference
        self.raw: RawRwLock = runtime.rwlock(preference, name)
        self._contended = runtime.contention_of(self.raw)
        self.lock_class = lockdep.register(
            name, sleeping=False, recursive_read=preference == "reader"
        )
        self._lockdep = lockdep
        self._probe = probe or SyncProbe()
        self._rcu = rcu
        self._runtime = runtime
        self._read_key = self.lock_class.key(READ)
        self._write_key = self.lock_class.key(WRITE)
        self._holds: tuple[RwHold, ...] = ()
        self._holds_lock = threading.Lock()
        self.local = runtime.local(self._enlist)
        """`local.mine` is the calling thread's record."""

    def _enlist(self) -> RwHold:
        """The calling thread's record, which `needbreak` looks at, too; those of threads that have
        ended are forgotten."""
        hold = RwHold(self)
        with self._holds_lock:
            holds = self._holds
            if is_time_to_tidy(len(holds)):
                holds = tuple(other for other in holds if other.task.thread.is_alive())
            self._holds = (*holds, hold)
        return hold

    def read_lock(self, hold: RwHold | None = None) -> None:
        """read_lock(): shared with other readers, not recursive.

        `hold` is the calling thread's own record, `local.mine`, from a caller that has it at hand.
        """
        if hold is None:
            hold = self.local.mine
        if hold.mode:
            self._nested(hold, READ)
            return
        task = hold.task
        try:
            task.chain = task.chain.children[self._read_key]  # type: ignore[union-attr]  # no chain: not seen before
        except (AttributeError, KeyError):
            task.chain = self._lockdep.extend(task, self.lock_class, READ)
        hold.mode = -READ
        hold.read_acquire()
        hold.mode = READ

    def read_unlock(self, hold: RwHold | None = None) -> None:
        """read_unlock(); `hold` as in `read_lock`."""
        if hold is None:
            hold = self.local.mine
        if hold.mode != READ:
            report_bad_unlock(self._lockdep, self.name, hold.mode, READ)
            return
        if hold.depth:
            hold.depth -= 1
            return
        task = hold.task
        chain = task.chain
        if chain.lock_class is self.lock_class:  # type: ignore[union-attr]  # a lock is held, so there is a chain
            task.chain = chain.parent  # type: ignore[union-attr]
        else:
            self._lockdep.leave(hold)
        hold.mode = 0
        hold.read_release()

    def write_lock(self) -> None:
        """write_lock(): exclusive."""
        hold = self.local.mine
        if hold.mode:
            self._nested(hold, WRITE)
        task = hold.task
        node = self._lockdep.chain_of(task).children.get(self._write_key)
        task.chain = node or self._lockdep.extend(task, self.lock_class, WRITE)
        hold.mode = -WRITE
        before, task.waiting_for = task.waiting_for, f"{self.name} (write)"
        hold.write_acquire()
        task.waiting_for = before
        hold.mode = WRITE
        hold.site = capture(2, 6)
        task.held.append(hold)
        if self._probe.mmu_write_locked is not None:
            self._probe.mmu_write_locked()

    def write_unlock(self) -> None:
        """write_unlock()."""
        hold = self.local.mine
        if hold.mode != WRITE:
            report_bad_unlock(self._lockdep, self.name, hold.mode, WRITE)
            return
        if self._probe.mmu_write_unlocking is not None:
            self._probe.mmu_write_unlocking()
        self._lockdep.leave(hold)
        hold.mode = 0
        hold.write_release()

    def lock(self, shared: bool) -> None:
        """Take it in the mode that callers pass around as `shared`."""
        self.read_lock() if shared else self.write_lock()

    def unlock(self, shared: bool) -> None:
        """The counterpart of `lock`."""
        self.read_unlock() if shared else self.write_unlock()

    def needbreak(self) -> bool:
        """rwlock_needbreak(): whether another thread waits for the lock."""
        if self._contended is not None:
            return self._contended()
        for hold in self._holds:  # noqa: SIM110 - any() with a generator triples the cost of a zap's step
            if hold.mode < 0:
                return True
        return False

    def waiters(self) -> list[tuple[Task, str]]:
        """Who waits for the lock now, and in which mode: (task, "read" or "write")."""
        return [(hold.task, MODES[-hold.mode]) for hold in self._holds if hold.mode < 0]

    def cond_resched(self, shared: bool) -> bool:
        """cond_resched_rwlock_read/write(): when contended, drop the lock, let others run, take it
        again."""
        if not self.needbreak():
            return False
        if self._rcu is not None:
            self._rcu.forbid_sleep(f"cond_resched_rwlock({self.name})")
        self.unlock(shared)
        self._runtime.resched()
        self.lock(shared)
        return True

    def held_mode(self) -> int:
        """0, READ or WRITE: how the calling thread holds the lock."""
        return self.local.mine.mode

    def has_writer(self) -> bool:
        """Whether any thread holds the lock for write just now."""
        return any(hold.mode == WRITE for hold in self._holds)

    def assert_held(self) -> None:
        """lockdep_assert_held: in any mode."""
        if not self.local.mine.mode:
            report_not_held(self._lockdep, self.name, "held")

    def assert_held_read(self) -> None:
        """lockdep_assert_held_read."""
        if self.local.mine.mode != READ:
            report_not_held(self._lockdep, self.name, "held for read", self.local.mine.mode)

    def assert_held_write(self) -> None:
        """lockdep_assert_held_write."""
        if self.local.mine.mode != WRITE:
            report_not_held(self._lockdep, self.name, "held for write", self.local.mine.mode)

    def assert_held_mode(self, shared: bool) -> None:
        """kvm_lockdep_assert_mmu_lock_held: in the mode that `shared` says."""
        self.assert_held_read() if shared else self.assert_held_write()

    def assert_not_held(self) -> None:
        """lockdep_assert_not_held."""
        if self.local.mine.mode:
            report_not_held(self._lockdep, self.name, "not held", self.local.mine.mode)

    def _nested(self, hold: RwHold, wanted: int) -> None:
        """The thread already holds the lock: count a read in a read, refuse what can never be
        granted."""
        if hold.mode == READ and wanted == READ:
            if self.preference != "reader":
                self._report_nesting(
                    hold,
                    wanted,
                    "a waiting writer blocks the inner read, and the outer read blocks the writer",
                )
            hold.depth += 1
            return
        self._report_nesting(
            hold,
            wanted,
            "the thread would wait for itself for ever; there is no upgrade and no downgrade",
        )
        raise SelfDeadlock(
            f"{hold.task} holds {self.name} for {MODES[hold.mode]} and asks for {MODES[wanted]}: "
            "release it first"
        )

    def _report_nesting(self, hold: RwHold, wanted: int, why: str) -> None:
        self._lockdep.report(
            f"{MODES[wanted]}-in-{MODES[hold.mode]}",
            f"WARNING: possible recursive locking detected: {self.name} ({MODES[wanted]} inside "
            f"{MODES[hold.mode]})",
            f"{self.name} is not recursive: {why}",
            "reference 2.1 rule 8; Documentation/locking/lockdep-design (recursive read locks)",
            subject=self.name,
        )


def report_not_held(lockdep: LockDep, name: str, wanted: str, mode: int = 0) -> None:
    """A lockdep_assert_* failed: the lock must be `wanted`, and the caller holds it as `mode`."""
    must = "not be held" if wanted == "not held" else f"be {wanted}"
    held = f"held for {MODES[mode]}" if mode else "held" if wanted == "not held" else "not held"
    lockdep.report(
        "assert-" + wanted.replace(" ", "-"),
        f"WARNING: lockdep assertion failed: {name} must {must}",
        f"{name} must {must} where this function is called; it is {held}",
        "lockdep_assert_held*(); reference 2.14",
        subject=f"{name} {wanted} in {caller()}",
    )


def report_bad_unlock(lockdep: LockDep, name: str, mode: int = 0, released: int = WRITE) -> None:
    """A release that no acquire belongs to; the lock itself is left alone."""
    lockdep.report(
        "bad-unlock-balance",
        f"WARNING: bad unlock balance detected: {name}",
        f"the thread releases {name} ({MODES[released]}) but holds it as: {MODES[mode]}",
        "kernel/locking/lockdep.c print_unlock_imbalance_bug()",
        subject=name,
    )
