"""MMU notifiers: what the host's memory management tells KVM before it takes a page away (reference
2.10)."""

from __future__ import annotations

from typing import Final, Protocol

from mmu.kvm import Kvm
from mmu.memory.host import Region
from mmu.memory.memslots import Memslot, Memslots
from mmu.memory.tlb import RemoteTlb
from mmu.tdp.age import Ageing
from mmu.tdp.zap import Zapper


class Ranges(Protocol):
    """What is done to one slot's part of a range."""

    def __call__(self, slot: Memslot, start: int, end: int) -> bool:
        """Do it to guest frames [start, end) of `slot`; whether something was found."""
        ...


class MmuNotifier:
    """kvm_mmu_notifier_ops. Ranges are page indices [first, last) of a host mapping; none of these
    may take slots_lock or slots_arch_lock, because a memslot update holds both while it waits for
    invalidations to end."""

    STANDS_FOR: Final = "virt/kvm/kvm_main.c: kvm_mmu_notifier_ops"

    def __init__(
        self, kvm: Kvm, memslots: Memslots, zapper: Zapper, ageing: Ageing, tlb: RemoteTlb
    ) -> None:
        self.kvm = kvm
        self.memslots = memslots
        self.zapper = zapper
        self.ageing = ageing
        self.tlb = tlb

    def invalidate_range_start(self, region: Region, first: int, last: int) -> None:
        """The pages are about to go: on return nobody uses them through KVM, and no fault maps them
        until the end."""
        kvm = self.kvm
        start = kvm.runtime.now()
        with kvm.mn_invalidate_lock:
            kvm.mn_active_invalidate_count.add(1)
        token = kvm.srcu.read_lock()
        locked = flush = False
        for slot in self.slots(region, first, last):
            if not locked:
                kvm.mmu_lock.write_lock()
                self.invalidate_begin(region.hva + first, region.hva + last)
                locked = True
            flush = self.unmap_next(slot, *self.gfn_range(slot, region, first, last), owed=flush)
        if kvm.probe.point is not None:
            kvm.probe.point("P12")
        if locked:
            if flush:
                self.flush("notifier")
            kvm.mmu_lock.write_unlock()
        kvm.srcu.read_unlock(token)
        if kvm.probe.range_started is not None:
            kvm.probe.range_started(region, first, last, kvm.runtime.now() - start)

    def invalidate_range_end(self, region: Region, first: int, last: int) -> None:
        """The host is done: faults may map what is there now."""
        kvm = self.kvm
        token = kvm.srcu.read_lock()
        if self.slots(region, first, last):
            kvm.mmu_lock.write_lock()
            self.invalidate_end()
            kvm.mmu_lock.write_unlock()
        kvm.srcu.read_unlock(token)
        with kvm.mn_invalidate_lock:
            if kvm.mn_active_invalidate_count.fetch_add(-1) < 1:
                kvm.warn(
                    "O9",
                    "active-invalidate-underflow",
                    "BUG: a range ends that never began (mn_active_invalidate_count < 0)",
                    "each range_end belongs to one range_start",
                    "kvm_mmu_notifier_invalidate_range_end() "
                    "WARN_ON_ONCE(!mn_active_invalidate_count)",
                )

    def clear_flush_young(self, region: Region, first: int, last: int) -> bool:
        """Make the pages old and flush, so that the next use is seen; whether they were young."""
        return self._age(region, first, last, self.ageing.age_gfn_range, flush=True)

    def clear_young(self, region: Region, first: int, last: int) -> bool:
        """Make the pages old without a flush; whether they were young."""
        return self._age(region, first, last, self.ageing.age_gfn_range, flush=False)

    def test_young(self, region: Region, first: int, last: int) -> bool:
        """Whether the pages are young."""
        return self._age(region, first, last, self.ageing.test_age_gfn, flush=False)

    def release(self) -> None:
        """The process exits (exit_mmap): nothing may stay mapped, although files, and with them
        devices, are still open."""
        kvm = self.kvm
        token = kvm.srcu.read_lock()
        kvm.mm_gone.store(True)
        if not kvm.dying.value:  # otherwise the VM's destruction does it, or has done it
            self.zapper.zap_all()
        kvm.srcu.read_unlock(token)

    def invalidate_begin(self, start: int, end: int) -> None:
        """kvm_mmu_invalidate_begin() for host pages [start, end): from now on faults on them are
        stale."""
        self.kvm.invalidation.begin(start, end)

    def invalidate_end(self) -> None:
        """kvm_mmu_invalidate_end()."""
        self.kvm.invalidation.end()

    def unmap_next(self, slot: Memslot, start: int, end: int, *, owed: bool) -> bool:
        """The next slot of kvm_handle_hva_range(). A flush that the slots before have `owed` is
        handed on, so that a zap that yields pays it first (a mend: kernels start each slot with
        nothing owed). Returns whether one is owed now."""
        return self.unmap_gfn_range(slot, start, end, flush=owed)

    def unmap_gfn_range(self, slot: Memslot, start: int, end: int, *, flush: bool) -> bool:
        """kvm_unmap_gfn_range(): all roots of the address space; `flush` is owed already; whether
        one is owed now."""
        return self.zapper.zap_roots_leafs(slot.as_id, start, end, flush=flush)

    def flush(self, reason: str) -> None:
        """kvm_flush_remote_tlbs(), before mmu_lock is released."""
        self.tlb.flush(reason)

    def slots(self, region: Region, first: int, last: int) -> list[Memslot]:
        """The slots that overlap the range, INVALID ones included: their memory is still mapped
        (B66)."""
        return self.memslots.in_hva_range(region.hva + first, region.hva + last)

    def _age(self, region: Region, first: int, last: int, visit: Ranges, *, flush: bool) -> bool:
        kvm = self.kvm
        token = kvm.srcu.read_lock()
        young = False
        slots = self.slots(region, first, last)
        if slots:
            kvm.mmu_lock.write_lock()
            for slot in slots:
                young |= visit(slot, *self.gfn_range(slot, region, first, last))
            if flush and young:
                self.flush("young")
            kvm.mmu_lock.write_unlock()
        kvm.srcu.read_unlock(token)
        return young

    def gfn_range(self, slot: Memslot, region: Region, first: int, last: int) -> tuple[int, int]:
        """The guest frames of `slot` that pages [first, last) of the region back."""
        page_0 = slot.base_gfn + region.hva - slot.hva(slot.base_gfn)
        return max(slot.base_gfn, page_0 + first), min(slot.end_gfn, page_0 + last)
