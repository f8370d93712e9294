"""`Sync`: one lockdep validator, one RCU domain, one reporter, and everything that is made from
them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from mmu.report import Reporter
from mmu.runtime import Runtime
from mmu.sync.lockdep import LockDep
from mmu.sync.locks import Mutex, RwLock, SpinLock
from mmu.sync.probe import SyncProbe
from mmu.sync.rcu import Rcu, Srcu
from mmu.sync.refcount import Refcount
from mmu.task import Task


class Sync:
    """Factory of checked locks that share one lockdep validator and one RCU domain.

    A grace period that takes longer than `stall_seconds`, and a wait for a `Lock` or a
    reader-writer lock of this package that takes longer than `hung_seconds`, are reports.
    """

    make_runtime: ClassVar[Callable[[], Runtime]] = Runtime
    """Makes the runtime of a `Sync` that is given none; an engine may serve its own tasks."""

    def __init__(
        self,
        runtime: Runtime | None = None,
        reporter: Reporter | None = None,
        probe: SyncProbe | None = None,
        stall_seconds: float = 10.0,
        rcu_class: type[Rcu] = Rcu,
        srcu_class: type[Srcu] = Srcu,
        hung_seconds: float = 30.0,
    ) -> None:
        self.runtime = runtime or type(self).make_runtime()
        self.reporter = reporter or Reporter()
        self.probe = probe or SyncProbe()
        self.lockdep = LockDep(self.reporter)
        self.rcu = rcu_class(self.runtime, self.lockdep, self.probe, stall_seconds)
        self.hung_seconds = hung_seconds
        self.watch_exits(self.lockdep.check_exit, self.rcu.check_exit)
        self._stall_seconds = stall_seconds
        self._srcu_class = srcu_class

    def watch_exits(self, *checks: Callable[[Task], None]) -> None:
        """Run `checks` when a thread ends: one that the runtime has spawned."""
        for check in checks:
            self.runtime.at_task_exit(check)

    def mutex(self, name: str) -> Mutex:
        """A sleeping lock."""
        return Mutex(self.runtime, self.lockdep, name, self.rcu)

    def spinlock(self, name: str) -> SpinLock:
        """A spinning lock."""
        return SpinLock(self.runtime, self.lockdep, name, self.rcu)

    def rwlock(self, name: str, preference: str = "fair") -> RwLock:
        """A spinning reader-writer lock over `readerwriterlock`."""
        return RwLock(self.runtime, self.lockdep, name, preference, self.probe, self.rcu)

    def srcu(self, name: str) -> Srcu:
        """A sleepable RCU domain."""
        return self._srcu_class(self.runtime, self.lockdep, name, self.rcu, self._stall_seconds)

    def refcount(self, name: str, value: int = 1) -> Refcount:
        """A checked reference count."""
        return Refcount(self.runtime, self.reporter, name, value)

    def might_sleep(self, doing: str) -> None:
        """Declare that the caller may block now: a report in atomic context or inside an RCU read
        section."""
        self.lockdep.might_sleep(doing)
        self.rcu.forbid_sleep(doing)
