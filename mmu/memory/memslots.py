"""Memslots: two copies of the slot set per address space, swapped under SRCU (reference 2.9)."""

from __future__ import annotations

import errno
from bisect import bisect_right
from enum import Enum
from typing import Final, Protocol

from attrs import frozen

from mmu.errors import KvmError
from mmu.kvm import ADDRESS_SPACES, Kvm
from mmu.memory.host import Region
from mmu.runtime import Cell
from mmu.sync.poison import RcuHead, poison
from mmu.sync.rcu import Reader

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
    """`npages` guest frames from `base_gfn` on, backed by `region` from its page 0. Never changed once it is visible."""

    __slots__ = ("as_id", "base_gfn", "end_gfn", "flags", "host_writable", "id", "npages", "region")

    def __init__(self, slot_id: int, as_id: int, base_gfn: int, npages: int, flags: int, region: Region) -> None:
        self.obituary = None
        self.id = slot_id
        self.as_id = as_id
        self.base_gfn = base_gfn
        self.npages = npages
        self.end_gfn = base_gfn + npages
        self.flags = flags
        self.region = region
        self.host_writable = region.writable and not flags & KVM_MEM_READONLY

    def copy(self, *, base_gfn: int | None = None, flags: int | None = None) -> Memslot:
        """A new slot object that differs in the given fields."""
        return Memslot(
            self.id,
            self.as_id,
            self.base_gfn if base_gfn is None else base_gfn,
            self.npages,
            self.flags if flags is None else flags,
            self.region,
        )

    @property
    def invalid(self) -> bool:
        """Whether this is the temporary slot of a delete or move."""
        return bool(self.flags & KVM_MEMSLOT_INVALID)

    def describe(self) -> str:
        """The slot in a report."""
        flags = " INVALID" if self.flags & KVM_MEMSLOT_INVALID else ""
        return f"memslot {self.id} (as{self.as_id}, gfns {self.base_gfn:#x}..{self.end_gfn - 1:#x}{flags})"


Index = tuple[tuple[int, ...], tuple[Memslot, ...]]


class MemslotSet:
    """`struct kvm_memslots`: one copy of an address space's slots, sorted by gfn, with its generation."""

    __slots__ = ("as_id", "generation", "index")

    def __init__(self, kvm: Kvm, as_id: int) -> None:
        self.as_id = as_id
        self.index: Cell[Index] = kvm.runtime.cell(f"memslots[{as_id}]", ((), ()))
        self.generation: Cell[int] = kvm.runtime.cell(f"memslots[{as_id}].generation", as_id)

    def by_id(self, slot_id: int) -> Memslot | None:
        """id_to_memslot()."""
        return next((slot for slot in self.index.value[1] if slot.id == slot_id), None)

    def replace(self, old: Memslot | None, new: Memslot | None) -> None:
        """kvm_replace_memslot(): on the inactive copy only."""
        slots = [slot for slot in self.index.value[1] if old is None or slot.id != old.id]
        if new is not None:
            slots.append(new)
        slots.sort(key=lambda slot: slot.base_gfn)
        self.index.value = (tuple(slot.base_gfn for slot in slots), tuple(slots))


class ShadowFlusher(Protocol):
    """What a memslot update needs of the MMU."""

    def flush_shadow_memslot(self, slot: Memslot) -> None:
        """kvm_arch_flush_shadow_memslot(): unmap the slot everywhere, now."""
        ...


@frozen
class MemoryRegion:
    """struct kvm_userspace_memory_region: `npages` 0 deletes the slot."""

    slot: int
    guest_gfn: int
    npages: int
    region: Region | None = None
    flags: int = 0
    as_id: int = 0


