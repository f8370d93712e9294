"""A table that was unlinked is given to nobody."""

from mmu.parts import ShadowPage, SpteWriter
from stress.mutants.case import Case, Mutant


class ReferenceKept(SpteWriter):
    """The page's last reference is never dropped."""

    def free_table(self, sp: ShadowPage) -> None:
        """Nothing."""


VARIANT = Mutant(
    name="removed-table-never-freed",
    title="a removed page-table page is never freed",
    parts=(ReferenceKept,),
    expects=("O11",),
    rule="what was unlinked is freed, once and after a grace period",
    origin="shape of B74 (f6a27d6dc51b), arm64: an unlinked table kept its last reference",
    story=(
        "memslot worker: unlinks a table and freezes its entries",
        "VM: is destroyed; the page is still there",
    ),
    confidence="Vt",
    tags=("rcu", "teardown"),
    controlled=Case("explore/obsolete-root"),
    threads=Case("quick"),
)
