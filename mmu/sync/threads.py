"""`Lock`, `RLock` and `Condition` for ordinary threads: what `threading` has, with lockdep's rules
on top.

The methods, their arguments and results are `threading`'s. What is added: every acquisition is
checked against every order in which locks of these classes were ever taken; a thread that asks for
a lock it holds, and threads that wait for each other in a ring, get `SelfDeadlock` instead of
waiting for ever; a wait that lasts too long is reported with the stack of whoever holds the lock; a
lock that its thread takes with it when it ends is reported.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from mmu import stack as stacks
from mmu.errors import SelfDeadlock
from mmu.runtime import RawLock
from mmu.sync.default import default_sync
from mmu.sync.factory import Sync
from mmu.sync.lockdep import WRITE, ChainNode, Hold, LockClass
from mmu.sync.locks import report_bad_unlock, report_not_held
from mmu.sync.sites import class_by_site
from mmu.sync.waiting import Patience, describe_holder, report_hung
from mmu.task import Task, current

LONGEST_RING = 64
MAX_SUBCLASSES = 8
"""As in the kernel: whoever needs more levels of one class has a hierarchy that deserves names."""


class Lock:
    """`threading.Lock` with an owner and a place in the lock order.

    Locks made at one place of the program are of one class and share their rules, unless `name`
    says which class this one belongs to. Whoever holds an `atomic` lock may not block: no other
    lock that is not atomic, no `might_sleep()`.
    """

    kind = "Lock"

    def __init__(self, name: str = "", *, atomic: bool = False, sync: Sync | None = None) -> None:
        self._sync = sync or default_sync()
        self._lockdep = self._sync.lockdep
        self._sleeping = not atomic
        if name:
            self.lock_class = self._lockdep.register(name, sleeping=not atomic)
        else:
            self.lock_class = class_by_site(self._lockdep, kind=self.kind, sleeping=not atomic)
        self.name = self.lock_class.name
        self._key = self.lock_class.key(WRITE)
        self._raw: RawLock = self._sync.runtime.lock(self.name)
        self._owner: Task | None = None
        self._depth = 0
        self._hold = Hold(self.lock_class)

    def acquire(self, blocking: bool = True, timeout: float = -1, *, subclass: int = 0) -> bool:
        """Take the lock; false only when not blocking or timed out.

        `subclass` (mutex_lock_nested) is for locks of one class that are taken inside each other on
        purpose, such as a parent's and its child's: 0 for the outer one, 1 for the one inside it,
        and so on.
        """
        task = current.task
        if self._owner is task:
            return self._again(task, blocking, timeout)
        lock_class, key = (self.lock_class, self._key) if not subclass else self._nested(subclass)
        lockdep = self._lockdep
        chain = task.chain or lockdep.root
        if not blocking:
            if not self._raw.acquire(False):
                return False
            node = chain.children.get(lock_class.key(WRITE, trylock=True)) or lockdep.extend(
                task, lock_class, WRITE, trylock=True
            )
        else:
            if self._sleeping and (chain.spinning is not None or task.locals):
                self._check_context(chain)
            node = chain.children.get(key) or lockdep.extend(task, lock_class, WRITE)
            if not self._raw.acquire(False) and not self._wait(task, timeout):
                return False
        self._owner = task
        hold = self._hold
        hold.task = task
        hold.lock_class = lock_class
        hold.mode = WRITE
        frame = sys._getframe(1)
        hold.site = (frame.f_code, frame.f_lasti)
        task.chain = node
        task.held.append(hold)
        return True

    __enter__ = acquire

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back. By a thread that does not hold it this is a report; a `Lock` is
        released all the same, as `threading` does it, and one that nobody holds is a RuntimeError,
        as there."""
        task = current.task
        if self._owner is not task:
            self._release_for_other()
            return
        if self._depth:
            self._depth -= 1
            return
        self._owner = None
        hold = self._hold
        hold.mode = 0
        chain, held = task.chain, task.held
        if chain is not None and chain.lock_class is hold.lock_class and held[-1] is hold:
            task.chain = chain.parent
            held.pop()
        else:
            self._lockdep.leave(hold)
        self._raw.release()

    def locked(self) -> bool:
        """Whether anybody holds it."""
        return self._owner is not None

    def held(self) -> bool:
        """Whether the calling thread holds it."""
        return self._owner is current.task

    def assert_held(self) -> None:
        """lockdep_assert_held(): a report unless the calling thread holds it."""
        if self._owner is not current.task:
            report_not_held(self._lockdep, self.name, "held")

    def assert_not_held(self) -> None:
        """lockdep_assert_not_held()."""
        if self._owner is current.task:
            report_not_held(self._lockdep, self.name, "not held")

    def nested(self, subclass: int) -> Nested:
        """`with lock.nested(1):` is `acquire(subclass=1)` as a context."""
        return Nested(self, subclass)

    def __repr__(self) -> str:
        owner = self._owner
        return (
            f"<{type(self).__name__} {self.name}, "
            f"{f'held by {owner}' if owner is not None else 'free'}>"
        )

    def owner(self) -> Task | None:
        """Who holds it now."""
        return self._owner

    def holders(self) -> list[Hold]:
        """The record of whoever holds it now."""
        return [self._hold] if self._owner is not None else []

    def _nested(self, subclass: int) -> tuple[LockClass, int]:
        if not 0 < subclass < MAX_SUBCLASSES:
            raise ValueError(f"subclass is {subclass}; expected 0 to {MAX_SUBCLASSES - 1}")
        outer = self.lock_class
        key = (outer.index, subclass)
        known = self._lockdep.registered(key)
        known = known or self._lockdep.register(
            f"{outer.name}/{subclass}", sleeping=outer.sleeping, key=key
        )
        return known, known.key(WRITE)

    def _check_context(self, chain: ChainNode) -> None:
        """Nobody blocks in atomic context or inside an RCU read section."""
        if chain.spinning is not None:
            self._lockdep.might_sleep(f"taking {self.name}")
        self._sync.rcu.forbid_sleep(f"taking {self.name}")

    def _again(self, task: Task, blocking: bool, timeout: float) -> bool:
        """The calling thread holds the lock: it can never be granted, and is not waited for."""
        if not blocking:
            return False
        self._lockdep.report(
            "recursive-lock",
            f"WARNING: possible recursive locking detected: {self.name}",
            f"{task} takes {self.name}, which it already holds; it would wait for itself for ever",
            "kernel/locking/lockdep.c check_deadlock()",
            subject=self.name,
            extra=((f"{self.name} was taken at", stacks.render(self._hold.site)),),
        )
        if timeout >= 0:
            return False
        raise SelfDeadlock(f"{task} already holds {self.name}: use an RLock, or pass the lock held")

    def _release_for_other(self) -> None:
        """Not ours: nobody's, or another thread's, which then has to know that it is gone."""
        owner = self._owner
        if owner is None:
            report_bad_unlock(self._lockdep, self.name)
            raise RuntimeError("release unlocked lock")
        self._report_foreign(owner)
        gone, self._hold = self._hold, Hold(self.lock_class)
        gone.mode = 0  # its thread settles its chain when that matters
        self._owner = None
        self._raw.release()

    def _report_foreign(self, owner: Task) -> None:
        self._lockdep.report(
            "released-by-other",
            f"WARNING: bad unlock balance detected: {self.name} is released by a thread that does "
            "not hold it",
            f"a lock is released by the thread that took it, and {owner} holds {self.name}; to "
            "hand something over, use a Semaphore",
            "kernel/locking/mutex.c DEBUG_LOCKS_WARN_ON(owner != current)",
            subject=self.name,
            extra=((f"taken by {owner} at", stacks.render(self._hold.site)),),
        )

    def _wait(self, task: Task, timeout: float) -> bool:
        """Contended: wait, but neither in a ring nor in silence."""
        raw, patience = self._raw, self._sync.hung_seconds
        wait = Patience(self._sync.runtime, patience, timeout)
        before, task.waiting_for = task.waiting_for, self.name
        task.blocked_on = self if timeout < 0 else None
        try:
            if timeout < 0:
                self._refuse_ring(task)
            if wait.acquire(lambda seconds: raw.acquire(True, seconds)):
                return True
            if not wait.left:
                return False
            report_hung(self._lockdep, task, self.name, patience, self.holders())
            return raw.acquire(True, wait.left if timeout >= 0 else -1)
        finally:
            task.blocked_on = None
            task.waiting_for = before

    def _ring(self, task: Task) -> tuple[tuple[Task, Lock], ...]:
        """Who waits for whom, from this lock's holder on, if that leads back to `task`: (holder,
        lock it holds)."""
        ring: list[tuple[Task, Lock]] = []
        lock: object = self
        while isinstance(lock, Lock) and len(ring) < LONGEST_RING:
            owner = lock._owner
            if owner is task:
                return (*ring, (task, lock))
            if owner is None:
                break
            ring.append((owner, lock))
            lock = owner.blocked_on
        return ()

    def _refuse_ring(self, task: Task) -> None:
        """Raise if the holder waits, directly or through others, for a lock that `task` holds: a
        deadlock.

        The ring is read while its threads may run. The last of them waits for what `task` holds, so
        it has stood still since it was first seen; that it holds its lock, seen again after that,
        is final; and so on, one member for each look. Whoever closes a ring looks after all others
        have begun to wait, so none is missed.
        """
        ring = self._ring(task)
        if not ring or any(self._ring(task) != ring for _ in ring):
            return
        lines = [
            f"{owner} holds {lock.name}"
            + (f" and waits for {owner.waiting_for}" if owner.waiting_for else "")
            for owner, lock in ring
        ]
        others = ", ".join(str(owner) for owner, _ in ring[:-1])
        self._lockdep.report(
            "deadlock",
            f"BUG: deadlock: {task} and {others} wait for each other",
            "threads that wait for each other in a ring wait for ever; this one is let out with an "
            "exception",
            "kernel/locking/rtmutex.c (deadlock detection)",
            subject=" / ".join(sorted(lock.name for _, lock in ring)),
            extra=(
                ("waits for", lines),
                *(part for _, lock in ring[:-1] for part in describe_holder(lock._hold)),
            ),
        )
        raise SelfDeadlock("; ".join(lines))

    def check_wait(self) -> None:
        """The calling thread, which holds this lock, is about to give it back and sleep: nothing
        else may forbid that."""
        task = current.task
        doing = f"waiting for a condition of {self.name}"
        for link in self._lockdep.chain_of(task).path():
            if link.spinning is link and link.lock_class is not self._hold.lock_class:
                self._lockdep.might_sleep(doing, link)
        self._sync.rcu.forbid_sleep(doing)

    # What `threading.Condition` and `threading` itself ask of a lock.

    def _is_owned(self) -> bool:
        return self._owner is current.task

    def _release_save(self) -> int:
        """Release it altogether, for a wait."""
        depth, self._depth = self._depth, 0
        self.release()
        return depth

    def _acquire_restore(self, depth: int) -> None:
        """Take it back after a wait."""
        self.acquire()
        self._depth = depth

    def _at_fork_reinit(self) -> None:
        """In a child process nobody holds it."""
        self._raw = self._sync.runtime.lock(self.name)
        self._owner = None
        self._depth = 0
        self._hold = Hold(self.lock_class)


