"""Counting events: one share a thread, so that counting never orders threads that the model does not order."""

from __future__ import annotations

from mmu.export.importer import ExportedTdp
from mmu.memory.memslots import Change
from mmu.paging.table import RootPage, ShadowPage
from mmu.runtime import PerThreadCounter, Runtime
from stress.observe.counters import COUNTERS


class Counts:
    """A probe observer that counts what happens rarely enough to be counted one by one."""

    def __init__(self, runtime: Runtime) -> None:
        self._counters = {name: runtime.per_thread_counter(name) for name in COUNTERS}
        self._changes = {
            Change.CREATE: self["memslot_creates"],
            Change.DELETE: self["memslot_deletes"],
            Change.MOVE: self["memslot_moves"],
            Change.FLAGS_ONLY: self["memslot_flags"],
        }

    def __getitem__(self, name: str) -> PerThreadCounter:
        return self._counters[name]

    def values(self) -> dict[str, int]:
        """The sums now."""
        return {name: counter.value for name, counter in self._counters.items()}

    def memslot_end(self, change: Change, slot: object, parts: object) -> None:
        """One memslot call."""
        self._changes[change].add(1)

    def zap_all_fast(self, gen: int) -> None:
        """One fast zap."""
        self["fast_zaps"].add(1)

    def exported_zapped(self, root: RootPage, leaves: int) -> None:
        """One exported root zapped."""
        self["exported_zaps"].add(1)
        if leaves:
            self["exported_zaps_nonempty"].add(1)
            self["exported_leaves_zapped"].add(leaves)

    def root_invalidated(self, root: RootPage) -> None:
        """A root became invalid."""
        self["roots_invalidated"].add(1)

    def root_zapped(self, root: RootPage) -> None:
        """A scheduled root was zapped."""
        self["roots_zapped"].add(1)

    def root_freed(self, root: RootPage) -> None:
        """The last reference of a root went."""
        self["roots_freed"].add(1)

    def prepare_zap_page(self, sp: ShadowPage, shared: bool) -> None:
        """A table was unlinked."""
        self["tables_removed"].add(1)

    def frozen_met(self, gfn: int) -> None:
        """A fault met a frozen entry."""
        self["frozen_met"].add(1)

    def fault_stale(self, vcpu: object, gfn: int, why: str) -> None:
        """A stale fault."""
        self["stale_faults"].add(1)

    def flush_end(self, reason: str, gfn: int, pages: int, ns: int) -> None:
        """A remote flush; one that a yielding zap owed is a yield too."""
        self["remote_flushes"].add(1)

    def importers_notified(self, exported: ExportedTdp, gfn: int, pages: int, ns: int) -> None:
        """The importers of one exported TDP were told."""
        self["importer_notifications"].add(1)

    def io_fault_end(self, device: object, gfn: int, write: bool, ok: bool, ns: int) -> None:
        """An IO page fault was answered."""
        self["io_faults"].add(1)
        if not ok:
            self["io_faults_failed"].add(1)

    def grace_period(self, ns: int, callbacks: int) -> None:
        """One RCU grace period."""
        self["rcu_grace_periods"].add(1)
        self["rcu_callbacks"].add(callbacks)

    def zap_yielded(self) -> None:
        """A zap dropped mmu_lock."""
        self["yields"].add(1)
