"""The model under observation: parts that say what they do, and a host that answers as the recorded
one did.

They are variants like any other (`mmu.variant`): each overrides small methods of the model, tells
the lockstep what is about to happen, and calls the original. So the model itself is the one that
every other command runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from mmu.kvm import Kvm
from mmu.machine.vcpu import Vcpu
from mmu.memory.host import HostMemory, Region
from mmu.memory.memslots import GEN_UPDATE_IN_PROGRESS, Memslot, Memslots, MemslotSet
from mmu.memory.requests import (
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_TLB_FLUSH_CURRENT,
    Requests,
)
from mmu.memory.tlb import RemoteTlb
from mmu.paging.geometry import PG_LEVEL_4K
from mmu.paging.table import RootPage, RootRole, ShadowPage
from mmu.tdp.dirty import DirtyLog
from mmu.tdp.fault import FIXED, SPURIOUS, Fault, FaultHandler, PageCache, RetPf
from mmu.tdp.huge import HugePages
from mmu.tdp.notifier import MmuNotifier
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter
from mmu.tdp.zap import Zapper
from mmu.variant import Variant
from stress.trace.conform_lockstep import LockstepRuntime
from stress.trace.conform_script import Operation
from stress.trace.conform_values import (
    FAST,
    FAULTED_IN,
    PUBLISHED,
    REQUESTED,
    SEQ_TAKEN,
    SLOT_FOUND,
    SYNC,
    WRITING,
    EntryValue,
    Happening,
)

REQUESTS: dict[int, str] = {
    KVM_REQ_TLB_FLUSH: "TLB_FLUSH",
    KVM_REQ_TLB_FLUSH_CURRENT: "TLB_FLUSH_CURRENT",
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS: "MMU_FREE_OBSOLETE_ROOTS",
}
"""The model's request bits by the kernel's names."""

WORD = 64
"""Pages in a word of the dirty log."""


class RecordedHost:
    """What the recorded host gave, for the fault that a worker is busy with. `inside` runs what the
    kernel did meanwhile."""

    def __init__(self, frame_of: Callable[[int], int], inside: Callable[[Operation], None]) -> None:
        self.frame_of = frame_of
        self.inside = inside


class ReplayRuntime(LockstepRuntime):
    """A lockstep runtime that also knows the recorded host and which kinds of happening are of
    interest."""

    host: RecordedHost
    entry: Callable[[int, int], EntryValue]
    """What an SPTE of the model means, in the recording's terms."""
    wants: Callable[[Happening], bool]
    mmio: dict[int, tuple[int, int]]
    """Each vCPU's own cache of its last MMIO access: the gfn, and the memslots' generation."""

    def tell(self, kind: str, *values: Any) -> None:
        """This is happening: stop here until the recording is as far."""
        happening = Happening(kind, values)
        if self.wants(happening):
            self.lockstep.emit(happening)

    def reach(self, point: str, *where: int) -> None:
        """Nothing to compare, but the director may want to stop a worker here."""
        self.lockstep.emit(Happening(SYNC, (point, *where)))

    def operation(self) -> Operation | None:
        """The operation that the running worker is busy with."""
        worker = self.lockstep.running()
        return (
            None if worker is None else cast("Operation | None", getattr(worker, "operation", None))
        )


def _runtime(kvm: Kvm) -> ReplayRuntime:
    return cast(ReplayRuntime, kvm.runtime)


class TracedRole(RootRole):
    """A root's role with the kernel's own word: roots are shared when all of it is equal."""

    __slots__ = ("word",)

    def __init__(self, word: int, as_id: int) -> None:
        super().__init__(as_id)
        self.word = word

    def _key(self) -> tuple[int, bool, bool]:
        return self.word, self.guest_mode, self.iommu


class TellingRoots(Roots):
    """References, walks and invalidations."""

    def put_root(self, root: RootPage, shared: bool) -> None:
        """put_root: the references before."""
        _runtime(self.kvm).tell("put", root, root.refcount.read(), root.invalid.value)
        super().put_root(root, shared)

    def _next_root(
        self, previous: RootPage | None, shared: bool, only_valid: bool
    ) -> RootPage | None:
        root = super()._next_root(previous, shared, only_valid)
        _runtime(self.kvm).tell("walk", root)
        return root

    def invalidate_all_roots(self) -> list[RootPage]:
        """invalidate_all_roots: the generation, and where invalidations stand; when the VM goes,
        uninit_tdp before it."""
        invalidation = self.kvm.invalidation
        if self.kvm.dying.value:
            _runtime(self.kvm).tell("uninit", self.kvm.stat.tdp_mmu_pages.value)
        _runtime(self.kvm).tell(
            "invalidate",
            self.kvm.mmu_valid_gen.value,
            invalidation.seq.value,
            invalidation.in_progress.value,
        )
        return super().invalidate_all_roots()


