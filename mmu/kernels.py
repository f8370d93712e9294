"""Upstream kernels, around the series and as they were released: behaviour that changed over time,
as variants (reference 2.15)."""

from __future__ import annotations

from attrs import frozen

from mmu.candidates import CANDIDATES
from mmu.kvm import Kvm
from mmu.memory.memslots import Memslot
from mmu.memory.requests import Requests
from mmu.memory.tlb import RemoteTlb
from mmu.paging.geometry import PG_LEVEL_1G, PG_LEVEL_4K
from mmu.paging.spte import (
    MISCONFIG,
    PFN_SHIFT,
    REMOVED_SPTE,
    SPTE_D,
    SPTE_PS,
    SPTE_R,
    SPTE_W,
    SPTE_X,
)
from mmu.paging.table import RootPage, RootRole, ShadowPage
from mmu.runtime import Cell
from mmu.sync.lockdep import WRITE
from mmu.task import Task
from mmu.tdp.fault import CONTINUE, RETRY, SPURIOUS, Fault, FaultHandler, RetPf
from mmu.tdp.huge import HugePages
from mmu.tdp.iter import TdpIter
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter
from mmu.tdp.yielding import Yielding
from mmu.tdp.zap import Exports, Zapper
from mmu.variant import Variant


class ZapByWorkqueue(Zapper):
    """tdp_mmu_zap_wq: an invalidated root's reference is gifted to a work item; its zap is waited
    for, by whoever must."""

    def __init__(
        self,
        kvm: Kvm,
        roots: Roots,
        writer: SpteWriter,
        tlb: RemoteTlb,
        requests: Requests,
        yielding: Yielding,
        exports: Exports,
    ) -> None:
        super().__init__(kvm, roots, writer, tlb, requests, yielding, exports)
        self._work = kvm.runtime.queue("zap workqueue")
        self._queued = kvm.runtime.counter("tdp_mmu_zap_wq.queued")
        self._done = kvm.runtime.counter("tdp_mmu_zap_wq.done")
        self._worker: Cell[Task | None] = kvm.runtime.cell("tdp_mmu_zap_wq", None)
        self._worker_lock = kvm.sync.mutex("tdp_mmu_zap_wq")
        self._stopping = kvm.runtime.cell("tdp_mmu_zap_wq.stopping", False)

    def zap_invalidated_roots(self) -> None:
        """Queue every scheduled root, then flush_workqueue()."""
        kvm = self.kvm
        kvm.mmu_lock.read_lock()
        for root in self.roots.each_yield_safe(shared=True):
            if root.scheduled.value:
                root.scheduled.value = False
                self._queued.add(1)
                self._work.put(root)
        kvm.mmu_lock.read_unlock()
        self._start_worker()
        self.flush_workqueue()

    def flush_workqueue(self) -> None:
        """Wait for all work queued so far."""
        target = self._queued.value
        self.kvm.sync.might_sleep("flush_workqueue")
        self.kvm.runtime.wait_until(
            "flush_workqueue(tdp_mmu_zap_wq)", lambda: self._done.value >= target
        )

    def stop(self) -> None:
        """destroy_workqueue()."""
        self._stopping.store(True)

    def _start_worker(self) -> None:
        with self._worker_lock:
            if self._worker.value is None:
                self._worker.value = self.kvm.runtime.spawn("tdp_mmu_zap_wq", self._run)

    def _run(self) -> None:
        runtime = self.kvm.runtime
        while True:
            runtime.wait_until(
                "tdp_mmu_zap_wq", lambda: len(self._work) > 0 or self._stopping.value, patience=2e-3
            )
            root = self._work.take()
            if root is None:
                if self._stopping.value:
                    return
                continue
            self.kvm.mmu_lock.read_lock()
            self.zap_scheduled_root(root)
            self.kvm.mmu_lock.read_unlock()
            self._done.add(1)


class RootsUnderReadLock(Roots):
    """Roots are found, made and dropped under mmu_lock(read) (6.9)."""

    def load_lock(self) -> None:
        """Shared."""
        self.kvm.mmu_lock.read_lock()

    def load_unlock(self) -> None:
        """Shared."""
        self.kvm.mmu_lock.read_unlock()

    def put_loaded(self, root: RootPage) -> None:
        """Shared."""
        self.put_root(root, shared=True)

    def get_vcpu_root(self, role: RootRole) -> RootPage:
        """Look, then look again under tdp_mmu_pages_lock, so that two vCPUs do not make one root
        each."""
        kvm = self.kvm
        known = self.look_for_root(role)
        if known is not None:
            return known
        with kvm.tdp_mmu_pages_lock:
            root = self.find_root(role)
            if root is not None:
                return root
            root = kvm.tables.allocate_root(role, kvm.geometry.levels)
            self.link(root)
        if kvm.probe.root_allocated is not None:
            kvm.probe.root_allocated(root)
        return root

    def look_for_root(self, role: RootRole) -> RootPage | None:
        """The valid root of this role with a reference of the walk, which takes and drops one for
        every root on its way."""
        shared = self.kvm.mmu_lock.held_mode() != WRITE
        return next(
            (
                root
                for root in self.each_yield_safe(shared, only_valid=True, as_id=role.as_id)
                if root.role == role
            ),
            None,
        )