class Memslots:
    """KVM_SET_USER_MEMORY_REGION and look-ups."""

    def __init__(self, kvm: Kvm, flusher: ShadowFlusher) -> None:
        self.kvm = kvm
        self.flusher = flusher
        self._sets = tuple((MemslotSet(kvm, as_id), MemslotSet(kvm, as_id)) for as_id in range(ADDRESS_SPACES))
        self._active: tuple[Cell[MemslotSet], ...] = tuple(
            kvm.runtime.cell(f"kvm->memslots[{as_id}]", pair[0]) for as_id, pair in enumerate(self._sets)
        )
        self._srcu_local = kvm.srcu.local
        self._slots_lock_held = kvm.slots_lock.held

    def active(self, as_id: int) -> MemslotSet:
        """__kvm_memslots(): the active set; needs an SRCU read section or slots_lock (srcu_dereference_check)."""
        if not self._srcu_local.reader.depth and not self._slots_lock_held():
            self.kvm.warn(
                "O3",
                "memslots-without-srcu",
                "WARNING: suspicious RCU usage: memslots without kvm->srcu or slots_lock",
                "memslots may be looked at only inside an SRCU read section or with slots_lock held",
                "__kvm_memslots() srcu_dereference_check(); B69 (4bcdd831d9d0)",
            )
        return self._active[as_id].value

    def peek(self, as_id: int) -> MemslotSet:
        """The active set for a check at a quiescent point, where no rule protects it because nobody changes it."""
        return self._active[as_id].value

    def gfn_to_memslot(self, as_id: int, gfn: int, reader: Reader | None = None) -> Memslot | None:
        """kvm_vcpu_gfn_to_memslot(): the slot that covers `gfn`, INVALID ones included; same rule as `active`.

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

    def set_region(self, wanted: MemoryRegion) -> Change:
        """kvm_set_memory_region(): takes slots_lock, classifies the call, does it. Errors are `KvmError`."""
        kvm = self.kvm
        if not 0 <= wanted.as_id < ADDRESS_SPACES:
            raise KvmError(errno.EINVAL, f"address space {wanted.as_id} does not exist: 0 (normal) and 1 (SMM) do")
        if wanted.flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY):
            raise KvmError(errno.EINVAL, f"flags {wanted.flags:#x}: user space has LOG_DIRTY_PAGES (1) and READONLY (2)")
        if wanted.npages < 0:
            raise KvmError(errno.EINVAL, f"slot {wanted.slot} cannot have {wanted.npages} pages; 0 deletes it")
        with kvm.slots_lock:
            old = self.active(wanted.as_id).by_id(wanted.slot)
            change, new = self._classify(wanted, old)
            if change is None:
                return Change.FLAGS_ONLY
            subject = new or old
            if kvm.probe.memslot_begin is not None:
                kvm.probe.memslot_begin(change, subject)
            parts: dict[str, int] = {}
            start = kvm.runtime.now()
            self._set_memslot(change, old, new, parts)
            parts["total"] = kvm.runtime.now() - start
            if change in (Change.DELETE, Change.MOVE) and kvm.probe.memslot_gone is not None:
                kvm.probe.memslot_gone(old)
            if kvm.probe.memslot_end is not None:
                kvm.probe.memslot_end(change, subject, parts)
            self._retire(change, old)
        return change

    def _classify(self, wanted: MemoryRegion, old: Memslot | None) -> tuple[Change | None, Memslot | None]:
        """KVM_MR_* of the call and the slot to come; (None, None) when nothing would change."""
        if wanted.npages == 0:
            if old is None:
                raise KvmError(errno.EINVAL, f"slot {wanted.slot} does not exist, so it cannot be deleted")
            return Change.DELETE, None
        if wanted.region is None or wanted.npages > wanted.region.pages:
            raise KvmError(errno.EINVAL, f"slot {wanted.slot} needs a region of at least {wanted.npages} pages")
        if wanted.guest_gfn < 0 or wanted.guest_gfn + wanted.npages - 1 > self.kvm.geometry.max_gfn:
            raise KvmError(errno.EINVAL, f"slot {wanted.slot} lies outside the guest's {self.kvm.geometry.max_gfn + 1} frames")
        new = Memslot(wanted.slot, wanted.as_id, wanted.guest_gfn, wanted.npages, wanted.flags, wanted.region)
        if old is None:
            self._refuse_overlap(new)
            return Change.CREATE, new
        if old.npages != new.npages or old.region is not new.region or (old.flags ^ new.flags) & KVM_MEM_READONLY:
            raise KvmError(errno.EINVAL, f"slot {wanted.slot} exists: its size, backing and READONLY flag cannot change")
        if old.base_gfn != new.base_gfn:
            self._refuse_overlap(new)
            return Change.MOVE, new
        return (Change.FLAGS_ONLY, new) if old.flags != new.flags else (None, None)

    def _refuse_overlap(self, new: Memslot) -> None:
        for slot in self.active(new.as_id).index.value[1]:
            if slot.id != new.id and slot.base_gfn < new.end_gfn and new.base_gfn < slot.end_gfn:
                raise KvmError(errno.EEXIST, f"slot {new.id} would overlap {slot.describe()}")

    def _set_memslot(self, change: Change, old: Memslot | None, new: Memslot | None, parts: dict[str, int]) -> None:
        """kvm_set_memslot()."""
        self.kvm.slots_arch_lock.acquire()
        current: Memslot | None = old
        if change in (Change.DELETE, Change.MOVE):
            assert old is not None
            current = self._invalidate(old, parts)
        as_id = new.as_id if new is not None else old.as_id if old is not None else 0
        inactive = self._inactive(as_id)
        inactive.replace(old, new)
        self._swap_active(as_id, parts)
        self._inactive(as_id).replace(current, new)
        if current is not old and current is not None:
            current.retire(current.describe(), self.kvm.reporter)
            self._free(current)

    def _invalidate(self, old: Memslot, parts: dict[str, int]) -> Memslot:
        """kvm_invalidate_memslot(): publish an INVALID copy, wait for SRCU, unmap; slots_arch_lock is held again after."""
        kvm = self.kvm
        doomed = old.copy(flags=old.flags | KVM_MEMSLOT_INVALID)
        self._inactive(old.as_id).replace(old, doomed)
        self._swap_active(old.as_id, parts)
        if kvm.probe.point is not None:
            kvm.probe.point("P14")
        start = kvm.runtime.now()
        self.flusher.flush_shadow_memslot(old)
        parts["flush_shadow"] = kvm.runtime.now() - start
        kvm.slots_arch_lock.acquire()
        return doomed

    def _swap_active(self, as_id: int, parts: dict[str, int]) -> None:
        """kvm_swap_active_memslots(): publish the inactive set; releases slots_arch_lock before the SRCU wait."""
        kvm = self.kvm
        new = self._inactive(as_id)
        generation = self._active[as_id].value.generation.value
        new.generation.value = generation | GEN_UPDATE_IN_PROGRESS
        self._active[as_id].value = new
        kvm.slots_arch_lock.release()
        if kvm.probe.point is not None:
            kvm.probe.point("P13")
        start = kvm.runtime.now()
        self.synchronize_srcu()
        parts["srcu"] = parts.get("srcu", 0) + kvm.runtime.now() - start
        new.generation.value = generation + ADDRESS_SPACES

    def synchronize_srcu(self) -> None:
        """synchronize_srcu_expedited(&kvm->srcu): after it nobody uses the set that was active before."""
        self.kvm.srcu.synchronize()

    def _inactive(self, as_id: int) -> MemslotSet:
        first, second = self._sets[as_id]
        return second if self._active[as_id].value is first else first

    def _retire(self, change: Change, old: Memslot | None) -> None:
        """kvm_commit_memory_region(): the old slot object is not used any more."""
        if old is not None and change is not Change.CREATE:
            old.retire(old.describe(), self.kvm.reporter)
            self._free(old)

    def _free(self, slot: Memslot) -> None:
        if self.kvm.config.poisoning:
            poison(slot, self.kvm.reporter)
