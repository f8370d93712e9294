"""A notifier's walk of one memslot does not hand the flush that it owes to the walk of the next.

Seen in the order of events of real kernels (recordings of 6.12 and 7.2: the leaves of one slot
zapped, then a yield in the next slot's walk, then the flush). Not confirmed by a maintainer; no
stale access was seen on hardware.
"""

from mmu.memory.memslots import Memslot
from mmu.tdp.notifier import MmuNotifier
from mmu.variant import Variant


class EachSlotAlone(MmuNotifier):
    """kvm_handle_hva_range() collects what its handlers return, and tells them nothing."""

    def unmap_gfn_range(self, slot: Memslot, start: int, end: int, *, flush: bool) -> bool:
        """kvm_unmap_gfn_range() begins with nothing owed."""
        return super().unmap_gfn_range(slot, start, end, flush=False) or flush


VARIANT = Variant(
    name="flush-not-handed-on",
    title=(
        "candidate: a flush that one memslot's walk owes is not handed to the next slot's, which "
        "yields without it"
    ),
    parts=(EachSlotAlone,),
    expects=("O1",),
    rule="whoever drops mmu_lock has flushed everything that was zapped since it was taken",
    origin="reference 2.10, kvm_handle_hva_range() from 6.1 to 7.x at least; not confirmed",
    story=(
        "vCPU: has a page of slot A in its TLB",
        "host: madvise() of memory behind slots A and B: zaps A, begins with B, yields before "
        "B's first leaf, without a flush",
        "kswapd: takes the same page: its SPTE is gone, so nothing is flushed; the frame is free",
        "vCPU: writes through its TLB",
    ),
)
