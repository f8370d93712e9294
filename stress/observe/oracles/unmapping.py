"""O5: part of a root is unmapped only while nobody can refill it."""

from __future__ import annotations

from mmu.paging.table import RootPage
from mmu.probe import override
from stress.observe.oracles.base import Oracle


class UnmapOracle(Oracle):
    """Looks, at the end of every leaf zap of a range, at what keeps faults from mapping the same
    pages behind it. mmu_lock is still held for write then. A zap of a whole root only makes room:
    it is none that something has to be gone after."""

    rules = ("O5",)
    title = (
        "a range is unmapped only inside an invalidation that covers it, or with slots_lock held"
    )

    @override
    def zap_leafs_done(self, root: RootPage, start: int, end: int, yielded: bool) -> None:
        kvm = self.kvm
        if end - start > kvm.geometry.max_gfn or kvm.slots_lock.held():
            return
        if kvm.invalidation.in_progress.value == 0:
            why = "outside any invalidation, without slots_lock"
        elif not self._is_announced(root.role.as_id, start, end):
            first, last = kvm.invalidation.range.value
            why = f"while another range is being invalidated: host pages {first:#x}..{last - 1:#x}"
        else:
            return
        kvm.warn(
            "O5",
            "unmap-without-invalidation",
            f"WARNING: gfns {start:#x}..{end - 1:#x} of {root.describe()} unmapped {why}",
            "a live range is unmapped only while faults on it are held off, else one maps the old "
            "page behind the zap",
            "kvm_unmap_gfn_range() lockdep_assert_once(); reference 2.10, B50, B72 (28cf49788107)",
            extra=(("memory of these gfns", self._memory_of(root.role.as_id, start, end)),),
            gfn=start,
        )

    def _memory_of(self, as_id: int, start: int, end: int) -> list[str]:
        """Where the gfns are in the host's address space, which is what faults are compared
        with."""
        slots = [
            slot
            for slot in self.vm.memslots.peek(as_id).index.value[1]
            if slot.base_gfn < end and start < slot.end_gfn
        ]
        parts = [(slot, max(start, slot.base_gfn), min(end, slot.end_gfn)) for slot in slots]
        return [
            f"host pages {slot.hva(first):#x}..{slot.hva(last) - 1:#x}: {slot.describe()}"
            for slot, first, last in parts
        ]

    def _is_announced(self, as_id: int, start: int, end: int) -> bool:
        """Whether faults on every host page behind [start, end) are stale now."""
        first, last = self.kvm.invalidation.range.value
        slots = [
            slot
            for slot in self.vm.memslots.peek(as_id).index.value[1]
            if slot.base_gfn < end and start < slot.end_gfn
        ]
        return all(
            first <= slot.hva(max(start, slot.base_gfn))
            and slot.hva(min(end, slot.end_gfn)) <= last
            for slot in slots
        )
