"""kvm_zap_gfn_range() holds faults off by guest frame numbers where host addresses are meant."""

from mmu.parts import ADDRESS_SPACES, Zapper
from stress.mutants.case import Case, Mutant


class GfnsForHvas(Zapper):
    """The range of the zap is taken for the range to hold off."""

    def zap_gfn_range(self, start: int, end: int) -> None:
        """Begin, zap, flush, end."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        kvm.invalidation.begin(start, end)
        flush = False
        for as_id in range(ADDRESS_SPACES):
            flush = self.zap_roots_leafs(as_id, start, end, flush=flush)
        if flush:
            self.tlb.flush("gfn-range")
        kvm.invalidation.end()
        kvm.mmu_lock.write_unlock()


VARIANT = Mutant(
    name="attribute-zap-in-wrong-units",
    title="while an attribute changes, faults are held off in the wrong range",
    parts=(GfnsForHvas,),
    expects=("O5",),
    rule=(
        "the range that is invalidated is one of host addresses, like those that faults are "
        "compared with"
    ),
    origin="B50 (6d3085e4d89a)",
    story=(
        "administrator: zaps one root, yields in the next",
        "vCPU: its host address is not in the range of guest frames: maps the page by the old "
        "attribute",
        "administrator: goes on, and never comes back to it",
    ),
    confidence="V",
    tags=("faults", "locks"),
    controlled=Case("explore/attributes-vs-fault"),
    threads=Case("quick", ("actors.nx.enabled=true", "actors.nx.attributes_share=1.0")),
)
