"""R7: an IO fault that finds the page mapped already is answered FAILURE."""

from mmu.export.tdp_fd import Exporter
from mmu.numbers.defects import titled
from mmu.tdp.fault import RetPf
from mmu.variant import Variant


class FixedOnly(Exporter):
    """Everything but RET_PF_FIXED becomes -EFAULT."""

    def answer(self, result: RetPf) -> bool:
        """FIXED is the only success."""
        return result is RetPf.FIXED


VARIANT = Variant(
    name="r7-spurious-is-failure",
    title=titled("R7"),
    parts=(FixedOnly,),
    expects=("O16",),
    rule=(
        "an IO fault is answered SUCCESS if and only if the gfn can be mapped with the rights "
        "asked for (I19)"
    ),
    origin="reference 1.11 R7, kvm_mmu_fault_exported_tdp() (patch 37)",
    story=(
        "device: DMA to gfn g faults, the request is queued",
        "vCPU: touches g and maps it",
        "iopf worker: finds the same SPTE, SPURIOUS, answers FAILURE: the DMA is aborted",
    ),
)
