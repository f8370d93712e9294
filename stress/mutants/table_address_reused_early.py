"""The memory of a page table is given to another one when the table is unlinked."""

from mmu.parts import PageTableMemory, ShadowPage
from stress.mutants.case import Case, Mutant


class ReusedAtOnce(PageTableMemory):
    """What is unlinked is free."""

    def retire(self, page: ShadowPage) -> None:
        """The address goes back before the flush and the grace period."""
        super().recycle(page)
        super().retire(page)

    def recycle(self, page: ShadowPage) -> None:
        """It is back already."""


VARIANT = Mutant(
    name="table-address-reused-early",
    title="the memory of an unlinked page table is used for another one before it is flushed",
    parts=(ReusedAtOnce,),
    expects=("O2", "O1"),
    rule=(
        "page-table memory is used again after the flush and a grace period: until then hardware "
        "may have its address cached"
    ),
    origin="tdp_mmu_free_sp_rcu_callback(); reference 2.6 RCU and flush rule, B31, D16",
    story=(
        "vCPU: its CPU has cached the way to table T",
        "recovery worker: unlinks T, has not flushed yet",
        "other vCPU: gets the memory of T for a table of its own",
        "vCPU: walks through the cached pointer into the other table",
    ),
    confidence="V",
    tags=("flush", "rcu", "tables"),
    controlled=Case("explore/table-comes-back"),
    threads=Case("migrating-vcpus"),
)
