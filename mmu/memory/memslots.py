"""Memslots: two copies of the slot set per address space, swapped under SRCU (reference 2.9)."""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

from attrs import frozen

from mmu.errors import KvmError
from mmu.kvm import ADDRESS_SPACES, Kvm
from mmu.memory.host import Region
from mmu.paging.geometry import Geometry
from mmu.runtime import Cell, Table
from mmu.sync.poison import RcuHead, poison
from mmu.sync.rcu import RcuReader

KVM_MEM_LOG_DIRTY_PAGES: Final = 1 << 0
KVM_MEM_READONLY: Final = 1 << 1
KVM_MEMSLOT_INVALID: Final = 1 << 16
GEN_UPDATE_IN_PROGRESS: Final = 1 << 63


class Change(Enum):
    """KVM_MR_*: what a call to set a memory region does."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS_ONLY = "flags"


class Memslot(RcuHead):
    """`npages` guest frames from `base_gfn` on, backed by `region` from its page `first_page` on;
    `origin` is the guest frame that page 0 would back. Never changed once it is visible, but for
    the words of `dirty_bitmap`, one a page, which is there while dirty pages are logged."""

    __slots__ = (
        "as_id",
        "base_gfn",
        "dirty_bitmap",
        "end_gfn",
        "first_page",
        "flags",
        "host_writable",
        "id",
        "npages",
        "origin",
        "region",
    )

    def __init__(
        self,
        slot_id: int,
        as_id: int,
        base_gfn: int,
        npages: int,
        flags: int,
        region: Region,
        dirty_bitmap: Table | None = None,
        first_page: int = 0,
    ) -> None:
        self.obituary = None
        self.id = slot_id
        self.as_id = as_id
        self.base_gfn = base_gfn
        self.npages = npages
        self.end_gfn = base_gfn + npages
        self.flags = flags
        self.region = region
        self.first_page = first_page
        self.origin = base_gfn - first_page
        self.host_writable = region.writable and not flags & KVM_MEM_READONLY
        self.dirty_bitmap = dirty_bitmap

    def copy(self, *, flags: int) -> Memslot:
        """A new slot object that differs in its flags."""
        return Memslot(
            self.id,
            self.as_id,
            self.base_gfn,
            self.npages,
            flags,
            self.region,
            self.dirty_bitmap,
            self.first_page,
        )

    @property
    def invalid(self) -> bool:
        """Whether this is the temporary slot of a delete or move."""
        return bool(self.flags & KVM_MEMSLOT_INVALID)

    def hva(self, gfn: int) -> int:
        """__gfn_to_hva_memslot(): the host page number behind a guest frame."""
        return self.region.hva + gfn - self.origin

    def mark_dirty(self, gfn: int) -> None:
        """mark_page_dirty_in_slot()."""
        if self.dirty_bitmap is not None:
            self.dirty_bitmap.store(gfn - self.base_gfn, 1)

    def allows(self, gfn: int, level: int, geometry: Geometry) -> bool:
        """Whether a leaf of `level` may stand at `gfn` (lpage_info): it lies inside the slot, and
        guest and host addresses have the same offset in it."""
        pages = geometry.pages(level)
        first = gfn & -pages
        return (
            first >= self.base_gfn
            and first + pages <= self.end_gfn
            and not (self.origin ^ self.region.hva) & (pages - 1)
        )

    def describe(self) -> str:
        """The slot in a report."""
        flags = " INVALID" if self.flags & KVM_MEMSLOT_INVALID else ""
        return (
            f"memslot {self.id} (as{self.as_id}, gfns "
            f"{self.base_gfn:#x}..{self.end_gfn - 1:#x}{flags})"
        )


Index = tuple[tuple[int, ...], tuple[Memslot, ...]]


class MemslotSet:
    """`struct kvm_memslots`: one copy of an address space's slots, sorted by gfn, with its
    generation."""

    __slots__ = ("as_id", "generation", "index")

    def __init__(self, kvm: Kvm, as_id: int) -> None:
        self.as_id = as_id
        self.index: Cell[Index] = kvm.runtime.cell(f"memslots[{as_id}]", ((), ()))
        self.generation: Cell[int] = kvm.runtime.cell(f"memslots[{as_id}].generation", as_id)

    def by_id(self, slot_id: int) -> Memslot | None:
        """id_to_memslot()."""
        return next((slot for slot in self.index.value[1] if slot.id == slot_id), None)

    def at(self, gfn: int) -> Memslot | None:
        """search_memslots(): the slot that covers `gfn`, INVALID ones included."""
        bases, slots = self.index.value
        position = bisect_right(bases, gfn)
        if position:
            slot = slots[position - 1]
            if gfn < slot.end_gfn:
                return slot
        return None

    def replace(self, old: Memslot | None, new: Memslot | None) -> None:
        """kvm_replace_memslot(): on the inactive copy only."""
        slots = [slot for slot in self.index.value[1] if old is None or slot.id != old.id]
        if new is not None:
            slots.append(new)
        slots.sort(key=lambda slot: slot.base_gfn)
        self.index.value = (tuple(slot.base_gfn for slot in slots), tuple(slots))


class MemslotListener(Protocol):
    """What a memslot update needs of the architecture's MMU. All are called with slots_lock
    held."""

    def flush_shadow_memslot(self, slot: Memslot) -> None:
        """kvm_arch_flush_shadow_memslot(): unmap the slot everywhere, now."""
        ...

    def memslots_updated(self, generation: int) -> None:
        """kvm_arch_memslots_updated(): `generation` is about to become current; old MMIO SPTEs must
        not match it."""
        ...

    def commit_memory_region(self, old: Memslot | None, new: Memslot | None) -> None:
        """kvm_arch_commit_memory_region(): the new slot is in force; dirty logging goes on or
        off."""
        ...


@frozen
class MemoryRegion:
    """struct kvm_userspace_memory_region: `npages` 0 deletes the slot; `first_page` is the page of
    `region` that backs the slot's first frame."""

    slot: int
    guest_gfn: int
    npages: int
    region: Region | None = None
    flags: int = 0
    as_id: int = 0
    first_page: int = 0


