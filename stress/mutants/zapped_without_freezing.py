"""A table is replaced under mmu_lock(read) by zero, flushed afterwards, and never frozen in
between."""

from mmu.parts import SpteWriter, TdpIter
from stress.mutants.case import Case, Mutant


class ZeroAtOnce(SpteWriter):
    """zap_spte_atomic() before there was a REMOVED value."""

    def zap_spte_atomic(self, it: TdpIter) -> bool:
        """Clear first, flush then."""
        if not self.iter_set_spte_atomic(it, 0):
            return False
        self.tlb.flush_range("zap-atomic", it.gfn, self.kvm.geometry.pages(it.level))
        return True


VARIANT = Mutant(
    name="zapped-without-freezing",
    title="an entry is cleared under mmu_lock(read) before what it mapped is flushed",
    parts=(ZeroAtOnce,),
    expects=("O1",),
    rule=(
        "under mmu_lock(read) an entry is frozen until its flush is done, so that nobody puts "
        "something else there meanwhile"
    ),
    origin=(
        "B06 (08f07c800e9d), in the one place that still zaps atomically: the zap of collapsible "
        "tables"
    ),
    story=(
        "dirty logger: logging goes off; clears an entry under mmu_lock(read) to let a huge page "
        "come back",
        "vCPU: faults, finds the entry empty, maps the huge page",
        "another vCPU: still translates through the old table: two mappings live for one gfn",
    ),
    confidence="V",
    tags=("flush", "huge"),
    controlled=Case("explore/log-off-vs-write"),
    threads=Case("full"),
)
