"""Counting events: one share a thread, so that counting never orders threads that the model does
not order."""

from __future__ import annotations

from mmu.export.importer import ExportedTdp
from mmu.memory.memslots import Change
from mmu.memory.tlb import WHOLE
from mmu.paging.table import RootPage, ShadowPage
from mmu.runtime import PerThreadCounter, Runtime
from stress.scenario.counters import COUNTERS

_NOTHING = dict.fromkeys(COUNTERS, 0)
SHORT = {"huge-over-tables": "huge"}
"""Reasons of flushes whose counter has another name."""


class Counts:
    """A probe observer that counts what happens rarely enough to be counted one by one."""

    def __init__(self, runtime: Runtime) -> None:
        self._counters = runtime.per_thread_counters(COUNTERS)
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
        return {**_NOTHING, **{name: counter.value for name, counter in self._counters.items()}}

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

    def shadow_pages_zapped(self, pages: int) -> None:
        """Obsolete shadow pages were zapped."""
        self["shadow_pages_zapped"].add(pages)

    def obsolete_zap_broken(self) -> None:
        """The zap of obsolete shadow pages dropped mmu_lock."""
        self["obsolete_zap_breaks"].add(1)

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
        if vcpu is None:
            self["stale_io_faults"].add(1)

    def cmpxchg_lost(self, gfn: int) -> None:
        """A compare-exchange that somebody else won."""
        self["cmpxchgs_lost"].add(1)

    def mmu_write_locked(self) -> None:
        """mmu_lock was taken for write."""
        self["mmu_write_locks"].add(1)

    def flush_end(self, reason: str, gfn: int, pages: int, ns: int) -> None:
        """A remote flush."""
        self["remote_flushes"].add(1)
        if pages != WHOLE:
            self["flushes_range"].add(1)
        self["flushes_" + SHORT.get(reason, reason).replace("-", "_")].add(1)

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

    def zap_yielded(self, root: RootPage, since: int, goal: int) -> None:
        """A zap dropped mmu_lock."""
        self["yields"].add(1)

    def fast_page_fault(self, gfn: int, old: int, new: int) -> None:
        """A fault fixed without mmu_lock."""
        self["fast_faults"].add(1)

    def huge_mapped(self, sp: ShadowPage, gfn: int, level: int, spte: int) -> None:
        """A huge leaf was installed."""
        self["huge_leaves"].add(1)

    def huge_page_split(self, gfn: int, level: int) -> None:
        """A huge leaf was split."""
        self["huge_splits"].add(1)

    def mmio_wrapped(self, generation: int) -> None:
        """The MMIO generation wrapped."""
        self["mmio_wraps"].add(1)

    def nx_toggle_end(self, on: bool) -> None:
        """The NX knob was written."""
        self["nx_toggles"].add(1)

    def range_started(self, region: object, first: int, last: int, ns: int) -> None:
        """The host takes a range away."""
        self["host_ranges"].add(1)

    def io_fault_retried(self, gfn: int) -> None:
        """An IO fault is tried again."""
        self["io_faults_retried"].add(1)

    def importer_switched(self, importer: object, acknowledged: bool, ns: int) -> None:
        """An importer walks another root, or none."""
        self["importer_switches" if acknowledged else "importer_switches_failed"].add(1)