class TellingZapper(Zapper):
    """Zaps, pass by pass. The kernel looks at entries that map nothing, too, where the model passes
    over them: so it may yield behind the last that does."""

    def memslots_updated(self, generation: int) -> None:
        """memslots_updated."""
        _runtime(self.kvm).tell("generation", generation)
        super().memslots_updated(generation)

    def flush_shadow_memslot(self, slot: Memslot) -> None:
        """flush_shadow_memslot."""
        _runtime(self.kvm).tell("shadow", slot.id, slot.base_gfn, slot.npages)
        super().flush_shadow_memslot(slot)

    def zap_all_fast(self) -> None:
        """zap_all_fast, at entry."""
        kvm = self.kvm
        invalidation = kvm.invalidation
        state = (
            kvm.mmu_valid_gen.value,
            kvm.stat.tdp_mmu_pages.value,
            invalidation.seq.value,
            invalidation.in_progress.value,
        )
        _runtime(kvm).tell("zap_all_fast", *state)
        super().zap_all_fast()

    def zap_invalidated_roots(self) -> None:
        """zap_invalidated_roots, at entry."""
        _runtime(self.kvm).tell(
            "zap_invalidated", self.kvm.mmu_valid_gen.value, self.kvm.stat.tdp_mmu_pages.value
        )
        super().zap_invalidated_roots()

    def zap_all(self) -> None:
        """zap_all."""
        _runtime(self.kvm).tell("zap_all")
        super().zap_all()

    def zap_root(self, root: RootPage, shared: bool, *, flush: bool = False) -> None:
        """zap_root."""
        _runtime(self.kvm).tell("zap_root", root, root.refcount.read(), root.invalid.value, shared)
        super().zap_root(root, shared, flush=flush)

    def _zap_root_pass(self, root: RootPage, shared: bool, zap_level: int, flush: bool) -> None:
        _runtime(self.kvm).tell("zap_pass", root, zap_level, shared)
        super()._zap_root_pass(root, shared, zap_level, flush)
        kvm = self.kvm
        kvm.rcu.read_unlock()
        kvm.mmu_lock.cond_resched(shared)
        kvm.rcu.read_lock()

    def zap_leafs(
        self, root: RootPage, start: int, end: int, *, can_yield: bool, flush: bool
    ) -> bool:
        """zap_leafs and its return."""
        _runtime(self.kvm).tell("zap_leafs", root, start, end, flush)
        flush = super().zap_leafs(root, start, end, can_yield=can_yield, flush=flush)
        if can_yield and self.kvm.mmu_lock.needbreak():
            if flush:
                self.tlb.flush("yield")
            self.kvm.mmu_lock.cond_resched(shared=False)
            flush = False
        _runtime(self.kvm).tell("leafs_zapped", flush)
        return flush

    def unmap_memslot(self, slot: Memslot) -> bool:
        """unmap_gfn_range of a whole slot, and its return."""
        _runtime(self.kvm).tell("unmap", slot.base_gfn, slot.end_gfn, slot.id, False)
        flush = super().unmap_memslot(slot)
        _runtime(self.kvm).tell("unmapped", flush)
        return flush


class TellingRequests(Requests):
    """Requests to all vCPUs."""

    def make_all_cpus_request(self, bit: int, *, wait: bool = True) -> int:
        """make_all_req; while it is being made, whoever serves it early can be told."""
        runtime = _runtime(self._kvm)
        worker = runtime.lockstep.running()
        if worker is not None:
            worker.requesting = bit
        runtime.tell("request", REQUESTS[bit])
        kicked = super().make_all_cpus_request(bit, wait=wait)
        if worker is not None:
            worker.requesting = 0
        runtime.reach(REQUESTED)
        return kicked


class TellingTlb(RemoteTlb):
    """Remote flushes; the recorded machine has no ranged ones, so the range is not compared."""

    def _flush(self, reason: str, gfn: int, pages: int) -> None:
        _runtime(self.kvm).tell("flush")
        super()._flush(reason, gfn, pages)


