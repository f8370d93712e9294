"""Which upstream kernel surrounds the series: behaviour that changed over time, as variants (reference 2.15)."""

from __future__ import annotations

from mmu.kvm import Kvm
from mmu.memory.requests import Requests
from mmu.memory.tlb import RemoteTlb
from mmu.paging.geometry import PG_LEVEL_1G, PG_LEVEL_4K
from mmu.paging.table import RootPage, RootRole
from mmu.runtime import Cell
from mmu.task import Task
from mmu.tdp.fault import CONTINUE, RETRY, Fault, FaultHandler, RetPf
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter
from mmu.tdp.yielding import Yielding
from mmu.tdp.zap import Exports, Zapper
from mmu.variant import Variant


class ZapByWorkqueue(Zapper):
    """tdp_mmu_zap_wq: an invalidated root's reference is gifted to a work item; its zap is waited for, by whoever must."""

    def __init__(
        self, kvm: Kvm, roots: Roots, writer: SpteWriter, tlb: RemoteTlb, requests: Requests, yielding: Yielding, exports: Exports
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
        self.kvm.runtime.wait_until("flush_workqueue(tdp_mmu_zap_wq)", lambda: self._done.value >= target)

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
            runtime.wait_until("tdp_mmu_zap_wq", lambda: len(self._work) > 0 or self._stopping.value, patience=2e-3)
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
        """Look, then look again under tdp_mmu_pages_lock, so that two vCPUs do not make one root each."""
        kvm = self.kvm
        kvm.mmu_lock.assert_held()
        kvm.rcu.read_lock()  # under the read lock a root can leave the list at any time, and mmu_lock holds off no grace period
        root = self.find_root(role)
        kvm.rcu.read_unlock()
        if root is not None:
            return root
        with kvm.tdp_mmu_pages_lock:
            root = self.find_root(role)
            if root is not None:
                return root
            root = kvm.tables.allocate_root(role, kvm.geometry.levels)
            self.link(root)
        if kvm.probe.root_allocated is not None:
            kvm.probe.root_allocated(root)
        return root


class SmallZapsFirst(Zapper):
    """Invalid roots are zapped at 4 KiB granularity first, to cut the jitter of large removals (6.9)."""

    def zap_levels(self, root: RootPage) -> tuple[int, ...]:
        """A pass for every size of page, smallest first, then the root."""
        return (*range(PG_LEVEL_4K, min(PG_LEVEL_1G, root.level) + 1), root.level)


class LookBeforeLocking(FaultHandler):
    """A fault whose mapping is changing right now does not even take mmu_lock (6.8, d02c357e5bfa)."""

    def faultin_pfn(self, fault: Fault) -> RetPf:
        """Retry at once while an invalidation of this page is in progress."""
        result = super().faultin_pfn(fault)
        if result is not CONTINUE or fault.slot is None:
            return result
        return RETRY if self.kvm.invalidation.in_range(fault.slot.hva(fault.gfn)) else CONTINUE


KERNELS: dict[str, tuple[Variant, ...]] = {
    "5.18": (
        Variant(
            name="kernel-5.18",
            title="5.18 to 6.5: invalidated roots are zapped by a workqueue",
            parts=(ZapByWorkqueue,),
            origin="22b94c4b63eb, efd995dae5eb",
        ),
    ),
    "6.6": (),
    "6.12": (
        Variant(
            name="kernel-6.12",
            title="6.12: roots under the read lock, small zaps first, a look before mmu_lock is taken",
            parts=(RootsUnderReadLock, SmallZapsFirst, LookBeforeLocking),
            origin="8ca983631f3c..576a15de8d29, d02c357e5bfa",
        ),
    ),
}
"""What each kernel version adds to 6.6, the base of the series."""
