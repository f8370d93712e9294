"""kvm_zap_gfn_range() does not hold faults off while it zaps."""

from mmu.parts import ADDRESS_SPACES, Zapper
from stress.mutants.case import Case, Mutant


class ZapOnly(Zapper):
    """Neither raises mmu_invalidate_in_progress nor advances the sequence."""

    def zap_gfn_range(self, start: int, end: int) -> None:
        """Zap, flush."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        flush = False
        for as_id in range(ADDRESS_SPACES):
            flush = self.zap_roots_leafs(as_id, start, end, flush=flush)
        if flush:
            self.tlb.flush("gfn-range")
        kvm.mmu_lock.write_unlock()


VARIANT = Mutant(
    name="attribute-zap-unannounced",
    title="faults are not held off while an attribute of their range changes",
    parts=(ZapOnly,),
    expects=("O5",),
    rule="a live range is unmapped only while faults on it are held off",
    origin="B50 (edb298c663fc)",
    story=(
        "vCPU: reads the old attribute, waits for mmu_lock",
        "administrator: changes it, zaps the range, flushes",
        "vCPU: maps the page by the old attribute: nothing tells that it is stale",
    ),
    confidence="Vt",
    tags=("faults", "locks"),
    controlled=Case("explore/attributes-vs-fault"),
    threads=Case("quick", ("actors.nx.enabled=true", "actors.nx.attributes_share=1.0")),
)
