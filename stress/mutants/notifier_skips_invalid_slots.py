"""MMU notifiers skip memslots that are being deleted."""

from mmu.memory.host import Region
from mmu.memory.memslots import Memslot
from mmu.tdp.notifier import MmuNotifier
from stress.mutants.case import Case, Mutant


class SkipInvalid(MmuNotifier):
    """The memslot update will unmap it anyway."""

    def slots(self, region: Region, first: int, last: int) -> list[Memslot]:
        """The valid ones."""
        return [slot for slot in super().slots(region, first, last) if not slot.invalid]


VARIANT = Mutant(
    name="notifier-skips-invalid-slots",
    title="MMU notifiers skip memslots that are marked INVALID",
    parts=(SkipInvalid,),
    expects=("O6",),
    rule=(
        "an INVALID slot's memory is mapped until it has been zapped: until then notifiers have to "
        "unmap it"
    ),
    origin="B66, reference 4f: the first version of a fix, rejected on review",
    story=(
        "memslot worker: publishes slot S as INVALID",
        "host: range_start skips S, and frees the page",
        "vCPU: uses the page through its mapping",
        "memslot worker: zaps S",
    ),
    confidence="V",
    tags=("notifier", "memslots"),
    controlled=Case("explore/discard-vs-delete"),
    threads=Case(
        "quick",
        (
            "actors.host.threads=1",
            "actors.host.pause_s=0.0",
            "actors.host.age_weight=0.0",
            'disturbances.points=["P13", "P14"]',
            "disturbances.delay_share=0.5",
            "disturbances.delay_s=0.005",
            "memory.fixed_pages=16",
            "memory.churn_pages=16",
        ),
    ),
)
