"""The leaf zap of a range forgets the flush that a root owes as soon as another root has nothing to
zap."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant


class LastRootDecides(Zapper):
    """The result of the last root is the result."""

    def zap_roots_leafs(self, as_id: int, start: int, end: int, *, flush: bool = False) -> bool:
        """Each root's answer replaces the one before."""
        for root in self.roots.each_yield_safe(shared=False, as_id=as_id):
            flush = self.zap_leafs(root, start, end, can_yield=True, flush=False)
        return flush


VARIANT = Mutant(
    name="flush-overwritten-by-next-root",
    title="a root in which nothing was mapped cancels the flush that the roots before it owe",
    parts=(LastRootDecides,),
    expects=("O1",),
    rule="the flush that a leaf zap owes is chained from root to root",
    origin="B11 (cf3e26427c08, reverted by 873dd122172f, again as f47e5bbbc92f)",
    story=(
        "host: reclaims a page that only the nested guest's root maps: zapped, a flush is owed",
        "host: the normal root has nothing there: nothing is owed any more",
        "vCPU: writes to the page, which the host has given to somebody else, through its TLB",
    ),
    confidence="Vt",
    tags=("flush", "notifier"),
    controlled=Case("explore/two-roots-vs-discard", ('script.host0=["discard 0 0 1"]',)),
    threads=Case("quick", ("actors.vcpu.nested_share=0.5", "actors.host.threads=1")),
)
