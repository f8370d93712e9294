"""Counting events: one share a thread, so that counting never orders threads that the model does
not order."""

from __future__ import annotations

from mmu.export.importer import ExportedTdp
from mmu.memory.memslots import Change
from mmu.memory.tlb import WHOLE
from mmu.paging.table import RootPage, ShadowPage
from mmu.probe import Instrument, override
from mmu.runtime import PerThreadCounter, Runtime
from stress.scenario.counters import COUNTERS

_NOTHING = dict.fromkeys(COUNTERS, 0)
SHORT = {"huge-over-tables": "huge"}
"""Reasons of flushes whose counter has another name."""


class Counts(Instrument):
    """An instrument that counts what happens rarely enough to be counted one by one."""

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

    @override
    def memslot_end(self, change: Change, slot: object, parts: object) -> None:
        self._changes[change].add(1)

    @override
    def zap_all_fast(self, old_valid_gen: int) -> None:
        self["fast_zaps"].add(1)

    @override
    def exported_zapped(self, root: RootPage, leaves: int) -> None:
        self["exported_zaps"].add(1)
        if leaves:
            self["exported_zaps_nonempty"].add(1)
            self["exported_leaves_zapped"].add(leaves)

    @override
    def shadow_pages_zapped(self, pages: int) -> None:
        self["shadow_pages_zapped"].add(pages)

    @override
    def obsolete_zap_broken(self) -> None:
        self["obsolete_zap_breaks"].add(1)

    @override
    def root_invalidated(self, root: RootPage) -> None:
        self["roots_invalidated"].add(1)

    @override
    def root_zapped(self, root: RootPage) -> None:
        self["roots_zapped"].add(1)

    @override
    def root_freed(self, root: RootPage) -> None:
        self["roots_freed"].add(1)

    @override
    def prepare_zap_page(self, sp: ShadowPage, shared: bool) -> None:
        self["tables_removed"].add(1)

    @override
    def frozen_met(self, gfn: int) -> None:
        self["frozen_met"].add(1)

    @override
    def fault_stale(self, vcpu: object, gfn: int, why: str) -> None:
        self["stale_faults"].add(1)
        if vcpu is None:
            self["stale_io_faults"].add(1)

    @override
    def cmpxchg_lost(self, gfn: int) -> None:
        self["cmpxchgs_lost"].add(1)

    @override
    def mmu_write_locked(self) -> None:
        self["mmu_write_locks"].add(1)

    @override
    def flush_end(self, reason: str, gfn: int, pages: int, ns: int) -> None:
        self["remote_flushes"].add(1)
        if pages != WHOLE:
            self["flushes_range"].add(1)
        self["flushes_" + SHORT.get(reason, reason).replace("-", "_")].add(1)

    @override
    def importers_notified(self, exported: ExportedTdp, gfn: int, pages: int, ns: int) -> None:
        self["importer_notifications"].add(1)

    @override
    def io_fault_end(self, device: object, gfn: int, write: bool, ok: bool, ns: int) -> None:
        self["io_faults"].add(1)
        if not ok:
            self["io_faults_failed"].add(1)

    @override
    def grace_period(self, ns: int, callbacks: int) -> None:
        self["rcu_grace_periods"].add(1)
        self["rcu_callbacks"].add(callbacks)

    @override
    def zap_yielded(self, root: RootPage, since: int, goal: int) -> None:
        self["yields"].add(1)

    @override
    def fast_page_fault(self, gfn: int, old: int, new: int) -> None:
        self["fast_faults"].add(1)

    @override
    def huge_mapped(self, sp: ShadowPage, gfn: int, level: int, spte: int) -> None:
        self["huge_leaves"].add(1)

    @override
    def huge_page_split(self, gfn: int, level: int) -> None:
        self["huge_splits"].add(1)

    @override
    def mmio_wrapped(self, generation: int) -> None:
        self["mmio_wraps"].add(1)

    @override
    def nx_toggle_end(self, on: bool) -> None:
        self["nx_toggles"].add(1)

    @override
    def range_started(self, region: object, first: int, last: int, ns: int) -> None:
        self["host_ranges"].add(1)

    @override
    def io_fault_retried(self, gfn: int) -> None:
        self["io_faults_retried"].add(1)

    @override
    def importer_switched(self, importer: object, acknowledged: bool, ns: int) -> None:
        self["importer_switches" if acknowledged else "importer_switches_failed"].add(1)
