"""R17: an IO fault holds slots_lock while it waits for user space to bring a page in."""

from mmu.export.importer import ExportedTdp
from mmu.export.tdp_fd import Exporter
from mmu.numbers.defects import titled
from mmu.variant import Variant


class SleepUnderSlotsLock(Exporter):
    """GUP runs with slots_lock held."""

    def prefault(self, exported: ExportedTdp, gfn: int) -> None:
        """Nothing is brought in before."""

    def may_sleep(self) -> bool:
        """It will, and nobody asks."""
        return True


VARIANT = Variant(
    name="r17-gup-under-slots-lock",
    title=titled("R17"),
    parts=(SleepUnderSlotsLock,),
    expects=("O10",),
    rule="nothing that a page may wait for is locked while it is waited for",
    origin="reference 1.11 R17, kvm_tdp_fault() (patch 37)",
    story=(
        "iopf worker: holds slots_lock, GUP waits for the userfaultfd handler",
        "userfaultfd handler: changes a memslot before it answers: waits for slots_lock",
    ),
)
