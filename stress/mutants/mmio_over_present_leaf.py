"""A fault that saw no slot puts its MMIO SPTE over a leaf that somebody else has mapped meanwhile."""

from mmu.tdp.fault import FaultHandler
from mmu.variant import Variant


class NeverTaken(FaultHandler):
    """Whatever is there is replaced."""

    def is_taken(self, old: int) -> bool:  # noqa: ARG002 - nobody looks
        """Never."""
        return False


VARIANT = Variant(
    name="mmio-over-present-leaf",
    title="an MMIO SPTE replaces a leaf of a slot that is being created, without a flush",
    parts=(NeverTaken,),
    expects=("O1", "O6", "O16"),
    rule="what a later zap must find may not be hidden behind a non-present value",
    origin="tdp_mmu_map_handle_target_level() against a memslot CREATE; found by this harness, reference 2.8, 2.9",
    story=(
        "vCPU 0: looks up gfn g: no slot",
        "memslot worker: publishes a new slot that covers g, and waits for SRCU; vCPU 1 sees it and maps g",
        "vCPU 0: installs an MMIO SPTE over the leaf; a notifier finds nothing to zap, vCPU 1's TLB keeps the page",
    ),
)
