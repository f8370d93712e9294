"""Patch 42 left out: the flush reaches the vCPUs and stops there."""

from mmu.parts import RemoteTlb
from stress.mutants.case import Case, Mutant


class VcpusOnly(RemoteTlb):
    """Flushes vCPU TLBs only."""

    def notify_importers(self, gfn: int, pages: int) -> None:
        """Nobody is told."""


VARIANT = Mutant(
    name="importers-not-notified",
    title="importers are not told of a flush",
    parts=(VcpusOnly,),
    expects=("O16", "O1"),
    rule=(
        "every importer must be told between the removal of an SPTE and the completion of the "
        "operation"
    ),
    origin="RFC PATCH 42/42 left out; reference 1.8",
    story=(
        "device: IOTLB holds gfn G",
        "memslot worker: zaps G, flushes the vCPUs, returns, releases the page",
        "device: DMA to G through its IOTLB",
    ),
    confidence="V",
    tags=("seed", "export", "flush"),
    controlled=Case("explore/delete-vs-dma"),
    threads=Case("BUSTED/importers-not-notified"),
)
