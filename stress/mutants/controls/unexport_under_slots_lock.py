"""The exported zap stays behind the lock break, and un-export takes slots_lock."""

from mmu.parts import ExportedTdp, Exporter
from mmu.posted.r22_exported_zap_after_break import ObsoletePagesFirst
from stress.mutants.case import Case, Control


class RetractUnderSlotsLock(Exporter):
    """No root changes hands while slots change."""

    def retract(self, exported: ExportedTdp) -> None:
        """Un-export with slots_lock held."""
        with self.kvm.slots_lock:
            super().retract(exported)


VARIANT = Control(
    name="unexport-under-slots-lock",
    title="the exported zap stays behind the lock break, and un-export takes slots_lock",
    parts=(ObsoletePagesFirst, RetractUnderSlotsLock),
    origin="reference 1.11 R22, another mend",
    looks_wrong="As posted, the exported roots are zapped after mmu_lock may have been dropped.",
    right_because=(
        "kvm_mmu_zap_all_fast() runs with slots_lock held, so no root can be un-exported in the "
        "gap; one that is exported in it was made after the invalidation, and maps nothing old."
    ),
    tried=(
        Case("explore/unexport-vs-delete"),
        Case("explore/detach-vs-delete"),
        Case("explore/nx-toggle-vs-fetch"),
        Case("quick", ("actors.vcpu.nested_share=0.3", "actors.vcpu.shadow_pages=16")),
    ),
)
