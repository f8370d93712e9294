"""IOMMUFD's side of an exported root: the page table object that stands between a TDP FD and a
device."""

from __future__ import annotations

import errno
from typing import Final

from mmu.errors import KvmError
from mmu.export.device import Device
from mmu.export.tdp_fd import TdpFd
from mmu.export.vtd import EVERYTHING, PAGE_SHIFT, VtdDomain
from mmu.kvm import Kvm
from mmu.memory.tlb import WHOLE
from mmu.paging.table import RootPage
from mmu.runtime import Cell


class PageRequest:
    """A page request group of a device: the faults in it, as (gfn, write), the domain that the
    device was attached to when it asked, and the one response."""

    STANDS_FOR: Final = "drivers/iommu/io-pgfault.c: struct iopf_group"

    __slots__ = ("code", "domain", "faults")

    def __init__(self, domain: KvmHwpt, faults: list[tuple[int, bool]]) -> None:
        self.domain = domain
        self.faults = faults
        self.code: Cell[str] = domain.kvm.runtime.cell("page_response", "")
        """What the device was told: SUCCESS, FAILURE, or nothing yet."""


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
        self.domain = kvm.parts[VtdDomain](kvm, device)
        self._draining: Cell[bool] = kvm.runtime.cell("hwpt.draining", False)
        self._pending = kvm.runtime.counter("hwpt.pending_requests")
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

    @property
    def bound(self) -> bool:
        """Whether the device may ask this domain for pages."""
        return not self._draining.value

    # What KVM calls.

    def invalidate(self, gfn: int, pages: int) -> None:
        """The importer callback: KVM removed or changed translations."""
        if pages == WHOLE:
            self.domain.cache_invalidate(0, EVERYTHING)
        else:
            self.domain.cache_invalidate(gfn << PAGE_SHIFT, pages << PAGE_SHIFT)

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
        if self.kvm.probe.device_blocked is not None:
            self.kvm.probe.device_blocked(self.device)

    def reattach(self) -> bool:
        """After a revocation: program the current root again; whether there is one. Never once the
        device is unbound."""
        with self.fd.exported.bind_lock:
            if not self.revoked.value:
                return True
            if not self.bound:
                return False
            root = self.fd.exported.root.value
            if root is None:
                return False
            self.device.attach(root)
            self.revoked.store(False)
        return True

    # What the IOMMU driver does.

    def request(self, faults: list[tuple[int, bool]]) -> PageRequest:
        """A page request group of the device has reached the queue. It is for this domain, whatever
        the device is attached to when it is handled."""
        self._pending.add(1)
        return PageRequest(self, faults)

    def request_of_its_own(self, faults: list[tuple[int, bool]]) -> PageRequest | None:
        """A page request group of a device that acts by itself. None once it is detached: from then
        on the hardware sends none."""
        hardware = self.device.hardware
        hardware.acquire()
        request = self.request(faults) if self.bound else None
        hardware.release()
        return request

    def handle(self, request: PageRequest) -> None:
        """iommufd_kvmtdp_handle_iopf(): the worker's side of a group, with one response for all of
        it."""
        self.respond(request, self.io_fault_group(request.faults))

    def respond(self, request: PageRequest, ok: bool) -> None:
        """iommu_page_response(): the device may go on, or must give up. A group is answered
        once."""
        if self.kvm.probe.page_response is not None:
            self.kvm.probe.page_response(request, ok)
        if request.code.value:
            self._warn_no_request()
            return
        request.code.store("SUCCESS" if ok else "FAILURE")
        self._pending.add(-1)

    def io_fault_group(self, group: list[tuple[int, bool]]) -> bool:
        """A whole iopf group: after the first failure the rest is not handled (reference 1.7)."""
        return all(self.io_fault(gfn, write) for gfn, write in group)

    def io_fault(self, gfn: int, write: bool) -> bool:
        """The IOPF worker's handling of one page request; true answers SUCCESS."""
        if not self.live.value:
            self._warn_freed(gfn)
        probe = self.kvm.probe
        if probe.io_fault_begin is not None:
            probe.io_fault_begin(self.device, gfn, write)
        start = self.kvm.runtime.now()
        ok = (not self.revoked.value or self.reattach()) and self.fd.fault(gfn, write)
        if probe.io_fault_end is not None:
            probe.io_fault_end(self.device, gfn, write, ok, self.kvm.runtime.now() - start)
        return ok

    def destroy(self) -> None:
        """HWPT destroy: detach the hardware and unregister, handle what it has asked for until
        then, and only then free the domain and give up the TDP FD (the mends of R14 and R24)."""
        self.unbind()
        self.drain()
        self.free_domain()
        self.fd.put()

    def unbind(self) -> None:
        """Block the hardware and unregister: on return no callback runs, none will, no root is
        walked, and no page is requested."""
        with self.fd.exported.bind_lock:
            self._draining.store(True)
            self.device.detach()
            self.fd.unregister_importer(self)
            if self.kvm.probe.device_blocked is not None:
                self.kvm.probe.device_blocked(self.device)

    def drain(self) -> None:
        """intel_drain_pasid_prq(), iopf_queue_flush_dev(): every page request of the device has
        been handled and answered."""
        self.kvm.runtime.wait_until("page requests", lambda: self._pending.value == 0)

    def free_domain(self) -> None:
        """iommu_domain_free()."""
        self.live.store(False)

    def _warn_freed(self, gfn: int) -> None:
        self.kvm.warn(
            "O2",
            "domain-used-after-free",
            f"BUG: use-after-free: a page request for gfn {gfn:#x} is handled in a domain that has "
            "been freed",
            "a domain is freed when the device can ask for no more pages and what it has asked for "
            "has been handled",
            "iopf_queue_flush_dev(), R24; c43e1ccdebf2",
            gfn=gfn,
        )

    def _warn_no_request(self) -> None:
        self.kvm.warn(
            "O16",
            "response-without-request",
            f"BUG: {self.device.name} is sent a response to a page request group that has been "
            "answered",
            "a page request group is answered once, as a whole",
            "iommu_page_response(); reference 1.7",
        )
