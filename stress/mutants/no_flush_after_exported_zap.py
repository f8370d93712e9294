"""The seed without its flush: leaves are gone from the table, and stay in every cache."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant


class NoFlush(Zapper):
    """Zaps, does not flush."""

    def flush_exported(self) -> None:
        """Nothing."""


VARIANT = Mutant(
    name="no-flush-after-exported-zap",
    title="no flush after the exported leaf zap",
    parts=(NoFlush,),
    expects=("O1",),
    rule="a valid root's leaves must be flushed from every TLB before mmu_lock is released",
    origin="RFC PATCH 36/42; shape of B03 (048f49809c52)",
    story=(
        "device: IOTLB holds gfn G",
        "memslot worker: zaps G from the exported root, no flush, returns, releases the page",
        "device: DMA to G through its IOTLB reaches a page that is not G's",
    ),
    confidence="V",
    tags=("seed", "flush"),
    controlled=Case("explore/delete-vs-dma"),
    threads=Case("BUSTED/no-flush-after-exported-zap"),
)
