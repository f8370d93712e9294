"""The VM that ties the parts together, with KVM's ioctls as its public API."""

from __future__ import annotations

from collections.abc import Iterable

from mmu.export.importer import ExportedTdps
from mmu.export.iommu import Device, KvmHwpt
from mmu.export.tdp_fd import Exporter, TdpFd
from mmu.kvm import Kvm, VmConfig
from mmu.machine.vcpu import Vcpu
from mmu.memory.host import HostMemory
from mmu.memory.memslots import Change, MemoryRegion, Memslots
from mmu.memory.requests import OUTSIDE_GUEST_MODE, Requests
from mmu.memory.tlb import RemoteTlb
from mmu.paging.table import PageTableMemory
from mmu.probe import Probe
from mmu.report import Reporter
from mmu.runtime import Cell, Runtime
from mmu.sync import Sync
from mmu.sync.rcu import Rcu, Srcu
from mmu.sync.unchecked import BareSync
from mmu.tdp.fault import FaultHandler
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter
from mmu.tdp.zap import Zapper
from mmu.variant import Parts, Variant

PART_BASES: tuple[type, ...] = (
    Rcu,
    Srcu,
    PageTableMemory,
    Requests,
    HostMemory,
    RemoteTlb,
    Roots,
    SpteWriter,
    Zapper,
    Memslots,
    FaultHandler,
    ExportedTdps,
    Exporter,
    Device,
    KvmHwpt,
    Vcpu,
)
"""What a variant can replace."""


class VirtualMachine:
    """A VM: parts assembled for `variants` (policies, mutants, a user's own) around one `Kvm`.

    Every method may be called from any thread, as ioctls may; each vCPU is run by one thread at a time.
    """

    def __init__(
        self,
        config: VmConfig | None = None,
        variants: Iterable[Variant] = (),
        *,
        runtime: Runtime | None = None,
        reporter: Reporter | None = None,
        probe: Probe | None = None,
    ) -> None:
        config = config or VmConfig()
        runtime = runtime or Runtime()
        reporter = reporter or Reporter()
        probe = probe or Probe()
        self.parts = parts = Parts(PART_BASES, variants)
        if config.checked:
            sync = Sync(runtime, reporter, probe, config.rcu_stall_seconds, parts[Rcu], parts[Srcu])
        else:
            sync = BareSync(runtime, reporter, probe)
        self.kvm = kvm = Kvm(config, runtime, reporter, probe, sync, parts[PageTableMemory])
        self.requests = parts[Requests](kvm)
        self.host = parts[HostMemory](runtime, sync, probe, config.frames)
        self.exported_tdps = parts[ExportedTdps](kvm)
        self.tlb = parts[RemoteTlb](kvm, self.requests, self.exported_tdps if config.have_exported_tdp else None)
        self.roots = parts[Roots](kvm)
        self.writer = parts[SpteWriter](kvm)
        self.zapper = parts[Zapper](kvm, self.roots, self.writer, self.tlb, self.requests)
        self.memslots = parts[Memslots](kvm, self.zapper)
        self.faults = parts[FaultHandler](kvm, self.memslots, self.host, self.writer)
        self.exporter = parts[Exporter](kvm, self.exported_tdps, self.roots, self.zapper, self.tlb, self.memslots, self.faults, self.put)
        self._vcpus: Cell[tuple[Vcpu, ...]] = kvm.runtime.cell("vm.vcpus", ())
        self._devices: Cell[tuple[Device, ...]] = kvm.runtime.cell("vm.devices", ())
        self._vcpu_numbers = kvm.runtime.counter("vm.vcpu_numbers")
        self.destroyed: Cell[bool] = kvm.runtime.cell("vm.destroyed", False)

    def vcpus(self) -> tuple[Vcpu, ...]:
        """The vCPUs, in the order of creation."""
        return self._vcpus.value

    def create_vcpu(self) -> Vcpu:
        """KVM_CREATE_VCPU."""
        number = self._vcpu_numbers.fetch_add(1)
        vcpu = self.parts[Vcpu](self.kvm, number, self.requests, self.roots, self.faults, self.host)
        while True:
            seen = self._vcpus.value
            if self._vcpus.cmpxchg(seen, (*seen, vcpu)) == seen:
                return vcpu

    def set_user_memory_region(self, region: MemoryRegion) -> Change:
        """KVM_SET_USER_MEMORY_REGION: create, delete (npages 0), move or change the flags of a memslot."""
        return self.memslots.set_region(region)

    def create_tdp_fd(self, as_id: int = 0) -> TdpFd:
        """KVM_CREATE_TDP_FD: export the root of an address space."""
        return self.exporter.create(as_id)

    def create_device(self, name: str = "device0") -> Device:
        """A passed-through device; bind it with `attach`."""
        device = self.parts[Device](self.kvm, self.host, name)
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

    def put(self) -> None:
        """kvm_put_kvm(): close the VM fd, or drop a TDP FD's reference; the last one destroys the VM."""
        if self.kvm.users_count.put():
            self._destroy()

    def _destroy(self) -> None:
        """kvm_destroy_vm() (reference 2.13): mappings, vCPUs, TDP MMU, then everything that RCU still holds."""
        kvm = self.kvm
        kvm.dying.store(True)
        for vcpu in self._vcpus.value:
            if vcpu.state.mode.value != OUTSIDE_GUEST_MODE:
                self._leak("running-vcpu", f"{vcpu} is in guest mode while the VM is destroyed")
        self.zapper.zap_all()
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

    def _check_teardown(self) -> None:
        kvm = self.kvm
        pages = kvm.stat.tdp_mmu_pages.value
        if pages:
            self._leak("tdp-mmu-pages", f"{pages} linked page-table pages left at VM destroy")
        if not self.roots.empty():
            names = ", ".join(root.describe() for root in self.roots.snapshot())
            self._leak("roots", f"TDP MMU roots left at VM destroy: {names}")
        if kvm.tables.live():
            self._leak("page-table-memory", f"{kvm.tables.live()} page-table pages were never freed")
        if kvm.rcu.pending():
            self._leak("rcu-callbacks", f"{kvm.rcu.pending()} RCU callbacks left after the last barrier")
        if kvm.stat.pages_4k.value:
            self._leak("page-stats", f"pages_4k is {kvm.stat.pages_4k.value} at VM destroy, not 0")

    def _leak(self, code: str, headline: str) -> None:
        self.kvm.warn(
            "O11",
            f"leak-{code}",
            f"WARNING: {headline}",
            "when a VM is destroyed nothing of its TDP MMU may be left after the RCU barrier",
            "kvm_mmu_uninit_tdp_mmu() WARN_ON; reference 2.13",
            subject=code,
        )
