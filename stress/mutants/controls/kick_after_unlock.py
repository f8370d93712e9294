"""The vCPUs are told to drop their roots after mmu_lock was released."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Control


class KickLater(Zapper):
    """Steps 5 and 8 of kvm_mmu_zap_all_fast() exchanged."""

    def zap_all_fast(self) -> None:
        """Invalidate, zap the exported roots, unlock; then request, then zap."""
        kvm = self.kvm
        kvm.slots_lock.assert_held()
        kvm.mmu_lock.write_lock()
        if kvm.probe.zap_all_fast is not None:
            kvm.probe.zap_all_fast(kvm.mmu_valid_gen.value)
        self.toggle_valid_gen()
        invalidated = self.roots.invalidate_all_roots()
        self.zap_exported_and_obsolete()
        kvm.mmu_lock.write_unlock()
        self.request_obsolete_roots(invalidated)
        self.zap_invalidated_roots()


VARIANT = Control(
    name="kick-after-unlock",
    title="KVM_REQ_MMU_FREE_OBSOLETE_ROOTS is sent after mmu_lock was released",
    parts=(KickLater,),
    origin="reference 2.7 step 5, 2.16 P8",
    looks_wrong=(
        "A fault that gets mmu_lock between the invalidation and the request meets an obsolete "
        "root without a request pending."
    ),
    right_because=(
        "Every root of the TDP MMU has a page whose role tells under mmu_lock that it is invalid, "
        "so the fault is "
        "stale; and the request is acknowledged before the zap begins. (A root without a page "
        "needs the request: "
        "B37.)"
    ),
    tried=(
        Case("explore/obsolete-root"),
        Case("explore/fault-vs-delete"),
        Case("explore/nested-roots-vs-delete"),
        Case("quick", ("actors.vcpu.nested_share=0.1",)),
    ),
)
