"""The zap of obsolete shadow pages ends where it had to drop mmu_lock."""

from mmu.parts import BATCH_ZAP_PAGES, Zapper
from stress.mutants.case import Case, Mutant


class OneBatch(Zapper):
    """kvm_zap_obsolete_pages() without `goto restart`."""

    def zap_obsolete_pages(self) -> None:
        """Zap until mmu_lock was dropped."""
        kvm, pages, batch = self.kvm, self.kvm.shadow_pages, 0
        while pages.is_oldest_obsolete(kvm.mmu_valid_gen.value):
            if batch >= BATCH_ZAP_PAGES and self.break_obsolete_zap():
                return
            pages.zap_oldest()
            batch += 1


VARIANT = Mutant(
    name="obsolete-zap-not-restarted",
    title="the zap of obsolete shadow pages ends where it has dropped mmu_lock",
    parts=(OneBatch,),
    expects=("O6",),
    rule=(
        "whoever has dropped mmu_lock in a walk starts again: with two generations a shadow page "
        "that is left becomes valid at the next flip"
    ),
    origin="kvm_zap_obsolete_pages() goto restart; reference 2.7 step 6",
    story=(
        "vCPU: waits for mmu_lock",
        "memslot worker: zaps 10 shadow pages, drops mmu_lock, and leaves the rest",
        "memslot worker: the call returns: shadow pages still map the deleted slot",
    ),
    confidence="A",
    tags=("nested", "locks"),
    controlled=Case("explore/unexport-vs-delete"),
    threads=Case("quick", ("actors.vcpu.nested_share=0.3", "actors.vcpu.shadow_pages=64")),
)
