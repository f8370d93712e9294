"""Dirty logging: by write protection and by D bits with PML (reference 2.11)."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from itertools import groupby
from typing import Final

from mmu.errors import KvmError
from mmu.kvm import Kvm
from mmu.memory.memslots import (
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    Memslot,
    Memslots,
)
from mmu.memory.requests import KVM_REQ_UPDATE_CPU_DIRTY_LOGGING, Requests
from mmu.memory.tlb import RemoteTlb
from mmu.paging.geometry import PG_LEVEL_2M, PG_LEVEL_4K
from mmu.paging.spte import MMU_WRITABLE, SPTE_D, SPTE_W
from mmu.paging.table import RootPage
from mmu.runtime import Table
from mmu.tdp.huge import HugePages
from mmu.tdp.iter import TdpIter
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter
from mmu.tdp.yielding import Yielding

BITS_PER_LONG: Final = 64
"""Pages of one word of the log; fewer where a table has fewer entries, so that a word never spans
more than two huge pages."""


class DirtyLog:
    """What a slot's LOG_DIRTY_PAGES flag sets in motion, and the ioctls that read the log."""

    STANDS_FOR: Final = (
        "arch/x86/kvm/mmu/mmu.c: kvm_mmu_slot_apply_flags(), "
        "kvm_arch_mmu_enable_log_dirty_pt_masked()"
    )

    def __init__(
        self,
        kvm: Kvm,
        roots: Roots,
        writer: SpteWriter,
        tlb: RemoteTlb,
        huge: HugePages,
        requests: Requests,
        yielding: Yielding,
    ) -> None:
        self.kvm = kvm
        self.roots = roots
        self.writer = writer
        self.tlb = tlb
        self.huge = huge
        self.requests = requests
        self.yielding = yielding
        self.word = min(BITS_PER_LONG, kvm.geometry.entries)

    # The flag.

    def slot_apply_flags(self, old: Memslot | None, new: Memslot | None) -> None:
        """kvm_mmu_slot_apply_flags(): the new slot is in force; logging went on or off. Nothing is
        ever written to a read-only slot."""
        was, now = _logs(old), _logs(new)
        if was != now:
            self.update_cpu_dirty_logging(now)
        if new is not None and old is None and now:
            self._started(new)
        if old is None or new is None or old.base_gfn != new.base_gfn:
            return
        if new.flags & KVM_MEM_READONLY:
            return
        if now and not was:
            self.enable(new)
        elif was and not now:
            self.disable(new)

    def update_cpu_dirty_logging(self, now: bool) -> None:
        """kvm_mmu_update_cpu_dirty_logging(): count one slot more or less that logs. With the first
        and the last one vCPUs are asked to switch PML on or off."""
        kvm = self.kvm
        others = kvm.nr_memslots_dirty_logging.fetch_add(1 if now else -1) - (not now)
        if self._has_pml() and not others:
            self.request_cpu_dirty_logging()

    def request_cpu_dirty_logging(self) -> None:
        """KVM_REQ_UPDATE_CPU_DIRTY_LOGGING, and wait until every vCPU has left the guest: with PML
        off it would set D bits that are logged nowhere (a mend: kernels do not wait)."""
        self.requests.make_all_cpus_request(KVM_REQ_UPDATE_CPU_DIRTY_LOGGING)

    def _has_pml(self) -> bool:
        """cpu_dirty_log_size: whether D bits are set and logged by hardware."""
        return self.kvm.config.pml and self.kvm.config.ad_bits

    def enable(self, slot: Memslot) -> None:
        """Logging goes on: split huge pages, take away D or W, and flush - whether or not anything
        changed here (B15). When all pages are dirty to begin with, nothing needs protecting before
        the log is cleared."""
        kvm = self.kvm
        if kvm.config.dirty_initially_set:
            self._started(slot)
            return
        if kvm.config.eager_page_split:
            kvm.mmu_lock.read_lock()
            self.huge.try_split_huge_pages(slot, slot.base_gfn, slot.end_gfn, shared=True)
            kvm.mmu_lock.read_unlock()
        kvm.mmu_lock.read_lock()
        changed = self.remove_write_access(slot)
        kvm.mmu_lock.read_unlock()
        self.flush_enabled(slot, changed)
        self._started(slot)

    def remove_write_access(self, slot: Memslot) -> bool:
        """kvm_mmu_slot_remove_write_access(), and where hardware logs
        kvm_mmu_slot_leaf_clear_dirty(); whether anything changed."""
        changed = False
        for root in self.roots.each_yield_safe(shared=True, only_valid=True, as_id=slot.as_id):
            if self.needs_write_protect(root):
                changed |= self.wrprot_slot(root, slot, PG_LEVEL_4K)
            else:
                changed |= self.clear_dirty_slot(root, slot)
                changed |= self.wrprot_slot(root, slot, PG_LEVEL_2M)
        return changed

    def _started(self, slot: Memslot) -> None:
        """Whatever is written from here on is logged."""
        if self.kvm.probe.dirty_log_started is not None:
            self.kvm.probe.dirty_log_started(slot)

    def flush_enabled(self, slot: Memslot, changed: bool) -> None:  # noqa: ARG002 - somebody else may have changed it before
        """The unconditional flush of the slot, outside mmu_lock (b64d740ea7dd)."""
        self.tlb.flush_range("dirty-log", slot.base_gfn, slot.npages)

    def disable(self, slot: Memslot) -> None:
        """Logging goes off: let huge pages come back."""
        self.kvm.mmu_lock.read_lock()
        self.huge.zap_collapsible_sptes(slot)
        self.kvm.mmu_lock.read_unlock()

    def needs_write_protect(self, root: RootPage) -> bool:
        """Whether writers of this root exist whose writes no hardware logs: without PML all, else a
        nested guest's (B61), and a device's through an exported root (the mend of R19)."""
        return not self._has_pml() or root.role.guest_mode or self.is_written_by_device(root)

    def is_written_by_device(self, root: RootPage) -> bool:
        """A device writes through the root, and sets no D bits."""
        return root.exported.value or root.role.iommu

    def protect_exported(self, root: RootPage, memslots: Memslots) -> None:
        """The root is being exported: what is mapped of slots that log by D bits must be
        write-protected from now on (the mend of R19). mmu_lock is held for write, SRCU for read."""
        if not self.needs_write_protect(root):
            return
        for slot in memslots.active(root.role.as_id).index.value[1]:
            if slot.dirty_bitmap is not None:
                self._wrprot_exclusive(root, slot)
                self.flush_protected(slot)

    def _wrprot_exclusive(self, root: RootPage, slot: Memslot) -> None:
        """Take W from every leaf of the slot, huge ones too; mmu_lock is held for write."""
        kvm = self.kvm
        kvm.rcu.read_lock()
        it = TdpIter(kvm, root, PG_LEVEL_4K, slot.base_gfn, slot.end_gfn)
        while it.valid:
            if self.is_clearable(it, SPTE_W):
                self._clear_bit(it, SPTE_W)
            it.next_present()
        kvm.rcu.read_unlock()

    def _clear_bit(self, it: TdpIter, bit: int) -> None:
        """Take a bit from a leaf under mmu_lock(write), with all that follows from it."""
        old = self.writer.clear_spte_bits(it, bit)
        self.writer.handle_changed_spte(it.sp, it.gfn, old, old & ~bit, False)

    def wrprot_slot(self, root: RootPage, slot: Memslot, min_level: int) -> bool:
        """kvm_tdp_mmu_wrprot_slot(): take W from every leaf of at least `min_level`; mmu_lock is
        held for read."""
        return self._clear_in_slot(root, slot, min_level, SPTE_W)

    def clear_dirty_slot(self, root: RootPage, slot: Memslot) -> bool:
        """kvm_tdp_mmu_clear_dirty_slot(): take D from every leaf; mmu_lock is held for read."""
        return self._clear_in_slot(root, slot, PG_LEVEL_4K, SPTE_D)

    def _clear_in_slot(self, root: RootPage, slot: Memslot, min_level: int, bit: int) -> bool:
        kvm = self.kvm
        kvm.mmu_lock.assert_held_read()
        changed = False
        kvm.rcu.read_lock()
        it = TdpIter(kvm, root, min_level, slot.base_gfn, slot.end_gfn)
        while it.valid:
            if self.yielding.iter_cond_resched(it, False, shared=True):
                it.next_present()
                continue
            changed |= self.clear_leaf(it, bit)
            it.next_present()
        kvm.rcu.read_unlock()
        return changed

    def clear_leaf(self, it: TdpIter, bit: int) -> bool:
        """Take a bit from the entry under mmu_lock(read), if it is a leaf that has it; whether it
        was taken. After a lost race the entry may be anything, so it is looked at again (B58)."""
        while self.is_clearable(it, bit):
            if self.writer.iter_set_spte_atomic(it, it.old_spte & ~bit):
                return True
        return False

    def is_clearable(self, it: TdpIter, bit: int) -> bool:
        """Whether the entry is a leaf with the bit; asked again after every lost race (B58)."""
        return self.kvm.layout.is_leaf(it.old_spte, it.level) and bool(it.old_spte & bit)

    # The ioctls.

    def get(self, memslots: Memslots, slot_id: int, as_id: int) -> set[int]:
        """KVM_GET_DIRTY_LOG: the pages (relative to the slot) written since the last call. With
        manual protection the log is only copied; otherwise it is cleared and the pages are
        protected again. Takes slots_lock."""
        with self.kvm.slots_lock:
            slot, bitmap = self._logged(memslots, slot_id, as_id)
            self.sync_dirty_log()
            if self.kvm.config.manual_protect:
                return {index for index, dirty in enumerate(bitmap) if dirty}
            taken = self._protect(slot, bitmap, list(range(slot.npages)))
            self._read(slot, taken)
            return taken

    def clear(self, memslots: Memslots, slot_id: int, as_id: int, pages: Iterable[int]) -> None:
        """KVM_CLEAR_DIRTY_LOG: the caller has seen these pages; protect them again. Takes
        slots_lock."""
        with self.kvm.slots_lock:
            slot, bitmap = self._logged(memslots, slot_id, as_id)
            self.sync_dirty_log()
            seen = sorted(page for page in set(pages) if 0 <= page < slot.npages)
            self._protect(slot, bitmap, seen)
            self._read(slot, set(seen))

    def _read(self, slot: Memslot, pages: set[int]) -> None:
        """The caller can rely on the log from here on."""
        if self.kvm.probe.dirty_log_read is not None:
            self.kvm.probe.dirty_log_read(slot, pages)

    def sync_dirty_log(self) -> None:
        """kvm_arch_sync_dirty_log(): have running vCPUs empty their PML buffers."""
        if self._has_pml():
            self.requests.kick_all()

    def _logged(self, memslots: Memslots, slot_id: int, as_id: int) -> tuple[Memslot, Table]:
        slot = memslots.active(as_id).by_id(slot_id)
        if slot is None or slot.dirty_bitmap is None:
            raise KvmError(
                errno.ENOENT,
                f"memslot {slot_id} of address space {as_id} logs no dirty pages: set "
                "LOG_DIRTY_PAGES first",
            )
        return slot, slot.dirty_bitmap

    def _protect(self, slot: Memslot, bitmap: Table, pages: list[int]) -> set[int]:
        """Take these pages out of the log and protect them again, then the flush that makes it
        true. Returns those that were in the log."""
        taken = self.protect(slot, bitmap, pages)
        if taken:
            if self.kvm.probe.point is not None:
                self.kvm.probe.point("P12")
            self.flush_protected(slot)
        return taken

    def protect(self, slot: Memslot, bitmap: Table, pages: list[int]) -> set[int]:
        """Take the pages' bits and protect the pages, word by word of the log, under mmu_lock held
        for write. Returns the pages whose bits were set."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        taken = self.take_words(slot, bitmap, pages)
        kvm.mmu_lock.write_unlock()
        return taken

    def take_words(self, slot: Memslot, bitmap: Table, pages: list[int]) -> set[int]:
        """The words of the log that these pages are in, one after the other: take the bits, protect
        what was dirty. Returns the pages whose bits were set."""
        taken: set[int] = set()
        for _, word in groupby(pages, lambda page: page // self.word):
            mask = {page for page in word if bitmap[page] and bitmap.xchg(page, 0)}
            if mask:
                self.enable_log_dirty_pt_masked(slot, mask)
                taken |= mask
        return taken

    def enable_log_dirty_pt_masked(self, slot: Memslot, pages: set[int]) -> None:
        """kvm_arch_mmu_enable_log_dirty_pt_masked() for pages of one word of the log: the next
        write to them must be seen; mmu_lock is held for write. Pages that were initially
        dirty may still be mapped by huge leaves that nothing has protected."""
        if self.kvm.config.dirty_initially_set:
            self.protect_huge_pages(slot, slot.base_gfn + min(pages), slot.base_gfn + max(pages))
        self.protect_small_pages(slot, pages)

    def protect_small_pages(self, slot: Memslot, pages: set[int]) -> None:
        """kvm_tdp_mmu_clear_dirty_pt_masked(): the 4 KiB leaves, in every valid root."""
        for root in self.roots.each():
            if root.role.as_id == slot.as_id and not root.invalid.value:
                self.clear_dirty_pt_masked(root, slot, pages)

    def protect_huge_pages(self, slot: Memslot, first: int, last: int) -> None:
        """Split the huge leaves from gfn `first` to `last`, which lie in one word of the log, and
        take W from those that are left: at most two."""
        kvm = self.kvm
        if kvm.config.eager_page_split:
            self.huge.try_split_huge_pages(slot, first, last + 1, shared=False)
        self.slot_gfn_write_protect(slot, first, PG_LEVEL_2M)
        block = kvm.geometry.pages(PG_LEVEL_2M)
        if first // block != last // block:
            self.slot_gfn_write_protect(slot, last, PG_LEVEL_2M)

    def slot_gfn_write_protect(self, slot: Memslot, gfn: int, min_level: int) -> bool:
        """kvm_mmu_slot_gfn_write_protect(): in every root of the slot's address space; mmu_lock is
        held for write. Returns whether a leaf has lost its W."""
        changed = False
        for root in self.roots.each():
            if root.role.as_id == slot.as_id:
                changed |= self.write_protect_gfn(root, gfn, min_level)
        return changed

    def write_protect_gfn(self, root: RootPage, gfn: int, min_level: int) -> bool:
        """write_protect_gfn(): take W, and the right to give it back without mmu_lock, from the
        leaf of at least `min_level` that maps a gfn. Returns whether it had either."""
        kvm = self.kvm
        changed = False
        kvm.rcu.read_lock()
        it = TdpIter(kvm, root, min_level, gfn, gfn + 1)
        while it.valid:
            new = it.old_spte & ~(SPTE_W | MMU_WRITABLE)
            if kvm.layout.is_leaf(it.old_spte, it.level) and new != it.old_spte:
                self.writer.iter_set_spte(it, new)
                changed = True
            it.next_present()
        kvm.rcu.read_unlock()
        return changed

    def flush_protected(self, slot: Memslot) -> None:
        """kvm_arch_flush_remote_tlbs_memslot(): before the caller can rely on the log."""
        self.tlb.flush_range("dirty-log", slot.base_gfn, slot.npages)

    def clear_dirty_pt_masked(self, root: RootPage, slot: Memslot, pages: set[int]) -> None:
        """clear_dirty_pt_masked(): take W or D from the 4 KiB leaves of these pages; mmu_lock is
        held for write."""
        kvm = self.kvm
        kvm.mmu_lock.assert_held_write()
        bit = SPTE_W if self.needs_write_protect(root) else SPTE_D
        last = max(pages)
        kvm.rcu.read_lock()
        it = TdpIter(kvm, root, PG_LEVEL_4K, slot.base_gfn + min(pages), slot.base_gfn + last + 1)
        while it.valid:
            if (
                it.level == PG_LEVEL_4K
                and it.gfn - slot.base_gfn in pages
                and self.is_clearable(it, bit)
            ):
                self._clear_bit(it, bit)
            it.next_present()
        kvm.rcu.read_unlock()


def _logs(slot: Memslot | None) -> bool:
    """Whether there is a slot, and it logs dirty pages."""
    return slot is not None and bool(slot.flags & KVM_MEM_LOG_DIRTY_PAGES)
