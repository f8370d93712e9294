"""The outside walker: an IOMMU domain whose stage-2 root is KVM's, and a device that does DMA
through it.

The hardware is modelled as hardware: it looks at R and W bits of the words it finds, caches what it
walked, and an invalidation is complete only when accesses in flight have drained (reference 1.8,
1.11 R18, 2.16 P16).
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import Final

from mmu.errors import KvmError
from mmu.export.tdp_fd import TdpFd
from mmu.kvm import Kvm
from mmu.memory.host import HostMemory, tag_of
from mmu.memory.tlb import WHOLE, HardwareWalker, TranslationCache
from mmu.paging.spte import ADDR_MASK, PFN_SHIFT, SPTE_R, SPTE_W
from mmu.paging.table import RootPage
from mmu.runtime import Cell


class Dma(Enum):
    """How a DMA access ended."""

    DONE = "done"
    WRONG = "wrong"


class Device:
    """A DMA-capable device with its IOTLB and the walker in front of it.

    `hardware` makes each transaction (translate and access) one unit, which is how invalidation
    completion sees it: an invalidate waits for the transaction in flight and no later one can use
    what it removed.
    """

    STANDS_FOR: Final = "hardware: a device behind an IOMMU"

    def __init__(self, kvm: Kvm, host: HostMemory, name: str) -> None:
        self.kvm = kvm
        self.host = host
        self.name = name
        self.iotlb = kvm.parts[TranslationCache]()
        self.root: Cell[RootPage | None] = kvm.runtime.cell(f"{name}.root", None)
        self.hardware = kvm.runtime.lock(f"{name} hardware")
        self.hits = 0
        self.walks = 0
        self._walker = HardwareWalker(kvm)

    def transact(self, gfn: int, write: bool) -> Dma | None:
        """One DMA access; None when there is no translation (an IO page fault)."""
        hardware = self.hardware
        hardware.acquire()
        if self.kvm.probe.dma_begin is not None:
            self.kvm.probe.dma_begin(self, gfn)
        try:
            spte = self._translate(gfn, write)
            if spte is None:
                return None
            if self.kvm.probe.point is not None:
                self.kvm.probe.point("P16")
            pfn = (spte & ADDR_MASK) >> PFN_SHIFT
            if self.host.access(pfn, tag_of(0, gfn), write):
                return Dma.DONE
            if self.kvm.probe.bad_translation is not None:
                self.kvm.probe.bad_translation(
                    self.name, gfn, pfn, write, self._walker.look(self.root.value, gfn)
                )
            return Dma.WRONG
        finally:
            if self.kvm.probe.dma_end is not None:
                self.kvm.probe.dma_end(self)
            hardware.release()

    def invalidate(self, gfn: int, pages: int) -> None:
        """IOTLB invalidation with drain: returns when no access uses the removed translations any
        more."""
        hardware = self.hardware
        hardware.acquire()
        if pages == WHOLE:
            self.iotlb.flush()
        else:
            self.iotlb.flush_range(gfn, pages)
        hardware.release()

    def attach(self, root: RootPage) -> None:
        """Program the context entry with a root; what was cached of another one is gone."""
        self.root.value = root
        self.invalidate(0, WHOLE)

    def detach(self) -> None:
        """Blocked: every access faults and is aborted from now on; the IOTLB is empty."""
        self.root.value = None
        self.invalidate(0, WHOLE)

    def _translate(self, gfn: int, write: bool) -> int | None:
        needed = SPTE_W if write else SPTE_R
        entries = self.iotlb.entries
        spte = entries.get(gfn)
        if spte is not None and spte & needed:
            self.hits += 1
            return spte
        self.walks += 1
        spte = self.walk(gfn)
        if not spte & needed:
            return None
        entries[gfn] = spte
        return spte

    def walk(self, gfn: int) -> int:
        """The hardware walk: the leaf's word, or 0."""
        return self._walker.walk(self.iotlb, self.root.value, gfn)


