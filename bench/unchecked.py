"""The primitives of `mmu.sync` without their rules, to measure what checking costs."""

from __future__ import annotations

from mmu.report import Reporter
from mmu.runtime import Runtime
from mmu.sync import Sync
from mmu.sync.lockdep import READ, WRITE
from mmu.sync.locks import Mutex, RwHold, RwLock, SpinLock
from mmu.sync.probe import SyncProbe
from mmu.sync.rcu import Rcu, Snapshot, Srcu


class BareMutex(SpinLock):
    """A raw lock with `Mutex`'s interface. `held` is always true: nobody keeps book."""

    def acquire(self) -> None:
        """Take it."""
        self._raw.acquire()

    def release(self) -> None:
        """Give it back."""
        self._raw.release()

    def held(self) -> bool:
        """Unknown, so yes."""
        return True

    def assert_held(self) -> None:
        """Nothing."""

    def assert_not_held(self) -> None:
        """Nothing."""


class BareRwLock(RwLock):
    """A raw reader-writer lock with `RwLock`'s interface."""

    def read_lock(self, hold: RwHold | None = None) -> None:
        """Take it shared."""
        if hold is None:
            hold = self.local.mine
        hold.mode = -READ
        hold.read_acquire()
        hold.mode = READ

    def read_unlock(self, hold: RwHold | None = None) -> None:
        """Give it back."""
        if hold is None:
            hold = self.local.mine
        hold.mode = 0
        hold.read_release()

    def write_lock(self) -> None:
        """Take it exclusively."""
        hold = self.local.mine
        hold.mode = -WRITE
        hold.write_acquire()
        hold.mode = WRITE

    def write_unlock(self) -> None:
        """Give it back."""
        hold = self.local.mine
        hold.mode = 0
        hold.write_release()

    def assert_held(self) -> None:
        """Nothing."""

    def assert_held_read(self) -> None:
        """Nothing."""

    def assert_held_write(self) -> None:
        """Nothing."""


class BareRcu(Rcu):
    """RCU without its rules."""

    def assert_held(self, what: str) -> None:
        """Nothing."""

    def forbid_sleep(self, doing: str) -> None:
        """Nothing."""

    def check_outlasted(self, snapshot: Snapshot, what: str) -> None:
        """Nothing."""


class BareSrcu(Srcu):
    """SRCU without its rules."""

    def check_outlasted(self, snapshot: Snapshot, what: str) -> None:
        """Nothing."""


class BareSync(Sync):
    """A factory of unchecked primitives."""

    def __init__(self, runtime: Runtime, reporter: Reporter, probe: SyncProbe) -> None:
        super().__init__(runtime, reporter, probe, rcu_class=BareRcu, srcu_class=BareSrcu)

    def mutex(self, name: str) -> Mutex:
        """A raw lock."""
        return BareMutex(self.runtime, self.lockdep, name)

    def spinlock(self, name: str) -> SpinLock:
        """A raw lock."""
        return BareMutex(self.runtime, self.lockdep, name)

    def rwlock(self, name: str, preference: str = "fair") -> RwLock:
        """A raw reader-writer lock."""
        return BareRwLock(self.runtime, self.lockdep, name, preference)

    def might_sleep(self, doing: str) -> None:
        """Nothing."""
