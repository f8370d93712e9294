"""R9: MMIO SPTEs of an exported root survive the wrap of the generation."""

from mmu.numbers.defects import titled
from mmu.tdp.zap import Zapper
from mmu.variant import Variant


class LeavesOnly(Zapper):
    """kvm_mmu_invalidate_mmio_sptes() relies on zap_all_fast, whose leaf zap skips what is not
    shadow-present."""

    def zap_kept_mmio_sptes(self) -> None:
        """Nothing more is done."""


VARIANT = Variant(
    name="r9-mmio-sptes-survive",
    title=titled("R9"),
    parts=(LeavesOnly,),
    expects=("O13",),
    rule="an MMIO SPTE is honoured only if no slot has come since it was made (I16)",
    origin="reference 1.11 R9, kvm_tdp_mmu_zap_exported_roots() (the seed)",
    story=(
        "vCPU: touches gfn g, no slot: an MMIO SPTE of generation n in the exported root",
        "memslot worker: updates until the generation wraps; the leaf zap leaves the MMIO SPTE "
        "alone; a slot now covers g",
        "vCPU: touches g: the SPTE's generation is the current one again, the access is emulated "
        "as MMIO",
    ),
)