class SmallZapsFirst(Zapper):
    """Invalid roots are zapped at 4 KiB granularity first, to cut the jitter of large removals
    (6.9)."""

    def zap_levels(self, root: RootPage) -> tuple[int, ...]:
        """A pass for every size of page, smallest first, then the root."""
        return (*range(PG_LEVEL_4K, min(PG_LEVEL_1G, root.level) + 1), root.level)


class LookBeforeLocking(FaultHandler):
    """A fault whose mapping is changing, or has changed, does not even take mmu_lock (6.8,
    d02c357e5bfa)."""

    def faultin_pfn(self, fault: Fault) -> RetPf:
        """Retry at once if an invalidation of this page is in progress, or any has ended since the
        fault began."""
        result = super().faultin_pfn(fault)
        if result is not CONTINUE or fault.slot is None:
            return result
        return (
            RETRY
            if self.kvm.invalidation.retry_unsafe(fault.mmu_seq, fault.slot.hva(fault.gfn))
            else CONTINUE
        )


class DirtyUnlessWritable(FaultHandler):
    """Before 6.13 a leaf that replaces a last-level entry with the W bit gets no D bit: make_spte()
    leaves early for it. An MMIO SPTE has that bit, so the first mapping after a slot came is clean
    (cc7ed3358e41)."""

    def make_leaf(self, fault: Fault, old: int) -> int:
        """make_spte(): `goto out` when is_last_spte(old_spte) && is_writable_pte(old_spte)."""
        new = self.make_spte(fault)
        last = fault.goal_level == PG_LEVEL_4K or old & SPTE_PS
        return new & ~SPTE_D if old & SPTE_W and last and self.kvm.layout.ad_bits else new


class UpstreamMmio(FaultHandler):
    """MMIO SPTEs keep the access that was tried beside the reserved bits (make_mmio_spte(); the
    series must not, R18), and are installed while memslots are in flux, too: only the vCPU's own
    cache of the last MMIO access is not filled then (ddfd1730fd82). What they say is never believed
    in that window, and their generation is out of date after it."""

    def mmio_rights(self) -> int:
        """Writable and executable: a misconfiguration for EPT; ACC_ALL is kept on NPT."""
        return MISCONFIG

    def is_in_flux(self, generation: int) -> bool:  # noqa: ARG002 - it does not matter here
        """Nobody asks."""
        return False


class FlushBeforeBookkeeping(SpteWriter):
    """An entry that is zapped atomically is accounted for, and told of, after its flush (6.10):
    until then it is frozen, and nothing but the compare-exchange has happened."""

    def zap_spte_atomic(self, it: TdpIter) -> bool:
        """tdp_mmu_zap_spte_atomic(): freeze, flush, clear, then handle_changed_spte()."""
        old = it.old_spte
        self.kvm.mmu_lock.assert_held_read()
        if it.sp.spt.cmpxchg(it.index, old, REMOVED_SPTE) != old:
            it.old_spte = it.sp.spt[it.index]
            return False
        self.tlb.flush_range("zap-atomic", it.gfn, self.kvm.geometry.pages(it.level))
        it.sp.spt.store(it.index, 0)
        self.handle_changed_spte(it.sp, it.gfn, old, 0, True)
        return True


class NoFlushForInvalidRoots(Zapper):
    """Leaves that are zapped in an invalid root are not flushed for: whoever had it loaded flushes
    when it drops it (6.9)."""

    def owes_flush(self, root: RootPage) -> bool:
        """Only where vCPUs may still use the root."""
        return not root.invalid.value


class ExclusiveAtTheEnd(Zapper):
    """When the VM is destroyed its invalidated roots are zapped under mmu_lock(write) (6.14)."""

    def zaps_shared(self) -> bool:
        """Exclusive once nobody else is left."""
        return not self.kvm.dying.value


class RemovesTablesFirst(SpteWriter):
    """The change of an entry that pointed to a table is told after the changes in that table
    (7.x)."""

    def removes_first(self) -> bool:
        """Children before parents."""
        return True


class SpuriousIfAllowed(FaultHandler):
    """A fault whose access the entry allows by now is spurious: the leaf is not written again
    (6.14)."""

    def map_handle_target_level(self, sp: ShadowPage, index: int, fault: Fault, old: int) -> RetPf:
        """is_access_allowed() before make_spte()."""
        needed = SPTE_W if fault.write else SPTE_X if fault.fetch else SPTE_R
        if self.layout.is_leaf(old, fault.goal_level) and old & needed:
            return SPURIOUS
        return super().map_handle_target_level(sp, index, fault, old)


