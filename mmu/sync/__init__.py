"""Synchronisation with its rules enforced: lockdep, mutex, spinlock, rwlock, RCU, SRCU, refcounts, poison.

`Sync` makes them on a runtime with one validator. Usable without the rest of the package, on ordinary threads.
"""

from __future__ import annotations

from mmu.probe import Probe
from mmu.report import Reporter
from mmu.runtime import Runtime
from mmu.sync.lockdep import LockDep as LockDep
from mmu.sync.locks import Mutex as Mutex
from mmu.sync.locks import RwLock as RwLock
from mmu.sync.locks import SpinLock as SpinLock
from mmu.sync.rcu import Rcu as Rcu
from mmu.sync.rcu import Srcu as Srcu
from mmu.sync.refcount import Refcount as Refcount


class Sync:
    """Factory of checked locks that share one lockdep validator and one RCU domain."""

    def __init__(
        self,
        runtime: Runtime | None = None,
        reporter: Reporter | None = None,
        probe: Probe | None = None,
        stall_seconds: float = 10.0,
        rcu_class: type[Rcu] = Rcu,
        srcu_class: type[Srcu] = Srcu,
    ) -> None:
        self.runtime = runtime or Runtime()
        self.reporter = reporter or Reporter()
        self.probe = probe or Probe()
        self.lockdep = LockDep(self.reporter)
        self.rcu = rcu_class(self.runtime, self.lockdep, self.probe, stall_seconds)
        self.runtime.at_task_exit(self.lockdep.check_exit)
        self.runtime.at_task_exit(self.rcu.check_exit)
        self._stall_seconds = stall_seconds
        self._srcu_class = srcu_class

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
        """Declare that the caller may block now: a report in atomic context or inside an RCU read section."""
        self.lockdep.might_sleep(doing)
        self.rcu.forbid_sleep(doing)
