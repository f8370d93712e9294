"""Page-table pages freed directly instead of through call_rcu()."""

from mmu.parts import ShadowPage, SpteWriter
from stress.mutants.case import Case, Mutant


class FreeAtOnce(SpteWriter):
    """No grace period."""

    def free_table(self, sp: ShadowPage) -> None:
        """Free the page while walkers may be inside."""
        self.kvm.tables.free(sp)


VARIANT = Mutant(
    name="table-freed-at-once",
    title="a removed page-table page is freed at once instead of through RCU",
    parts=(FreeAtOnce,),
    expects=("O3", "O2"),
    rule="a page-table page that was visible is freed only after a grace period",
    origin="B31 (7cca2d0b7e7d)",
    story=(
        "vCPU: lockless walk stands in table T",
        "memslot worker: zaps T's parent entry and frees T",
        "vCPU: reads T",
    ),
    confidence="Vt",
    tags=("rcu",),
    controlled=Case("explore/fault-vs-delete"),
    threads=Case("BUSTED/table-freed-at-once"),
)