class RecoverHugePages(HugePages):
    """After dirty logging went off a huge leaf takes the place of the table at once; one flush a
    root (6.13)."""

    def _zap_collapsible_range(self, root: RootPage, slot: Memslot) -> None:
        """recover_huge_pages_range()."""
        kvm = self.kvm
        flush = False
        kvm.rcu.read_lock()
        it = TdpIter(kvm, root, PG_LEVEL_4K + 1, slot.base_gfn, slot.end_gfn)
        while it.valid:
            if self.yielding.iter_cond_resched(it, flush, shared=True):
                flush = False
                it.next_present()
                continue
            huge = self.make_huge_spte(it) if self.is_collapsible(it, slot) else None
            if huge is not None and not self.writer.iter_set_spte_atomic(it, huge):
                continue
            flush = flush or huge is not None
            it.next_present()
        if flush:
            self.tlb.flush_range("collapse", slot.base_gfn, slot.npages)
        kvm.rcu.read_unlock()

    def make_huge_spte(self, it: TdpIter) -> int | None:
        """make_huge_spte(): a leaf with the rights of the first one below, and the frame that the
        whole block begins with."""
        kvm = self.kvm
        below = TdpIter(kvm, it.root, PG_LEVEL_4K, it.gfn, it.gfn + kvm.geometry.pages(it.level))
        while below.valid and not kvm.layout.is_leaf(below.old_spte, below.level):
            below.next_present()
        if not below.valid:
            return None
        huge = (below.old_spte | SPTE_PS) & ~(kvm.geometry.pages(it.level) - 1 << PFN_SHIFT)
        return huge & ~SPTE_X if kvm.nx_huge_pages.value else huge


@frozen
class Kernel:
    """An upstream kernel, as the series on it and as it was released.

    `series` are the variants that make the model the series on this kernel, `released` those that
    make it this kernel without the series. The model without variants is the series on 6.6. None:
    not modelled.
    """

    series: tuple[Variant, ...] | None = None
    released: tuple[Variant, ...] | None = None


def _released(
    name: str, title: str, *parts: type, on: tuple[Variant, ...] = ()
) -> tuple[Variant, ...]:
    """The variants of a released kernel: those in `on`, the candidates, and one with `parts`."""
    origin = "arch/x86/kvm/mmu of that kernel"
    plain = Variant(f"kernel-{name}-plain", title, parts, origin=origin)
    return (*on, *CANDIDATES.values(), plain)


_SERIES_ON_6_12 = (
    Variant(
        name="kernel-6.12",
        title="6.12: roots under the read lock, small zaps first, a look before mmu_lock is taken",
        parts=(RootsUnderReadLock, SmallZapsFirst, LookBeforeLocking),
        origin="8ca983631f3c..576a15de8d29, d02c357e5bfa",
    ),
)

KERNELS: dict[str, Kernel] = {
    "5.18": Kernel(
        series=(
            Variant(
                name="kernel-5.18",
                title="5.18 to 6.5: invalidated roots are zapped by a workqueue",
                parts=(ZapByWorkqueue,),
                origin="22b94c4b63eb, efd995dae5eb",
            ),
        ),
    ),
    "6.1": Kernel(
        released=_released(
            "6.1",
            "6.1.y: two recursive passes, as in 6.6, which it took over from",
            DirtyUnlessWritable,
            UpstreamMmio,
        ),
    ),
    "6.6": Kernel(
        series=(),
        released=_released("6.6", "6.6", DirtyUnlessWritable, UpstreamMmio),
    ),
    "6.12": Kernel(
        series=_SERIES_ON_6_12,
        released=_released(
            "6.12",
            "6.12: four passes, told after the flush",
            DirtyUnlessWritable,
            UpstreamMmio,
            FlushBeforeBookkeeping,
            NoFlushForInvalidRoots,
            on=_SERIES_ON_6_12,
        ),
    ),
    "7.2": Kernel(
        released=_released(
            "7.2",
            "7.2: huge pages recovered in place, tables told after their entries, an exclusive zap "
            "at the end",
            UpstreamMmio,
            NoFlushForInvalidRoots,
            ExclusiveAtTheEnd,
            RemovesTablesFirst,
            SpuriousIfAllowed,
            RecoverHugePages,
            on=_SERIES_ON_6_12,
        ),
    ),
}
"""Every kernel that is modelled, by version. A new one is an entry here: scenarios (`vm.kernel`),
`stress list kernels` and `stress trace conform --kernel` read this table."""

SERIES: dict[str, tuple[Variant, ...]] = {
    name: kernel.series for name, kernel in KERNELS.items() if kernel.series is not None
}
"""The kernels that a scenario may have around the series."""

RELEASED: dict[str, tuple[Variant, ...]] = {
    name: kernel.released for name, kernel in KERNELS.items() if kernel.released is not None
}
"""The kernels that recordings are compared with."""
