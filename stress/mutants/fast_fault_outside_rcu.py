"""The lockless fault path walks the page table outside RCU."""

from mmu.parts import Fault, FaultHandler, RetPf, RootPage
from stress.mutants.case import Case, Mutant


class NoReadSection(FaultHandler):
    """The vCPU holds a reference on its root."""

    def fast_page_fault(self, root: RootPage, fault: Fault) -> RetPf | None:
        """Walk as if that kept the tables."""
        return self._fast_page_fault(root, fault)


VARIANT = Mutant(
    name="fast-fault-outside-rcu",
    title="fast_page_fault() walks the page table outside RCU",
    parts=(NoReadSection,),
    expects=("O3", "O2"),
    rule="a lockless walk has nothing but its RCU read section to keep the tables it walks",
    origin="reference 2.8, 2.14 fast_page_fault(); B31",
    story=(
        "vCPU: write fault on a protected page: walks down without lock",
        "dirty logger: logging goes off: removes the table, RCU frees it",
        "vCPU: reads the table",
    ),
    confidence="V",
    tags=("rcu", "faults"),
    controlled=Case("explore/write-protected-log"),
    threads=Case("explore/write-protected-log"),
)
