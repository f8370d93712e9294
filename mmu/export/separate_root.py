"""Policy E: KVM keeps a second set of tables that only the importer walks (reference 5.1, 5.2
E)."""

from __future__ import annotations

from mmu.export.tdp_fd import Exporter
from mmu.memory.memslots import Memslot
from mmu.paging.table import RootRole
from mmu.tdp.zap import Zapper
from mmu.variant import Variant


class ExportOwnRoot(Exporter):
    """The exported root has a role of its own, which no vCPU ever has."""

    def export_role(self, as_id: int) -> RootRole:
        """The IOMMU's role."""
        return RootRole(as_id, iommu=True)


class ZapSeparately(Zapper):
    """vCPU roots are dropped as ever; the importer's root stays and loses the slot's leaves only.
    No vCPU walks it, so only importers have to be told."""

    def flush_shadow_memslot(self, slot: Memslot) -> None:
        """The slot's leaves in the importer's root, then everything in the vCPUs' roots."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        before = kvm.stat.leaves()
        for root in self.roots.each_yield_safe(shared=False, as_id=slot.as_id):
            if root.role.iommu and self.zap_leafs(
                root, slot.base_gfn, slot.end_gfn, can_yield=False, flush=False
            ):
                self.tlb.notify_importers(slot.base_gfn, slot.npages)
                self.exported_zapped(root, before)
        kvm.mmu_lock.write_unlock()
        self.zap_all_fast()

    def zap_exported_roots(self) -> None:
        """Nothing: what vCPUs must forget is not in this root."""


SEPARATE_ROOT = Variant(
    name="separate-root",
    title="E: KVM maintains a root of its own for the importer; vCPU roots are invalidated as ever",
    parts=(ExportOwnRoot, ZapSeparately),
    origin="Sean Christopherson and Yan Zhao on the list, reference 5.1, 5.2 E",
)
