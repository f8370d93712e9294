"""The IOTLB keeps a huge leaf when a part of it is flushed."""

from mmu.parts import TranslationCache, span_of
from stress.mutants.case import Case, Mutant


class KeepsHuge(TranslationCache):
    """Only leaves that lie in the range as a whole are dropped."""

    def drops_huge(self, key: int, gfn: int, end: int) -> bool:
        """What sticks out of the range stays."""
        first, last = span_of(key)
        return gfn <= first and last <= end


VARIANT = Mutant(
    name="superpage-kept-by-small-flush",
    title="a flush of a part of a huge leaf does not drop it from the IOTLB",
    parts=(KeepsHuge,),
    expects=("O1",),
    rule="a page-selective flush drops every entry that translates one of its pages, of any size",
    origin="kvm_zap_gfn_range() flushes exactly its range; reference 7.1 D22",
    story=(
        "device: DMA through a 2 MiB leaf, which the IOTLB caches as one entry",
        "host: an attribute of one page changes: KVM zaps the leaf and flushes that page",
        "device: DMA to the next page through the IOTLB",
    ),
    confidence="A",
    tags=("export", "flush", "vtd", "huge"),
    controlled=Case("explore/attributes-vs-huge-dma"),
    threads=Case("explore/attributes-vs-huge-dma"),
)
