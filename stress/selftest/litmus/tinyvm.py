"""The smallest VM that shows a rule: two levels of four entries, a handful of frames, one slot,
everything prepared by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmu.export.tdp_fd import TdpFd
from mmu.kvm import VmConfig
from mmu.machine.vcpu import Vcpu
from mmu.machine.vm import VirtualMachine
from mmu.memory.host import Region, tag_of
from mmu.memory.memslots import MemoryRegion, Memslot
from mmu.paging.geometry import PG_LEVEL_4K, Geometry
from mmu.paging.spte import ADDR_MASK, REMOVED_SPTE, pfn_of
from mmu.paging.table import RootPage, RootRole, ShadowPage
from mmu.probe import Probe
from mmu.report import Reporter
from mmu.runtime import Cell, Runtime
from mmu.tdp.fault import Fault, PageCache, RetPf
from mmu.tdp.iter import TdpIter
from mmu.variant import Variant

TINY = Geometry(2, 4)
"""16 guest frames."""
FRAMES = 8


class TinyVm:
    """A VM with short ways to what a litmus program needs. What is done while the program is built
    is not scheduled."""

    def __init__(
        self,
        runtime: Runtime,
        reporter: Reporter,
        probe: Probe,
        variants: Sequence[Variant],
        **config: Any,
    ) -> None:
        config.setdefault("geometry", TINY)
        config.setdefault("frames", FRAMES)
        self.vm = VirtualMachine(
            VmConfig(**config), variants, runtime=runtime, reporter=reporter, probe=probe
        )
        self.kvm = self.vm.kvm
        self.cache = PageCache(self.kvm)

    def warm_up(self) -> None:
        """Make the calling task's own records."""
        kvm = self.kvm
        _ = kvm.rcu.local.mine, kvm.srcu.local.mine, kvm.mmu_lock.local.mine

    # Preparations.

    def slot(
        self, gfn: int = 0, npages: int = 1, *, flags: int = 0, slot: int = 0, **mapping: Any
    ) -> Region:
        """A memslot with fresh memory; `mapping` is what mmap() is told beside the size."""
        region = self.vm.host.mmap(npages, **mapping)
        self.vm.host.assign(region, tag_of(0, gfn))
        self.vm.set_user_memory_region(MemoryRegion(slot, gfn, npages, region, flags))
        return region

    def slot_object(self, slot: int = 0) -> Memslot:
        """The active slot object."""
        found = self.vm.memslots.peek(0).by_id(slot)
        assert found is not None
        return found

    def vcpu(self) -> Vcpu:
        """A vCPU with its root loaded and its caches filled; any task may run it."""
        vcpu = self.vm.create_vcpu()
        vcpu.load_root()
        vcpu.cache.topup()
        return vcpu

    def root(self) -> RootPage:
        """The valid root of address space 0, made if need be; only the TDP MMU's own reference is
        left on it."""
        kvm, roots = self.kvm, self.vm.roots
        kvm.mmu_lock.write_lock()
        root = roots.get_vcpu_root(RootRole(0))
        roots.put_root(root, shared=False)
        kvm.mmu_lock.write_unlock()
        return root

    def map(self, vcpu: Vcpu, gfn: int, *, write: bool = False) -> int:
        """Have the vCPU fault a page in; returns the SPTE."""
        assert self.fault(vcpu, gfn, write=write) is RetPf.FIXED
        assert vcpu.root is not None
        vcpu.cache.topup()
        return self.spte(vcpu.root, gfn)

    def export(self) -> TdpFd:
        """Export address space 0."""
        return self.vm.create_tdp_fd()

    # What tasks do.

    def fault(
        self,
        vcpu: Vcpu,
        gfn: int,
        *,
        write: bool = False,
        present: bool = False,
        fetch: bool = False,
    ) -> RetPf:
        """One EPT violation, from SRCU to SRCU."""
        token = self.kvm.srcu.read_lock()
        result = vcpu.page_fault(gfn, write, present, fetch)
        self.kvm.srcu.read_unlock(token)
        return result

    def map_pfn(self, root: RootPage, cache: PageCache, gfn: int, pfn: int) -> RetPf:
        """kvm_tdp_mmu_map() alone, under mmu_lock for read: slots, host and staleness are not
        asked."""
        fault = Fault()
        fault.gfn, fault.pfn, fault.host_writable = gfn, pfn, True
        self.kvm.mmu_lock.read_lock()
        result = self.vm.faults.map(root, cache, fault)
        self.kvm.mmu_lock.read_unlock()
        return result

    def full_cache(self) -> PageCache:
        """Table pages for one walk."""
        cache = PageCache(self.kvm)
        cache.topup()
        return cache

    def iter_at(self, root: RootPage, gfn: int, level: int = PG_LEVEL_4K) -> TdpIter:
        """An iterator that stands on the entry for `gfn`; RCU is held."""
        it = TdpIter(self.kvm, root, level, gfn, gfn + 1)
        while it.valid and it.level > level:
            it.next()
        return it

    # What is looked at.

    def table_of(self, root: RootPage, gfn: int) -> ShadowPage:
        """The last-level table for `gfn`, which must be there."""
        return self.kvm.tables.at(root.spt[self.kvm.geometry.index(gfn, 2)] & ADDR_MASK)

    def spte(self, root: RootPage, gfn: int) -> int:
        """The leaf entry for `gfn`; 0 where there is no table."""
        upper = root.spt[self.kvm.geometry.index(gfn, 2)]
        if not upper & self.kvm.layout.present:
            return 0
        return int(self.kvm.tables.at(upper & ADDR_MASK).spt[self.kvm.geometry.index(gfn, 1)])

    def mapped(self, root: RootPage, gfn: int) -> str:
        """What a leaf entry says: its frame, "none" or "frozen"."""
        spte = self.spte(root, gfn)
        if spte == REMOVED_SPTE:
            return "frozen"
        return f"frame {pfn_of(spte)}" if spte & self.kvm.layout.present else "none"


class ProbingGuest:
    """A guest that makes one access, and notes whether the flush was over and the old translation
    still there."""

    def __init__(self, vcpu: Vcpu, flushed: Cell[Any]) -> None:
        self._vcpu = vcpu
        self._flushed = flushed
        self.seen = "not run"

    def next_access(self) -> int:
        """Read gfn 0."""
        old = 0 in self._vcpu.tlb.entries
        self.seen = f"{'old' if old else 'new'} {'after' if self._flushed.value else 'before'}"
        return 0
