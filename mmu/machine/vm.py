"""The VM that ties the parts together, with KVM's ioctls as its public API."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from mmu.export.device import Device
from mmu.export.importer import ExportedTdp, ExportedTdps
from mmu.export.iommu import KvmHwpt
from mmu.export.tdp_fd import Exporter, TdpFd
from mmu.export.vtd import VtdDomain
from mmu.kvm import FailFunction, Invalidation, Kvm, VmConfig
from mmu.lock_order import document
from mmu.machine.pcpu import OwnCpu, PhysicalCpu
from mmu.machine.vcpu import Vcpu
from mmu.memory.host import HostMemory
from mmu.memory.memslots import Change, MemoryRegion, Memslots
from mmu.memory.requests import OUTSIDE_GUEST_MODE, Requests
from mmu.memory.tlb import RemoteTlb, TranslationCache
from mmu.paging.nxlist import PossibleNxHugePages
from mmu.paging.table import PageTableMemory
from mmu.probe import Probe
from mmu.report import Reporter
from mmu.runtime import Cell, Runtime
from mmu.sync import Sync
from mmu.sync.rcu import Rcu, Srcu
from mmu.tdp.age import Ageing
from mmu.tdp.dirty import DirtyLog
from mmu.tdp.fault import FaultHandler
from mmu.tdp.huge import HugePages
from mmu.tdp.notifier import MmuNotifier
from mmu.tdp.nx import NxHugePages
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter
from mmu.tdp.yielding import Yielding
from mmu.tdp.zap import Zapper
from mmu.variant import Parts, Variant

PART_BASES: tuple[type, ...] = (
    Rcu,
    Srcu,
    PageTableMemory,
    PossibleNxHugePages,
    Invalidation,
    Requests,
    HostMemory,
    RemoteTlb,
    TranslationCache,
    Roots,
    SpteWriter,
    Yielding,
    Zapper,
    HugePages,
    DirtyLog,
    Ageing,
    Memslots,
    FaultHandler,
    MmuNotifier,
    NxHugePages,
    ExportedTdps,
    ExportedTdp,
    Exporter,
    TdpFd,
    Device,
    VtdDomain,
    KvmHwpt,
    Vcpu,
)
"""What a variant can replace."""


@functools.lru_cache(maxsize=64)
def parts_for(variants: tuple[Variant, ...]) -> Parts:
    """The parts of a VM with these variants; composed once, however many VMs are built."""
    return Parts(PART_BASES, variants)


class MemslotHooks:
    """What the architecture does when memslots change (kvm_arch_*_memory_region)."""

    def __init__(self, zapper: Zapper, dirty: DirtyLog) -> None:
        self.flush_shadow_memslot = zapper.flush_shadow_memslot
        self.memslots_updated = zapper.memslots_updated
        self.commit_memory_region = dirty.slot_apply_flags


class VirtualMachine:
    """A VM: parts assembled for `variants` (policies, mutants, a user's own) around one `Kvm`.

    Every method may be called from any thread, as ioctls may; each vCPU is run by one thread at a
    time.
    """

    def __init__(
        self,
        config: VmConfig | None = None,
        variants: Iterable[Variant] = (),
        *,
        runtime: Runtime | None = None,
        reporter: Reporter | None = None,
        probe: Probe | None = None,
        fail_function: FailFunction | None = None,
        sync: Sync | None = None,
    ) -> None:
        config = config or VmConfig()
        runtime = runtime or Runtime()
        reporter = reporter or Reporter()
        probe = probe or Probe()
        self.parts = parts = parts_for(tuple(variants))
        sync = sync or Sync(
            runtime, reporter, probe, config.rcu_stall_seconds, parts[Rcu], parts[Srcu]
        )
        self.kvm = kvm = Kvm(config, runtime, reporter, probe, sync, parts, fail_function)
        self.requests = parts[Requests](kvm)
        self.host = parts[HostMemory](
            runtime, sync, probe, config.frames, config.geometry, (config.huge_2m, config.huge_1g)
        )
        self.exported_tdps = parts[ExportedTdps](kvm)
        self.tlb = parts[RemoteTlb](
            kvm, self.requests, self.exported_tdps if config.have_exported_tdp else None
        )
        self._assemble_mmu()
        self.exporter = parts[Exporter](
            kvm,
            self.exported_tdps,
            self.roots,
            self.zapper,
            self.tlb,
            self.memslots,
            self.faults,
            self.dirty,
            self.put,
            self.mmput,
        )
        document(sync.lockdep)
        self.pcpus = tuple(PhysicalCpu(kvm, number) for number in range(config.pcpus))
        """The physical CPUs that vCPUs take turns on; none if each has one for itself."""
        self._vcpus: Cell[tuple[Vcpu, ...]] = kvm.runtime.cell("vm.vcpus", ())
        self._devices: Cell[tuple[Device, ...]] = kvm.runtime.cell("vm.devices", ())
        self.destroyed: Cell[bool] = kvm.runtime.cell("vm.destroyed", False)

    def _assemble_mmu(self) -> None:
        """The TDP MMU, from its roots up."""
        kvm, parts = self.kvm, self.parts
        self.roots = parts[Roots](kvm)
        self.writer = parts[SpteWriter](kvm, self.tlb)
        self.yielding = parts[Yielding](kvm, self.tlb)
        self.zapper = parts[Zapper](
            kvm, self.roots, self.writer, self.tlb, self.requests, self.yielding, self.exported_tdps
        )
        self.huge = parts[HugePages](kvm, self.roots, self.writer, self.tlb, self.yielding)
        self.dirty = parts[DirtyLog](
            kvm, self.roots, self.writer, self.tlb, self.huge, self.requests, self.yielding
        )
        self.ageing = parts[Ageing](kvm, self.roots, self.writer)
        self.memslots = parts[Memslots](kvm, MemslotHooks(self.zapper, self.dirty))
        self.faults = parts[FaultHandler](kvm, self.memslots, self.host, self.writer, self.huge)
        self.notifier = parts[MmuNotifier](kvm, self.memslots, self.zapper, self.ageing, self.tlb)
        self.nx = parts[NxHugePages](kvm, self.memslots, self.zapper, self.tlb)

    def vcpus(self) -> tuple[Vcpu, ...]:
        """The vCPUs, in the order of creation."""
        return self._vcpus.value

    def create_vcpu(self) -> Vcpu:
        """KVM_CREATE_VCPU. Its thread starts on the next physical CPU, round and round."""
        number = self.kvm.created_vcpus.fetch_add(1)
        vcpu = self.parts[Vcpu](
            self.kvm,
            number,
            self.requests,
            self.roots,
            self.faults,
            self.host,
            self.mmput,
            self.pcpus[number % len(self.pcpus)] if self.pcpus else OwnCpu(self.kvm),
        )
        while True:
            seen = self._vcpus.value
            if self._vcpus.cmpxchg(seen, (*seen, vcpu)) == seen:
                return vcpu

    def set_user_memory_region(self, region: MemoryRegion) -> Change:
        """KVM_SET_USER_MEMORY_REGION: create, delete (npages 0), move or change the flags of a
        memslot."""
        return self.memslots.set_region(region)

    def get_dirty_log(self, slot: int, as_id: int = 0) -> set[int]:
        """KVM_GET_DIRTY_LOG: pages of the slot, relative to it, that were written since the last
        call."""
        return self.dirty.get(self.memslots, slot, as_id)

    def clear_dirty_log(self, slot: int, pages: Iterable[int], as_id: int = 0) -> None:
        """KVM_CLEAR_DIRTY_LOG: protect these pages again (with manual protection)."""
        self.dirty.clear(self.memslots, slot, as_id, pages)

    def set_nx_huge_pages(self, on: bool) -> None:
        """Write the module parameter nx_huge_pages."""
        self.nx.set_nx_huge_pages(on)

    def recover_nx_huge_pages(self) -> int:
        """One turn of the NX recovery worker; returns how many tables it dealt with."""
        return self.nx.recover()

    def change_attributes(self, start: int, end: int) -> None:
        """An attribute of guest frames [start, end) changed, such as their memory type:
        kvm_zap_gfn_range()."""
        self.zapper.zap_gfn_range(start, end)

    def create_tdp_fd(self, as_id: int = 0) -> TdpFd:
        """KVM_CREATE_TDP_FD: export the root of an address space."""
        return self.exporter.create(as_id)

    def close_tdp_fd(self, fd: TdpFd) -> bool:
        """close() of a TDP FD; false when it has been closed before. The last reference un-exports
        the root."""
        return self.exporter.close(fd)

    def create_device(self, name: str = "device0", *, ats: bool = False) -> Device:
        """A passed-through device, with a TLB of its own if `ats`; bind it with `attach`."""
        device = self.parts[Device](self.kvm, self.host, name, ats)
        while True:
            seen = self._devices.value
            if self._devices.cmpxchg(seen, (*seen, device)) == seen:
                return device

    def devices(self) -> tuple[Device, ...]:
        """The devices, in the order of creation."""
        return self._devices.value

    def attach(self, device: Device, fd: TdpFd) -> KvmHwpt:
        """IOMMU_HWPT_ALLOC with a TDP FD, and attaching the device to it."""
        return self.parts[KvmHwpt](self.kvm, fd, device)

    def exit_mm(self) -> None:
        """The process that owns the VM exits: its memory goes before its files are closed."""
        self.mmput()

    def mmput(self) -> None:
        """mmput(): the last user of the address space tears it down (exit_mmap): notifier release,
        then the frames."""
        if self.kvm.mm_users.put():
            self.notifier.release()
            self.host.exit_mmap()

    def put(self) -> None:
        """kvm_put_kvm(): close the VM fd, or drop a TDP FD's reference; the last one destroys the
        VM."""
        if self.kvm.users_count.put():
            self._destroy()

    def _destroy(self) -> None:
        """kvm_destroy_vm() (reference 2.13): mappings, vCPUs, TDP MMU, then everything that RCU
        still holds."""
        kvm = self.kvm
        kvm.dying.store(True)
        for vcpu in self._vcpus.value:
            if vcpu.state.mode.value != OUTSIDE_GUEST_MODE:
                self._leak("running-vcpu", f"{vcpu} is in guest mode while the VM is destroyed")
        if not kvm.mm_gone.value:
            self.zapper.zap_all()
        kvm.srcu.synchronize()  # mmu_notifier_unregister(): a release that has begun is waited for
        for vcpu in self._vcpus.value:
            vcpu.destroy()
        self._uninit_tdp_mmu()
        kvm.rcu.barrier()
        self._check_teardown()
        kvm.rcu.shutdown()
        self.destroyed.store(True)

    def _uninit_tdp_mmu(self) -> None:
        """kvm_mmu_uninit_tdp_mmu()."""
        self.roots.invalidate_all_roots()
        self.zapper.zap_invalidated_roots()
        self.zapper.stop()

    def _check_teardown(self) -> None:
        kvm = self.kvm
        pages = kvm.stat.tdp_mmu_pages.value
        if pages:
            self._leak("tdp-mmu-pages", f"{pages} linked page-table pages left at VM destroy")
        if kvm.invalidation.in_progress.value and not kvm.mn_active_invalidate_count.value:
            self._leak("invalidation", "an invalidation is still in progress at VM destroy")
        if not self.roots.empty():
            names = ", ".join(root.describe() for root in self.roots.snapshot())
            self._leak(
                "roots", f"TDP MMU roots left at VM destroy: {names}", tuple(self._references())
            )
        if kvm.shadow_pages.count():
            self._leak(
                "shadow-pages", f"{kvm.shadow_pages.count()} shadow pages left at VM destroy"
            )
        if kvm.tables.live():
            self._leak(
                "page-table-memory", f"{kvm.tables.live()} page-table pages were never freed"
            )
        if kvm.rcu.pending():
            self._leak(
                "rcu-callbacks",
                f"{kvm.rcu.pending()} RCU callbacks left after the last barrier",
                tuple(kvm.rcu.outstanding()[:5]),
            )
        for counter in (kvm.stat.pages_4k, kvm.stat.pages_2m, kvm.stat.pages_1g):
            if counter.value:
                self._leak("page-stats", f"{counter.name} is {counter.value} at VM destroy, not 0")
        if kvm.possible_nx_huge_pages.pages():
            self._leak(
                "nx-list",
                f"{len(kvm.possible_nx_huge_pages.pages())} pages left on possible_nx_huge_pages "
                "at VM destroy",
            )

    def _references(self) -> Iterator[tuple[str, list[str]]]:
        """Who holds on to the roots that are left."""
        for root in self.roots.snapshot():
            for title, lines in root.refcount.history():
                yield f"references to {root.describe()}, {title}", lines

    def _leak(
        self, code: str, headline: str, extra: tuple[tuple[str, list[str]], ...] = ()
    ) -> None:
        self.kvm.warn(
            "O11",
            f"leak-{code}",
            f"WARNING: {headline}",
            "when a VM is destroyed nothing of its TDP MMU may be left after the RCU barrier",
            "kvm_mmu_uninit_tdp_mmu() WARN_ON; reference 2.13",
            subject=code,
            extra=extra,
        )
