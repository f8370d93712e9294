"""A fault that does not ask whether its root is still valid."""

from mmu.parts import Fault, FaultHandler, RootPage
from stress.mutants.case import Case, Mutant


class NoStaleCheck(FaultHandler):
    """Every fault counts as fresh."""

    def is_page_fault_stale(self, root: RootPage, fault: Fault) -> bool:  # noqa: ARG002 - the mutant ignores both
        """Never."""
        return False


VARIANT = Mutant(
    name="stale-check-skipped",
    title="a page fault skips the stale check under mmu_lock",
    parts=(NoStaleCheck,),
    expects=("O12",),
    rule="after taking mmu_lock a fault must be repeated if its root was invalidated",
    origin="B36 (a955cad84cda)",
    story=(
        "vCPU: fault with root R, frame found, waits for mmu_lock",
        "memslot worker: invalidates R, zaps past the gfn",
        "vCPU: installs tables and a leaf in R behind the zapper",
    ),
    confidence="V",
    tags=("faults", "roots"),
    controlled=Case("explore/fault-vs-delete"),
    threads=Case("BUSTED/stale-check-skipped"),
)
