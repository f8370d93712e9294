"""Policy B: allocate a new root, switch every importer to it, and only then make the old one
invalid (reference 1.10)."""

from __future__ import annotations

from contextlib import nullcontext

from mmu.paging.table import RootPage
from mmu.tdp.zap import Export, Zapper
from mmu.variant import Variant


class RepublishExported(Zapper):
    """The order is the point: new root findable; importers switched, drained, acknowledged; old
    root invalid.

    A memslot update waits for all of it, because until the importers have switched a device can
    reach the old slot.
    """

    def zap_all_fast(self) -> None:
        """kvm_mmu_zap_all_fast() with the switch between two write-held sections; importers may
        sleep in it."""
        kvm = self.kvm
        kvm.slots_lock.assert_held()
        kvm.rcu.forbid_sleep("kvm_mmu_zap_all_fast")
        export = next(iter(self.exports.all()), None)
        with export.bind_lock if export is not None else nullcontext():
            kvm.mmu_lock.write_lock()
            if kvm.probe.zap_all_fast is not None:
                kvm.probe.zap_all_fast(kvm.mmu_valid_gen.value)
            self.obsolete_roots()
            fresh = self.allocate_fresh(export)
            self.zap_latecomers(export)
            self.zap_obsolete_pages()
            kvm.mmu_lock.write_unlock()
            if export is not None and fresh is not None:
                self.switch_importers(export, fresh)
                self.retire_old(export, fresh)
        if kvm.probe.point is not None:
            kvm.probe.point("P9")
        self.zap_invalidated_roots()

    def allocate_fresh(self, export: Export | None) -> RootPage | None:
        """A new root of the same role, at the head of the list, so that vCPUs that load one find
        it; None if nothing is exported (any more)."""
        old = export.root.value if export is not None else None
        if old is None:
            return None
        fresh = self.roots.allocate_root(old.role)
        fresh.exported.value = True
        return fresh

    def zap_latecomers(self, export: Export | None) -> None:
        """A root that was exported after we looked: its importers cannot be switched under
        mmu_lock, so its leaves go."""
        known = export.root.value if export is not None else None
        self.kvm.rcu.read_lock()
        for root in self.roots.each_rcu():
            if (
                root.exported.value
                and root is not known
                and any(other.root.value is root for other in self.exports.all())
            ):
                self.zap_exported_root(root)
        self.kvm.rcu.read_unlock()

    def switch_importers(self, export: Export, fresh: RootPage) -> None:
        """Every importer acknowledges the new root, or is cut off."""
        for importer in export.importers():
            start = self.kvm.runtime.now()
            switched = importer.switch_root(fresh)
            if not switched:
                importer.revoke()
            if self.kvm.probe.importer_switched is not None:
                self.kvm.probe.importer_switched(importer, switched, self.kvm.runtime.now() - start)

    def retire_old(self, export: Export, fresh: RootPage) -> None:
        """No importer walks the old root any more: from here on it is a root like any other."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        old = export.root.value
        assert old is not None
        export.root.value = fresh
        old.exported.value = False
        self.roots.invalidate(old)
        self.request_obsolete_roots([old])
        self.roots.put_root(old, shared=False)
        kvm.mmu_lock.write_unlock()
        if kvm.probe.republished is not None:
            kvm.probe.republished(old, fresh)


REPUBLISH = Variant(
    name="republish",
    title=(
        "B: a new root is allocated, every importer switches and acknowledges, then the old one "
        "becomes invalid"
    ),
    parts=(RepublishExported,),
    origin="reference 1.10, 5.2 B",
)
