"""After a lost race the D bit is cleared in whatever is there now."""

from mmu.parts import DirtyLog, TdpIter
from stress.mutants.case import Case, Mutant


class BlindRetry(DirtyLog):
    """Looks at the entry once, and not again."""

    def clear_leaf(self, it: TdpIter, bit: int) -> bool:
        """Clear the bit until it works; others have their turn in between."""
        if not self.is_clearable(it, bit):
            return False
        self.kvm.runtime.resched()
        while not self.writer.iter_set_spte_atomic(it, it.old_spte & ~bit):
            pass
        return True


VARIANT = Mutant(
    name="dirty-clear-retried-blindly",
    title="after a lost race the W or D bit is cleared in whatever stands there now",
    parts=(BlindRetry,),
    expects=("O7",),
    rule=(
        "a compare-exchange that failed brings a new value, and every assumption about the old one "
        "is void"
    ),
    origin="B58 (3354ef5a592d)",
    story=(
        "dirty logger: reads a huge leaf, is about to take its W bit, or D bit",
        "vCPU: a fetch fault replaces the leaf by a table",
        "dirty logger: loses the race, and takes the bit from the table's entry",
    ),
    confidence="Vt",
    tags=("dirty", "atomic", "huge"),
    controlled=Case(
        "explore/log-on-vs-fetch", ('script.vcpu0=["fetch 0x1"]',), strategy="preemption:1"
    ),
    threads=Case(
        "explore/log-on-vs-fetch",
        (
            "script.setup=[]",
            'script.vcpu0=["write 0x0", "idle", "fetch 0x1"]',
            "actors.vcpu.idle_s=0.003",
            'script.dirty-logger=["log-on", "log-off"]',
            "disturbances.switch_interval_s=0.00005",
        ),
    ),
)