class RLock(Lock):
    """`threading.RLock` with lockdep's rules: its owner may take it again, and gives it back as
    often."""

    kind = "RLock"

    def _again(self, task: Task, blocking: bool, timeout: float) -> bool:  # noqa: ARG002 - it is granted in any case
        """Count."""
        self._depth += 1
        return True

    def _release_for_other(self) -> None:
        """Refused, as `threading` does it."""
        if self._owner is None:
            report_bad_unlock(self._lockdep, self.name)
        else:
            self._report_foreign(self._owner)
        raise RuntimeError("cannot release un-acquired lock")


class Nested:
    """A lock to be taken at a subclass, as a context."""

    __slots__ = ("_lock", "_subclass")

    def __init__(self, lock: Lock, subclass: int) -> None:
        self._lock = lock
        self._subclass = subclass

    def __enter__(self) -> bool:
        return self._lock.acquire(subclass=self._subclass)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()


class Condition(threading.Condition):
    """`threading.Condition` over a checked lock, by default an `RLock`.

    A wait gives the condition's own lock back and no other: waiting with another lock held is an
    order like any other (that lock, then this one), and in atomic context or inside an RCU read
    section it is a report.
    """

    def __init__(
        self, lock: Lock | None = None, *, name: str = "", sync: Sync | None = None
    ) -> None:
        self._checked = lock if lock is not None else RLock(name, sync=sync)
        super().__init__(self._checked)  # type: ignore[arg-type]  # it asks for the methods, typeshed for the class

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until notified; false if that took longer than `timeout` seconds."""
        if self._checked.held():
            self._checked.check_wait()
        return super().wait(timeout)
