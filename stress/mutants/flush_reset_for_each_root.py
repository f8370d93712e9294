"""The leaf zap of a range starts every root without the flush that earlier roots owe."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant


class PrivateFlush(Zapper):
    """Each root has a flush of its own; the sum is only looked at in the end."""

    def zap_roots_leafs(self, as_id: int, start: int, end: int, *, flush: bool = False) -> bool:
        """Nothing is handed to the next root."""
        for root in self.roots.each_yield_safe(shared=False, as_id=as_id):
            flush |= self.zap_leafs(root, start, end, can_yield=True, flush=False)
        return flush


VARIANT = Mutant(
    name="flush-reset-for-each-root",
    title=(
        "a flush that one root's zap owes is not known to the next root's, which yields without it"
    ),
    parts=(PrivateFlush,),
    expects=("O1",),
    rule="what is owed is flushed before mmu_lock is dropped, whichever root it was removed from",
    origin="B02 (a835429cda91)",
    story=(
        "host: zaps a leaf in root A: a flush is owed",
        "host: walks root B with nothing owed, yields: mmu_lock is dropped",
        "vCPU: goes on using the translation that A has lost",
    ),
    confidence="V",
    tags=("flush", "yield", "notifier"),
    controlled=Case("explore/two-roots-vs-discard"),
    threads=Case(
        "quick",
        (
            "actors.vcpu.nested_share=0.5",
            "actors.host.threads=2",
            "actors.host.pause_s=0.0",
            "actors.host.range_pages=64",
        ),
    ),
)
