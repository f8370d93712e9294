"""The removal of a table leaves what hangs below it alone."""

from mmu.parts import ShadowPage, SpteWriter
from stress.mutants.case import Case, Mutant


class TopOnly(SpteWriter):
    """The table is gone, so what it pointed to seems to be."""

    def handle_removed_pt(self, sp: ShadowPage, shared: bool) -> None:
        """Unlink and free the one page."""
        self.unlink_sp(sp, shared)
        self.free_table(sp)


VARIANT = Mutant(
    name="subtree-forgotten",
    title="when a table is removed, the tables and leaves below it are left alone",
    parts=(TopOnly,),
    expects=("O9", "O11"),
    rule=(
        "handle_removed_pt() freezes every entry of a removed table and accounts for what it was, "
        "down to the leaves"
    ),
    origin="reference 2.6 handle_removed_pt()",
    story=(
        "memslot worker: clears the entry of an upper table, frees that table",
        "teardown: the tables below it, and the statistics of their leaves, are nobody's any more",
    ),
    confidence="V",
    tags=("leaks", "accounting"),
    controlled=Case("explore/obsolete-root"),
    threads=Case("quick", ("disturbances.stutter_every_s=0.5",)),
)
