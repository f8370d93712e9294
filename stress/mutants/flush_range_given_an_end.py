"""The helper that flushes a range takes the end of it where its callers give a number of pages."""

from mmu.parts import RemoteTlb
from stress.mutants.case import Case, Mutant


class TakesAnEnd(RemoteTlb):
    """kvm_flush_remote_tlbs_range(kvm, start, end)."""

    def flush_range(self, reason: str, gfn: int, pages: int) -> None:
        """Flush [gfn, pages)."""
        self._flush(reason, gfn, max(0, pages - gfn))


VARIANT = Mutant(
    name="flush-range-given-an-end",
    title="the flush of a range takes a count of pages for the end of the range",
    parts=(TakesAnEnd,),
    expects=("O1", "O16"),
    rule="a flush covers everything that was removed",
    origin="B09 (2822da446640, bc3b3c1002ea)",
    story=(
        "vCPU: uses gfn 4",
        "memslot worker: deletes the slot of one page there; only its leaves are zapped; flushes "
        "the frames from 4 to 1: none",
        "vCPU: writes to the page, which is somebody else's, through its TLB",
    ),
    confidence="Vt",
    tags=("flush", "memslots"),
    controlled=Case(
        "explore/fault-vs-delete",
        ('vm.policy="slot-leaves"', 'script.vcpu0=["read 0x4", "write 0x4"]'),
    ),
    threads=Case("quick", ('vm.policy="slot-leaves"',)),
)