class KvmHwpt:
    """IOMMUFD's KVM HWPT: holds a TDP FD, programs its root into a device, hears of flushes,
    answers IO page faults."""

    STANDS_FOR: Final = "drivers/iommu/iommufd/hw_pagetable_kvm.c of the series"

    def __init__(self, kvm: Kvm, fd: TdpFd, device: Device) -> None:
        self.kvm = kvm
        self.device = device
        self.live: Cell[bool] = kvm.runtime.cell("hwpt.live", True)
        """Whether the IOMMU domain behind it exists."""
        self.revoked: Cell[bool] = kvm.runtime.cell("hwpt.revoked", False)
        self._in_flight = kvm.runtime.counter("hwpt.in_flight")
        self._draining = kvm.runtime.cell("hwpt.draining", False)
        self.fd = fd.get()
        try:
            with fd.exported.bind_lock:
                fd.register_importer(self)
                if kvm.should_fail("hwpt_attach"):
                    raise KvmError(
                        errno.ENOMEM, "the IOMMU domain could not be attached (injected)"
                    )
                device.attach(fd.metadata().root)
        except KvmError:
            self.abort_alloc()
            raise

    def abort_alloc(self) -> None:
        """The error path of HWPT alloc: unregister, and put once (the mend of R15)."""
        self.fd.unregister_importer(self)
        self.live.store(False)
        self.fd.put()

    # What KVM calls.

    def invalidate(self, gfn: int, pages: int) -> None:
        """The importer callback: KVM removed or changed translations (VT-d
        cache_invalidate_kvm)."""
        self.device.invalidate(gfn, pages)

    def switch_root(self, root: RootPage) -> bool:
        """The republish policy's callback: walk another root. The IOTLB is drained before it is
        acknowledged."""
        self.kvm.sync.might_sleep("switch_root")
        if self.kvm.should_fail("switch_root"):
            return False
        self.device.attach(root)
        self.revoked.store(False)
        return True

    def revoke(self) -> None:
        """The hardware is blocked: no access reaches memory until the next `reattach`."""
        self.device.detach()
        self.revoked.store(True)

    def reattach(self) -> bool:
        """After a revocation: program the current root again; whether there is one."""
        with self.fd.exported.bind_lock:
            if not self.revoked.value:
                return True
            root = self.fd.exported.root.value
            if root is None:
                return False
            self.device.attach(root)
            self.revoked.store(False)
        return True

    # What the IOMMU driver does.

    def io_fault_group(self, group: list[tuple[int, bool]]) -> bool:
        """A whole iopf group: one response for all; after the first failure the rest is not handled
        (reference 1.7)."""
        return all(self.io_fault(gfn, write) for gfn, write in group)

    def io_fault(self, gfn: int, write: bool) -> bool:
        """The IOPF worker's handling of one page request; true answers SUCCESS."""
        probe = self.kvm.probe
        if probe.io_fault_begin is not None:
            probe.io_fault_begin(self.device, gfn, write)
        start = self.kvm.runtime.now()
        self._in_flight.add(1)
        ok = (
            not self._draining.value
            and (not self.revoked.value or self.reattach())
            and self.fd.fault(gfn, write)
        )
        self._in_flight.add(-1)
        if probe.io_fault_end is not None:
            probe.io_fault_end(self.device, gfn, write, ok, self.kvm.runtime.now() - start)
        return ok

    def destroy(self) -> None:
        """HWPT destroy: detach the hardware, unregister, and only then free the domain and give up
        the TDP FD (the mend of R14)."""
        self.drain()
        self.unbind()
        self.free_domain()
        self.fd.put()

    def drain(self) -> None:
        """flush_workqueue(): no IO fault is being handled any more, and none will be."""
        self._draining.store(True)
        self.kvm.runtime.wait_until("IO page faults in flight", lambda: self._in_flight.value == 0)

    def unbind(self) -> None:
        """Block the hardware and unregister: on return no callback runs, none will, and no root is
        walked."""
        with self.fd.exported.bind_lock:
            self.device.detach()
            self.fd.unregister_importer(self)

    def free_domain(self) -> None:
        """iommu_domain_free()."""
        self.live.store(False)
