"""A fault looks at the SPTE without mmu_lock, and goes away if it grants the access."""

from mmu.parts import SPTE_R, SPTE_W, SPTE_X, Fault, FaultHandler, PageCache, RetPf, RootPage, Vcpu
from stress.mutants.case import Case, Control


class Peek(FaultHandler):
    """Every fault begins with the look that only fast page faults take."""

    def page_fault(self, root: RootPage, cache: PageCache, fault: Fault, vcpu: Vcpu) -> RetPf:
        """If another vCPU has mapped the page meanwhile, there is nothing left to do."""
        rcu = self.kvm.rcu
        rcu.read_lock()
        sp, _, spte = self.get_last_sptep(root, fault.gfn)
        rcu.read_unlock()
        needed = SPTE_W if fault.write else SPTE_X if fault.fetch else SPTE_R
        if self.layout.is_leaf(spte, sp.level) and spte & needed:
            return RetPf.SPURIOUS
        return super().page_fault(root, cache, fault, vcpu)


VARIANT = Control(
    name="spte-peeked-without-lock",
    title="a fault calls itself spurious by an SPTE that it has read without mmu_lock",
    parts=(Peek,),
    origin="reference 2.8 fast_page_fault()",
    looks_wrong=(
        "Neither mmu_lock nor the stale check stands behind the decision: the root may be invalid "
        "and the leaf about to be zapped."
    ),
    right_because=(
        "Nothing is installed on the strength of it. The guest is entered again, which looks at "
        "requests, and its "
        "own walk decides; if the leaf has gone, it faults again."
    ),
    tried=(
        Case("explore/same-page-twice"),
        Case("explore/fault-vs-delete"),
        Case("explore/discard-vs-fault"),
        Case("quick", ("actors.host.threads=1", "actors.dirty_log.enabled=true")),
    ),
)
