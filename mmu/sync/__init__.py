"""Synchronisation with its rules enforced: lockdep, mutex, spinlock, rwlock, RCU, SRCU, refcounts,
poison.

For ordinary threads, without the rest of the package (docs/sync.md):

* `Lock`, `RLock`, `Condition`: what `threading` has, with a lock order and an owner;
* `RWLockFair`, `RWLockRead`, `RWLockWrite` and their `D` twins: what `readerwriterlock` has, with
  its traps closed;
* `default_sync()`: the `Sync` behind them, with `.rcu`, `.srcu(name)`, `.refcount(name)`;
  `RcuHead`, for what is freed by RCU;
* `might_sleep`, `show_locks`; `on_report`, `collect`, `reports`: what becomes of a report;
* `SelfDeadlock`, `BrokenLock`, `BrokenRule`: what is raised.

For the model: `Sync` makes `Mutex`, `SpinLock`, `RwLock`, `Rcu`, `Srcu` and `Refcount` on a
runtime, with one validator.
"""

from __future__ import annotations

from mmu.errors import BrokenLock, BrokenRule, SelfDeadlock
from mmu.report import Report, Reporter
from mmu.sync.default import collect, default_sync, might_sleep, on_report, reports, show_locks
from mmu.sync.factory import Sync
from mmu.sync.lockdep import LockDep
from mmu.sync.locks import Mutex, RwLock, SpinLock
from mmu.sync.poison import RcuHead
from mmu.sync.rcu import Rcu, RcuPointer, Srcu
from mmu.sync.refcount import Refcount
from mmu.sync.rwlocks import (
    RWLockFair,
    RWLockFairD,
    RWLockRead,
    RWLockReadD,
    RWLockWrite,
    RWLockWriteD,
)
from mmu.sync.threads import Condition, Lock, RLock

__all__ = [
    "BrokenLock",
    "BrokenRule",
    "Condition",
    "Lock",
    "LockDep",
    "Mutex",
    "RLock",
    "RWLockFair",
    "RWLockFairD",
    "RWLockRead",
    "RWLockReadD",
    "RWLockWrite",
    "RWLockWriteD",
    "Rcu",
    "RcuHead",
    "RcuPointer",
    "Refcount",
    "Report",
    "Reporter",
    "RwLock",
    "SelfDeadlock",
    "SpinLock",
    "Srcu",
    "Sync",
    "collect",
    "default_sync",
    "might_sleep",
    "on_report",
    "reports",
    "show_locks",
]
