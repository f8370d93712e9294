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

from mmu.errors import BrokenLock as BrokenLock
from mmu.errors import BrokenRule as BrokenRule
from mmu.errors import SelfDeadlock as SelfDeadlock
from mmu.report import Report as Report
from mmu.report import Reporter as Reporter
from mmu.sync.default import collect as collect
from mmu.sync.default import default_sync as default_sync
from mmu.sync.default import might_sleep as might_sleep
from mmu.sync.default import on_report as on_report
from mmu.sync.default import reports as reports
from mmu.sync.default import show_locks as show_locks
from mmu.sync.factory import Sync as Sync
from mmu.sync.lockdep import LockDep as LockDep
from mmu.sync.locks import Mutex as Mutex
from mmu.sync.locks import RwLock as RwLock
from mmu.sync.locks import SpinLock as SpinLock
from mmu.sync.poison import RcuHead as RcuHead
from mmu.sync.rcu import Rcu as Rcu
from mmu.sync.rcu import RcuPointer as RcuPointer
from mmu.sync.rcu import Srcu as Srcu
from mmu.sync.refcount import Refcount as Refcount
from mmu.sync.rwlocks import RWLockFair as RWLockFair
from mmu.sync.rwlocks import RWLockFairD as RWLockFairD
from mmu.sync.rwlocks import RWLockRead as RWLockRead
from mmu.sync.rwlocks import RWLockReadD as RWLockReadD
from mmu.sync.rwlocks import RWLockWrite as RWLockWrite
from mmu.sync.rwlocks import RWLockWriteD as RWLockWriteD
from mmu.sync.threads import Condition as Condition
from mmu.sync.threads import Lock as Lock
from mmu.sync.threads import RLock as RLock
