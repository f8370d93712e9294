"""A removed page-table page is never freed."""

from mmu.paging.table import ShadowPage
from mmu.tdp.write import SpteWriter
from stress.zoo.mutant import Case, Mutant


class NeverFree(SpteWriter):
    """Unlinks tables, and forgets them."""

    def free_table(self, sp: ShadowPage) -> None:
        """Nothing."""


VARIANT = Mutant(
    name="removed-table-leaked",
    title="a removed page-table page is never freed",
    parts=(NeverFree,),
    expects=("O11",),
    rule="when a VM is destroyed every page-table page has been freed",
    origin="B74: arm64, Drop last page ref in kvm_pgtable_stage2_free_removed() (6.4, hash unconfirmed)",
    story=("memslot worker: removes a table from a root", "nobody holds a pointer to it any more: it is never given back"),
    confidence="M",
    tags=("leaks",),
    controlled=Case("explore/obsolete-root"),
    threads=Case("quick"),
)
