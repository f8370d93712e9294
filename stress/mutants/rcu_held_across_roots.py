"""One RCU read section around the zap of all roots."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant


class OneSection(Zapper):
    """What holds for one root is taken to be good for all."""

    def zap_roots_leafs(self, as_id: int, start: int, end: int, *, flush: bool = False) -> bool:
        """RCU is not left between two roots, nor, therefore, at a yield."""
        self.kvm.rcu.read_lock()
        flush = super().zap_roots_leafs(as_id, start, end, flush=flush)
        self.kvm.rcu.read_unlock()
        return flush


VARIANT = Mutant(
    name="rcu-held-across-roots",
    title="a range is zapped in all roots inside one RCU read section",
    parts=(OneSection,),
    expects=("O3",),
    rule=(
        "an RCU read section ends with each root and at each yield: a longer one holds off every "
        "grace period"
    ),
    origin="B33 (a151aceca1e4)",
    story=(
        "host: zaps a range in one root after the other, in one read section",
        "vCPU: waits for mmu_lock, so the zap yields it: a context switch inside the section",
    ),
    confidence="Vt",
    tags=("rcu", "yield", "notifier"),
    controlled=Case("explore/two-roots-vs-discard"),
    threads=Case("quick", ("actors.host.threads=1", "actors.host.pause_s=0.001")),
)
