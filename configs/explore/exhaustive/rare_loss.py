"""A bug that no amount of luck finds: a compare-exchange loop that gives up after the third try.

Each SPTE change is counted by compare-exchange. "It cannot fail three times in a row" is almost
true: another vCPU has to count a change of its own between load and compare-exchange of this one,
three times, and two of them are a whole fault apart.
"""

from mmu import Variant
from mmu.parts import Kvm, RemoteTlb, ShadowPage, SpteWriter


class ThreeTries(SpteWriter):
    """Counts changes, and believes that three tries are enough."""

    def __init__(self, kvm: Kvm, tlb: RemoteTlb) -> None:
        super().__init__(kvm, tlb)
        self.changes = kvm.runtime.counter("spte_changes")

    def set_spte_atomic(self, sp: ShadowPage, index: int, gfn: int, old: int, new: int) -> bool:
        """Change the entry, then count the change."""
        changed = super().set_spte_atomic(sp, index, gfn, old, new)
        if changed:
            self.count()
        return changed

    def count(self) -> None:
        """One more change; lost when all tries meet another vCPU's."""
        for _ in range(3):
            seen = self.changes.value
            if self.changes.cmpxchg(seen, seen + 1) == seen:
                return
        self.kvm.warn(
            "O9",
            "change-not-counted",
            "BUG: an SPTE change was not counted",
            "a compare-exchange that failed has to be tried again until it succeeds",
            "Documentation/atomic_t.txt",
        )


VARIANT = Variant(
    name="rare-loss",
    title="a compare-exchange loop gives up after three tries",
    parts=(ThreeTries,),
    expects=("O9",),
    rule="a compare-exchange that failed has to be tried again until it succeeds",
)
