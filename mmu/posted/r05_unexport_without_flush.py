"""R5: un-export zaps all levels of a live root and issues no TLB flush (with R6: the zap may
yield)."""

from mmu.export.tdp_fd import Exporter
from mmu.numbers.defects import titled
from mmu.paging.table import RootPage
from mmu.variant import Variant


class ZapLiveRoot(Exporter):
    """Release as posted."""

    def zap_unexported(self, root: RootPage) -> None:
        """tdp_mmu_zap_root(): tables go to RCU, nobody's TLB is told."""
        self.zapper.zap_root(root, shared=False)


VARIANT = Variant(
    name="r5-unexport-without-flush",
    title=titled("R5"),
    parts=(ZapLiveRoot,),
    expects=("O1", "O2"),
    rule=(
        "the no-flush rule holds for invalid roots that every vCPU must drop, not for a root that "
        "stays loaded"
    ),
    origin="reference 1.11 R5, kvm_mmu_put_exported_tdp() (patch 35)",
    story=(
        "vCPU: runs on the exported root, its TLB and paging-structure cache are warm",
        "exporter: closes the TDP FD; all levels are zapped, tables freed by RCU, no flush",
        "vCPU: uses the old translation, or walks through the freed table",
    ),
)
