"""A table is taken off the list of possible huge pages before it was put on it."""

from mmu.parts import ShadowPage, SpteWriter
from stress.mutants.case import Case, Mutant


class DeleteBlindly(SpteWriter):
    """Takes a page that only the NX mitigation keeps for one that is on the list."""

    def unlink_sp(self, sp: ShadowPage, shared: bool) -> None:  # noqa: ARG002 - who holds mmu_lock for write needs no second lock
        """list_del() without a look."""
        self.kvm.stat.tdp_mmu_pages.add(-1)
        if sp.nx_disallowed is not None:
            with self.kvm.tdp_mmu_pages_lock:
                self.kvm.possible_nx_huge_pages.remove(sp)


VARIANT = Mutant(
    name="nx-list-deleted-unlinked",
    title="a table is deleted from a list that it was not on yet",
    parts=(DeleteBlindly,),
    expects=("O17",),
    rule="a table can be removed as soon as its SPTE is visible, which is before it is on any list",
    origin="B46: tdp_mmu_link_page() of 5.15 (bugzilla), gone with d25ceb926436",
    story=(
        "vCPU: fetch fault: links a table, visible from now on",
        "dirty logger: logging goes off: removes the table, list_del() of a node that is nowhere",
        "vCPU: adds the table to the list",
    ),
    confidence="V",
    tags=("nx", "lists"),
    controlled=Case("explore/log-off-vs-fetch"),
    threads=Case(
        "explore/log-off-vs-fetch",
        (
            'script.dirty-logger=["log-on", "log-off"]',
            'disturbances.points=["P5"]',
            "disturbances.delay_share=0.5",
        ),
    ),
)
