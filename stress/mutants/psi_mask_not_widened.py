"""A page-selective command flushes an aligned block that the range sticks out of."""

from mmu.parts import VtdDomain
from stress.mutants.case import Case, Mutant


class MaskFromSize(VtdDomain):
    """The mask is computed from the number of pages alone."""

    def psi_mask(self, pfn: int, pages: int) -> int:  # noqa: ARG002 - that is the bug
        """ilog2(__roundup_pow_of_two(pages))."""
        return (pages - 1).bit_length()


VARIANT = Mutant(
    name="psi-mask-not-widened",
    title="the mask of a page-selective flush is not widened for an unaligned range",
    parts=(MaskFromSize,),
    expects=("O1",),
    rule=(
        "hardware ignores the low bits of the address that the mask covers: a range that crosses "
        "an aligned block needs a larger mask"
    ),
    origin="B76 (59bf3557cf2f)",
    story=(
        "device: gfns 1 and 2 are in the IOTLB",
        "host: an attribute of both changes: KVM zaps them and flushes [1, 3)",
        "VT-d driver: mask 1 at address 1: the hardware flushes gfns 0 and 1",
        "device: DMA to gfn 2 through the IOTLB",
    ),
    confidence="Vt",
    tags=("export", "flush", "vtd"),
    controlled=Case("explore/attributes-vs-dma"),
    threads=Case("explore/attributes-vs-dma"),
)