class Memslots:
    """kvm->memslots and the update protocol. Look-ups need the SRCU read lock or slots_lock."""

    STANDS_FOR: Final = "virt/kvm/kvm_main.c: kvm_set_memory_region(), kvm_vcpu_gfn_to_memslot()"

    def __init__(self, kvm: Kvm, listener: MemslotListener) -> None:
        self.kvm = kvm
        self.listener = listener
        self._sets = tuple(
            (MemslotSet(kvm, as_id), MemslotSet(kvm, as_id)) for as_id in range(ADDRESS_SPACES)
        )
        self._active: tuple[Cell[MemslotSet], ...] = tuple(
            kvm.runtime.cell(f"kvm->memslots[{as_id}]", sets[0])
            for as_id, sets in enumerate(self._sets)
        )

    def active(self, as_id: int) -> MemslotSet:
        """__kvm_memslots(): the active set; only inside an SRCU section or with slots_lock held."""
        if not self.kvm.srcu.read_held() and not self.kvm.slots_lock.held():
            self.kvm.warn(
                "O3",
                "suspicious-srcu-usage",
                "WARNING: suspicious RCU usage: memslots looked up without srcu_read_lock() and "
                "without slots_lock",
                "memslots may be looked at only inside an SRCU read section or with slots_lock "
                "held",
                "__kvm_memslots() srcu_dereference_check(); B69 (4bcdd831d9d0)",
            )
        return self._active[as_id].value

    def peek(self, as_id: int) -> MemslotSet:
        """The active set for a check at a quiescent point, where no rule protects it because nobody
        changes it."""
        return self._active[as_id].value

    def gfn_to_memslot(
        self, as_id: int, gfn: int, reader: RcuReader | None = None
    ) -> Memslot | None:
        """kvm_vcpu_gfn_to_memslot(): the slot that covers `gfn`, INVALID ones included; same rule
        as `active`.

        `reader` is the calling thread's own SRCU record, if the caller has it at hand.
        """
        if reader is None or not reader.depth:
            self.active(as_id)
        bases, slots = self._active[as_id].value.index.value
        position = bisect_right(bases, gfn)
        if position:
            slot = slots[position - 1]
            if gfn < slot.end_gfn:
                return slot
        return None

    def in_hva_range(self, start: int, end: int) -> list[Memslot]:
        """kvm_for_each_memslot_in_hva_range(): the slots with memory in host pages [start, end),
        INVALID ones included: address space by address space, each in the order of host pages."""
        found: list[Memslot] = []
        for as_id in range(ADDRESS_SPACES):
            mine = [
                slot
                for slot in self.active(as_id).index.value[1]
                if slot.hva(slot.base_gfn) < end and start < slot.hva(slot.end_gfn)
            ]
            found += sorted(mine, key=lambda slot: slot.hva(slot.base_gfn))
        return found

    def set_region(self, wanted: MemoryRegion) -> Change:
        """kvm_set_memory_region(): takes slots_lock, classifies the call, does it. Errors are
        `KvmError`."""
        kvm = self.kvm
        if not 0 <= wanted.as_id < ADDRESS_SPACES:
            raise KvmError(
                errno.EINVAL,
                f"address space {wanted.as_id} does not exist: 0 (normal) and 1 (SMM) do",
            )
        if wanted.flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY):
            raise KvmError(
                errno.EINVAL,
                f"flags {wanted.flags:#x}: user space has LOG_DIRTY_PAGES (1) and READONLY (2)",
            )
        if wanted.npages < 0:
            raise KvmError(
                errno.EINVAL, f"slot {wanted.slot} cannot have {wanted.npages} pages; 0 deletes it"
            )
        with kvm.slots_lock:
            old = self.active(wanted.as_id).by_id(wanted.slot)
            change, new = self._classify(wanted, old)
            if change is None:
                return Change.FLAGS_ONLY
            subject = new or old
            assert subject is not None
            if kvm.probe.memslot_begin is not None:
                kvm.probe.memslot_begin(change, subject)
            parts: dict[str, int] = {}
            start = kvm.runtime.now()
            self._set_memslot(change, old, new, parts)
            parts["total"] = kvm.runtime.now() - start
            if change in (Change.DELETE, Change.MOVE) and kvm.probe.memslot_gone is not None:
                assert old is not None
                kvm.probe.memslot_gone(old)
            if kvm.probe.memslot_end is not None:
                kvm.probe.memslot_end(change, subject, parts)
            self._retire(change, old)
        return change

    def _classify(
        self, wanted: MemoryRegion, old: Memslot | None
    ) -> tuple[Change | None, Memslot | None]:
        """KVM_MR_* of the call and the slot to come; (None, None) when nothing would change."""
        if wanted.npages == 0:
            if old is None:
                raise KvmError(
                    errno.EINVAL, f"slot {wanted.slot} does not exist, so it cannot be deleted"
                )
            return Change.DELETE, None
        needed = wanted.first_page + wanted.npages
        if wanted.region is None or needed > wanted.region.pages or wanted.first_page < 0:
            raise KvmError(
                errno.EINVAL, f"slot {wanted.slot} needs a region of at least {needed} pages"
            )
        if wanted.guest_gfn < 0 or wanted.guest_gfn + wanted.npages - 1 > self.kvm.geometry.max_gfn:
            raise KvmError(
                errno.EINVAL,
                f"slot {wanted.slot} lies outside the guest's {self.kvm.geometry.max_gfn + 1} "
                "frames",
            )
        new = Memslot(
            wanted.slot,
            wanted.as_id,
            wanted.guest_gfn,
            wanted.npages,
            wanted.flags,
            wanted.region,
            first_page=wanted.first_page,
        )
        if old is None:
            self._refuse_overlap(new)
            return Change.CREATE, new
        if (
            old.npages != new.npages
            or old.region is not new.region
            or old.first_page != new.first_page
            or (old.flags ^ new.flags) & KVM_MEM_READONLY
        ):
            raise KvmError(
                errno.EINVAL,
                f"slot {wanted.slot} exists: its size, backing and READONLY flag cannot change",
            )
        if old.base_gfn != new.base_gfn:
            self._refuse_overlap(new)
            return Change.MOVE, new
        return (Change.FLAGS_ONLY, new) if old.flags != new.flags else (None, None)

    def _refuse_overlap(self, new: Memslot) -> None:
        for slot in self.active(new.as_id).index.value[1]:
            if slot.id != new.id and slot.base_gfn < new.end_gfn and new.base_gfn < slot.end_gfn:
                raise KvmError(errno.EEXIST, f"slot {new.id} would overlap {slot.describe()}")

    def _set_memslot(
        self, change: Change, old: Memslot | None, new: Memslot | None, parts: dict[str, int]
    ) -> None:
        """kvm_set_memslot()."""
        self.kvm.slots_arch_lock.acquire()
        doomed: Memslot | None = None
        if change in (Change.DELETE, Change.MOVE):
            assert old is not None
            doomed = self._invalidate(old, parts)
        try:
            self.prepare_memory_region(old, new)
        except KvmError:
            self._activate_again(doomed, old, parts)
            raise
        as_id = new.as_id if new is not None else old.as_id if old is not None else 0
        self._inactive(as_id).replace(old, new)
        self._swap_active(as_id, parts)
        self._inactive(as_id).replace(doomed or old, new)
        if doomed is not None:
            self._discard(doomed)
        start = self.kvm.runtime.now()
        self.listener.commit_memory_region(old, new)
        parts["commit"] = self.kvm.runtime.now() - start

    def prepare_memory_region(self, old: Memslot | None, new: Memslot | None) -> None:
        """kvm_prepare_memory_region(): the dirty bitmap comes with the flag; may fail."""
        if self.kvm.should_fail("prepare_memory_region"):
            raise KvmError(errno.ENOMEM, "no memory for the new slot (injected)")
        if new is not None and new.flags & KVM_MEM_LOG_DIRTY_PAGES:
            keeps = old is not None and old.dirty_bitmap is not None
            new.dirty_bitmap = (
                old.dirty_bitmap
                if keeps and old is not None
                else self.alloc_dirty_bitmap(new.npages)
            )

    def alloc_dirty_bitmap(self, npages: int) -> Table:
        """kvm_alloc_dirty_bitmap(): one word a page here; all set with
        KVM_DIRTY_LOG_INITIALLY_SET."""
        bitmap = self.kvm.runtime.table(npages, "dirty bitmap")
        if self.kvm.config.dirty_initially_set:
            for page in range(npages):
                bitmap.store(page, 1)
        return bitmap

    def _activate_again(
        self, doomed: Memslot | None, old: Memslot | None, parts: dict[str, int]
    ) -> None:
        """kvm_activate_memslot(): prepare failed; the old slot, if it was made INVALID, comes
        back."""
        if doomed is None or old is None:
            self.kvm.slots_arch_lock.release()
            return
        self._inactive(old.as_id).replace(doomed, old)
        self._swap_active(old.as_id, parts)
        self._inactive(old.as_id).replace(doomed, old)
        self._discard(doomed)

    def _invalidate(self, old: Memslot, parts: dict[str, int]) -> Memslot:
        """kvm_invalidate_memslot(): publish an INVALID copy, wait for SRCU, unmap; slots_arch_lock
        is held again after."""
        kvm = self.kvm
        doomed = old.copy(flags=old.flags | KVM_MEMSLOT_INVALID)
        self._inactive(old.as_id).replace(old, doomed)
        self._swap_active(old.as_id, parts)
        if kvm.probe.point is not None:
            kvm.probe.point("P14")
        start = kvm.runtime.now()
        self.listener.flush_shadow_memslot(old)
        parts["flush_shadow"] = kvm.runtime.now() - start
        kvm.slots_arch_lock.acquire()
        return doomed

    def _swap_active(self, as_id: int, parts: dict[str, int]) -> None:
        """kvm_swap_active_memslots(): publish the inactive set; releases slots_arch_lock before the
        SRCU wait."""
        kvm = self.kvm
        kvm.slots_lock.assert_held()
        kvm.slots_arch_lock.assert_held()
        new = self._inactive(as_id)
        generation = self._active[as_id].value.generation.value
        if generation & GEN_UPDATE_IN_PROGRESS:
            self._warn_in_progress("swap_active_memslots()")
        new.generation.value = generation | GEN_UPDATE_IN_PROGRESS
        self.wait_for_invalidations(lambda: self._publish(as_id, new))
        kvm.slots_arch_lock.release()
        if kvm.probe.point is not None:
            kvm.probe.point("P13")
        start = kvm.runtime.now()
        self.synchronize_srcu()
        parts["srcu"] = parts.get("srcu", 0) + kvm.runtime.now() - start
        self.advance_generation(new, generation + ADDRESS_SPACES)

    def advance_generation(self, new: MemslotSet, generation: int) -> None:
        """The architecture drops what could match the new generation *before* it becomes current
        (152482580a1b)."""
        if generation & GEN_UPDATE_IN_PROGRESS:
            self._warn_in_progress("kvm_mmu_invalidate_mmio_sptes()")
        self.listener.memslots_updated(generation)
        if self.kvm.probe.point is not None:
            self.kvm.probe.point("P13")
        new.generation.value = generation

    def _warn_in_progress(self, where: str) -> None:
        self.kvm.warn(
            "O13",
            "update-in-progress",
            "WARNING: a memslot update begins or ends with a generation that says that one is "
            "under way",
            "the bit is set from the swap of the slots until the new generation is stored, once an "
            "update",
            f"{where} WARN_ON(gen & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS); reference 2.9",
            subject=where,
        )

    def wait_for_invalidations(self, then: Callable[[], None]) -> None:
        """Wait until no mmu_notifier invalidation is between its start and its end, and do `then`
        before one can start: start and end of an invalidation must see the same slots (B64)."""
        kvm = self.kvm
        active = kvm.mn_active_invalidate_count
        while True:
            kvm.mn_invalidate_lock.acquire()
            if not active.value:
                break
            kvm.mn_invalidate_lock.release()
            kvm.sync.might_sleep("waiting for mn_active_invalidate_count")
            kvm.runtime.wait_until(
                "the end of all mmu_notifier invalidations", lambda: not active.value
            )
        then()
        kvm.mn_invalidate_lock.release()

    def _publish(self, as_id: int, new: MemslotSet) -> None:
        self._active[as_id].value = new

    def synchronize_srcu(self) -> None:
        """synchronize_srcu_expedited(&kvm->srcu): after it nobody uses the set that was active
        before. Readers may take slots_arch_lock, so it is not held meanwhile."""
        self.kvm.slots_arch_lock.assert_not_held()
        self.kvm.srcu.synchronize()

    def _inactive(self, as_id: int) -> MemslotSet:
        first, second = self._sets[as_id]
        return second if self._active[as_id].value is first else first

    def _retire(self, change: Change, old: Memslot | None) -> None:
        """kvm_commit_memory_region(): the old slot object is not used any more."""
        if old is not None and change is not Change.CREATE:
            self._discard(old)

    def _discard(self, slot: Memslot) -> None:
        slot.retire(slot.describe(), self.kvm.reporter)
        self.kvm.runtime.ending(*(each.index for each in self._sets[slot.as_id]))
        poison(slot, self.kvm.reporter)
