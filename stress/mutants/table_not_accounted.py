"""A table that was linked is not counted."""

from mmu.parts import SpteWriter
from stress.mutants.case import Case, Mutant


class Uncounted(SpteWriter):
    """Links tables silently."""

    def account_linked(self) -> None:
        """Nothing."""


VARIANT = Mutant(
    name="table-not-accounted",
    title="a table that a fault has linked is not counted",
    parts=(Uncounted,),
    expects=("O9", "O11"),
    rule="tdp_mmu_pages is what a walk of all roots finds, and 0 when the VM is gone",
    origin="reference 2.8 link_sp, invariant I13",
    story=("vCPU: links a table", "memslot worker: removes it: the count is one too low for ever"),
    confidence="V",
    tags=("accounting",),
    controlled=Case("explore/obsolete-root"),
    threads=Case("quick", ("disturbances.stutter_every_s=0.5",)),
)
