"""R10: a fault that sampled the NX policy before a toggle maps under the old policy after it."""

from mmu.numbers.defects import titled
from mmu.tdp.fault import Fault, FaultHandler
from mmu.variant import Variant


class PolicyNeverStale(FaultHandler):
    """An invalid root is the only sign of a toggle, and an exported root never becomes invalid."""

    def is_policy_stale(self, fault: Fault) -> bool:  # noqa: ARG002 - nobody looks
        """Never."""
        return False


VARIANT = Variant(
    name="r10-nx-toggle-race",
    title=titled("R10"),
    parts=(PolicyNeverStale,),
    expects=("O14",),
    rule="while the NX huge page mitigation is on, no executable huge leaf exists (I17)",
    origin="reference 1.11 R10, set_nx_huge_pages() with the seed",
    story=(
        "vCPU: a fault samples NX=off and gets its frame",
        "admin: NX:=on, zap_all_fast zaps the exported root's leaves and returns",
        "vCPU: takes mmu_lock for read, finds nothing stale, installs an executable 2M leaf",
    ),
)