class TellingMemslots(Memslots):
    """The swaps of the slot sets."""

    def _publish(self, as_id: int, new: MemslotSet) -> None:
        super()._publish(as_id, new)
        _runtime(self.kvm).reach(PUBLISHED)

    def _swap_active(self, as_id: int, parts: dict[str, int]) -> None:
        _runtime(self.kvm).tell("swap", as_id)
        super()._swap_active(as_id, parts)


class TellingFaults(FaultHandler):
    """The steps of a fault, and the recorded host's rights."""

    def find_slot(self, fault: Fault) -> Memslot | None:
        """The slot, and the moment when it was found."""
        slot = super().find_slot(fault)
        operation = _runtime(self.kvm).operation()
        if slot is None and operation is not None:
            self._cache_mmio(operation.vcpu, fault.gfn)
        _runtime(self.kvm).reach(SLOT_FOUND)
        return slot

    def _cache_mmio(self, vcpu: int, gfn: int) -> None:
        """vcpu_cache_mmio_info(): not while memslots are in flux."""
        generation = self.memslots.active(0).generation.value
        if not generation & GEN_UPDATE_IN_PROGRESS:
            _runtime(self.kvm).mmio[vcpu] = gfn, generation

    def faultin_pfn(self, fault: Fault) -> RetPf:
        """The moment when the frame is there, and it was seen whether to go on with it."""
        result = super().faultin_pfn(fault)
        _runtime(self.kvm).reach(FAULTED_IN)
        return result

    def take_seq(self, fault: Fault) -> None:
        """The moment when the sequence was read."""
        super().take_seq(fault)
        _runtime(self.kvm).reach(SEQ_TAKEN)

    def is_host_writable(self, fault: Fault, slot: Memslot) -> bool:
        """As the host has mapped the page at that moment."""
        operation = _runtime(self.kvm).operation()
        given = operation.given if operation is not None else {}
        return super().is_host_writable(fault, slot) and bool(given.get("map_writable", True))

    def is_page_fault_stale(self, root: RootPage, fault: Fault) -> bool:
        """Stale and its return."""
        invalidation = self.kvm.invalidation
        _runtime(self.kvm).tell(
            "stale",
            fault.gfn,
            fault.mmu_seq,
            invalidation.seq.value,
            invalidation.in_progress.value,
        )
        stale = super().is_page_fault_stale(root, fault)
        _runtime(self.kvm).tell("is_stale", stale)
        return stale

    def map(self, root: RootPage, cache: PageCache, fault: Fault) -> RetPf:
        """Map and its return, with the level."""
        _runtime(self.kvm).tell("map", fault.gfn, fault.write)
        result = super().map(root, cache, fault)
        _runtime(self.kvm).tell("mapped", result.name, fault.goal_level)
        return result

    def fast_page_fault(self, root: RootPage, fault: Fault) -> RetPf | None:
        """fast_page_fault, after it."""
        _CHANGED.pop(fault, None)
        _runtime(self.kvm).reach(FAST)
        result = super().fast_page_fault(root, fault)
        how = "fixed" if result is FIXED else "spurious" if result is SPURIOUS else "none"
        runtime = _runtime(self.kvm)
        changed = tuple(runtime.entry(spte, PG_LEVEL_4K) for spte in _CHANGED.pop(fault, ()))
        runtime.tell("fast", fault.gfn, how, *(changed or (None, None)))
        return result

    def fast_pf_fix_direct_spte(
        self, sp: ShadowPage, index: int, fault: Fault, old: int, new: int
    ) -> bool:
        """Remember what is changed."""
        fixed = super().fast_pf_fix_direct_spte(sp, index, fault, old, new)
        if fixed:
            _CHANGED[fault] = old, new
        return fixed

    def check_mmio_spte(self, gfn: int, as_id: int, spte: int, vcpu: Vcpu) -> bool:
        """check_mmio_spte."""
        valid = super().check_mmio_spte(gfn, as_id, spte, vcpu)
        if valid:
            self._cache_mmio(vcpu.number, gfn)
        generation = self.memslots.active(as_id).generation.value
        if not generation & GEN_UPDATE_IN_PROGRESS:
            _runtime(self.kvm).tell(
                "mmio_check",
                gfn,
                self.layout.mmio_generation(spte),
                generation & self._gen_mask,
                valid,
            )
        return valid


