"""A notifier unmaps a range of the host from the first memslot that it finds."""

from mmu.parts import Memslot, MmuNotifier, Region
from stress.mutants.case import Case, Mutant


class FirstSlot(MmuNotifier):
    """Assumes one slot for each mapping."""

    def slots(self, region: Region, first: int, last: int) -> list[Memslot]:
        """Return the first slot only."""
        return super().slots(region, first, last)[:1]


VARIANT = Mutant(
    name="notifier-stops-at-first-slot",
    title="a notifier looks at the first memslot that overlaps the range, and at no other",
    parts=(FirstSlot,),
    expects=("O6", "INV"),
    rule="a range of host memory is unmapped from every memslot that has a part of it",
    origin="kvm_for_each_memslot_in_hva_range(), reference 2.10",
    story=(
        "host: takes memory behind two slots: the first one is zapped",
        "host: the frames are free",
        "vCPU: uses the second slot",
    ),
    confidence="A",
    tags=("notifier", "slots"),
    controlled=Case("explore/discard-across-slots"),
    threads=Case(
        "quick",
        (
            "memory.fixed_slots=8",
            "actors.host.threads=1",
            "actors.host.range_pages=128",
            "actors.vcpu.churn_share=0.1",
        ),
    ),
)
