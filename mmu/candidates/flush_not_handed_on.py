"""A notifier's walk of one memslot does not hand the flush that it owes to the walk of the next.

Seen in the order of events of real kernels (recordings of 6.12 and 7.2: the leaves of one slot
zapped, then a yield in the next slot's walk, then the flush). Not confirmed by a maintainer; no
stale access was seen on hardware.
"""

from mmu.memory.memslots import Memslot
from mmu.tdp.notifier import MmuNotifier
from mmu.variant import Variant


class EachSlotAlone(MmuNotifier):
    """kvm_handle_hva_range() collects what its handlers return, and passes nothing on to them."""

    def unmap_next(self, slot: Memslot, start: int, end: int, *, owed: bool) -> bool:
        """Start as kvm_unmap_gfn_range() does, with no flush owed."""
        return self.unmap_gfn_range(slot, start, end, flush=False) or owed


VARIANT = Variant(
    name="flush-not-handed-on",
    title=(
        "candidate: a flush that one memslot's walk owes is not handed to the next slot's, which "
        "yields without it"
    ),
    parts=(EachSlotAlone,),
    expects=("O1",),
    rule="before mmu_lock is dropped, everything zapped since it was taken has been flushed",
    origin="kvm_handle_hva_range(), reference 2.10; not confirmed",
    story=(
        "vCPU: has a page of slot A in its TLB",
        "host: madvise() of memory behind slots A and B: zaps A, begins with B, yields before "
        "B's first leaf, without a flush",
        "kswapd: takes the same page: its SPTE is gone, so nothing is flushed; the frame is free",
        "vCPU: writes through its TLB",
    ),
)