_CHANGED: dict[Fault, tuple[int, int]] = {}
"""What the lockless path has just changed, by fault; one worker runs at a time."""


class TellingWriter(SpteWriter):
    """The moment between a fault's look at an entry and its compare-exchange."""

    def set_spte_atomic(self, sp: ShadowPage, index: int, gfn: int, old: int, new: int) -> bool:
        """Only faults can lose it to one another."""
        runtime = _runtime(self.kvm)
        operation = runtime.operation()
        if operation is not None and operation.kind == "fault":
            runtime.reach(WRITING, gfn, sp.level)
        return super().set_spte_atomic(sp, index, gfn, old, new)


class TellingDirtyLog(DirtyLog):
    """Protecting and reading the log."""

    def remove_write_access(self, slot: Memslot) -> bool:
        """wrprot_slot and its return."""
        _runtime(self.kvm).tell("wrprot_slot", slot.id, PG_LEVEL_4K)
        changed = super().remove_write_access(slot)
        _runtime(self.kvm).tell("wrprot_done", changed)
        return changed

    def wrprot_slot(self, root: RootPage, slot: Memslot, min_level: int) -> bool:
        """wrprot_range."""
        _runtime(self.kvm).tell("wrprot", root, slot.base_gfn, slot.end_gfn, min_level)
        return super().wrprot_slot(root, slot, min_level)

    def protect_small_pages(self, slot: Memslot, pages: set[int]) -> None:
        """clear_dirty_pt, of one word."""
        word = min(pages) // WORD * WORD
        mask = sum(1 << page - word for page in pages)
        _runtime(self.kvm).tell("protect", slot.base_gfn + word, mask, True)
        super().protect_small_pages(slot, pages)


class TellingHugePages(HugePages):
    """Splits and collapses."""

    def try_split_huge_pages(self, slot: Memslot, start: int, end: int, *, shared: bool) -> None:
        """Split."""
        _runtime(self.kvm).tell("split", start, end, shared)
        super().try_split_huge_pages(slot, start, end, shared=shared)

    def zap_collapsible_sptes(self, slot: Memslot) -> None:
        """zap_collapsible_sptes, recover_huge_pages."""
        _runtime(self.kvm).tell("collapse")
        super().zap_collapsible_sptes(slot)


class TellingNotifier(MmuNotifier):
    """Invalidations, by host address: a range may touch several slots, or none."""

    def unmap_gfn_range(self, slot: Memslot, start: int, end: int, *, flush: bool) -> bool:
        """unmap_gfn_range and its return."""
        _runtime(self.kvm).tell("unmap", start, end, slot.id, flush)
        flush = super().unmap_gfn_range(slot, start, end, flush=flush)
        _runtime(self.kvm).tell("unmapped", flush)
        return flush

    def invalidate_end(self) -> None:
        """inv_end, at entry."""
        invalidation = self.kvm.invalidation
        _runtime(self.kvm).tell(
            "invalidated", invalidation.seq.value, invalidation.in_progress.value
        )
        super().invalidate_end()


class TellingVcpu(Vcpu):
    """Its end."""

    def destroy(self) -> None:
        """mmu_unload."""
        _runtime(self.kvm).tell("unload", self.root, self.number)
        super().destroy()


class AnsweringHost(HostMemory):
    """The recorded host: it gives what it gave then, and does meanwhile what it did then."""

    def fault_in(self, region: Region, index: int) -> int:  # noqa: ARG002 - the recording knows what was asked for
        """get_user_pages(): whatever happens while the fault waits for the host, then the frame
        that the kernel got."""
        runtime = cast(ReplayRuntime, self._runtime)
        operation = runtime.operation()
        assert operation is not None
        for inner in operation.nested:
            runtime.host.inside(inner)
        if operation.given.get("failed"):
            return 0
        frame: int | None = operation.given.get("pfn")
        return 1 if frame is None else runtime.host.frame_of(frame)


TELLING = Variant(
    name="telling",
    title="the model under observation",
    parts=(
        TellingRoots,
        TellingZapper,
        TellingRequests,
        TellingTlb,
        TellingMemslots,
        TellingFaults,
        TellingWriter,
        TellingDirtyLog,
        TellingHugePages,
        TellingNotifier,
        TellingVcpu,
        AnsweringHost,
    ),
)
"""Comes last among the variants of a replayed VM."""
