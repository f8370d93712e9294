"""The exported roots are zapped before the others are invalidated."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Control


class ExportedFirst(Zapper):
    """Step 7 of kvm_mmu_zap_all_fast() before steps 3 to 5."""

    def zap_all_fast(self) -> None:
        """Zap, invalidate, unlock."""
        kvm = self.kvm
        kvm.slots_lock.assert_held()
        kvm.mmu_lock.write_lock()
        if kvm.probe.zap_all_fast is not None:
            kvm.probe.zap_all_fast(kvm.mmu_valid_gen.value)
        self.zap_exported_roots()
        self.obsolete_roots()
        self.zap_obsolete_pages()
        kvm.mmu_lock.write_unlock()
        self.zap_invalidated_roots()


VARIANT = Control(
    name="exported-zap-first",
    title="the exported roots are zapped before the others are invalidated",
    parts=(ExportedFirst,),
    origin="reference 2.7 steps 3 to 7",
    looks_wrong=(
        "While the exported root is zapped all the others are still valid, and vCPUs on them are "
        "not stopped."
    ),
    right_because=(
        "Both happen in one critical section of mmu_lock held for write: no fault sees a state in "
        "between, and the"
        " slots were swapped before."
    ),
    tried=(
        Case("explore/delete-vs-dma"),
        Case("explore/export-vs-delete"),
        Case("explore/nx-toggle-vs-fetch"),
        Case("quick", ("actors.nx.enabled=true",)),
    ),
)
