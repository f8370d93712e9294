"""The IOMMU's side of an exported root: its caches, a device's TLB behind them, and page
requests."""

from __future__ import annotations

from mmu.export.vtd import VtdDomain
from mmu.posted import POSTED
from stress.selftest.litmus.base import Family, LitmusBench, Tasks, acceptable, forbidden
from stress.selftest.litmus.tinyvm import TinyVm

FAMILY = Family("iommu", "the IOMMU's caches and page requests")


class _Warm:
    """An exported root with a leaf for gfn 0, which the IOTLB and the device's TLB have."""

    def __init__(self, bench: LitmusBench) -> None:
        self.tiny: TinyVm = bench.vm(iommu_hint=True)
        self.tiny.slot()
        root = self.tiny.export().metadata().root
        self.root = root
        self.tiny.map(self.tiny.vcpu(), 0)
        self.device = self.tiny.vm.create_device(ats=True)
        self.device.attach(root)
        self.device.transact(0, False)
        self.domain = self.tiny.kvm.parts[VtdDomain](self.tiny.kvm, self.device)

    def dma(self) -> str:
        """One access of the device."""
        return "page fault" if self.device.transact(0, False) is None else "done"

    def zap_leaf(self) -> None:
        """Clear the leaf, under mmu_lock for write."""
        sp = self.tiny.table_of(self.root, 0)
        self.tiny.vm.writer.set_spte(sp, 0, 0, sp.spt[0], 0)

    def zap_table(self) -> None:
        """Remove the table, under mmu_lock for write."""
        self.tiny.vm.writer.set_spte(self.root, 0, 0, self.root.spt[0], 0)

    def leaves_left(self) -> str:
        """Which caches still have the leaf."""
        caches = self.device.caches()
        names = [name.split(maxsplit=1)[1] for name, cache in caches if cache.entries]
        return " and ".join(names) or "nothing"

    def walks_left(self) -> str:
        """Whether the IOMMU still knows the table."""
        return "partial walk" if self.device.iotlb.tables else "nothing"


_ORDER_GRADES = {
    "done, nothing": acceptable("the access was first, or between the commands"),
    "page fault, nothing": acceptable("both caches were flushed before"),
    "done, device TLB": forbidden(
        "the device has asked the IOMMU in between, which has answered from its IOTLB"
    ),
}


@FAMILY.program(
    "iotlb-before-devtlb",
    title="a leaf is zapped and flushed while a device with its own TLB uses it",
    rule="the IOTLB is invalidated before the device TLB that it fills",
    source="iommu_flush_iotlb_psi(); reference 1.8, VT-d specification 6.5.2.5, oracle O1",
    grades=_ORDER_GRADES,
)
def iotlb_before_devtlb(bench: LitmusBench) -> Tasks:
    """The two commands of one range."""
    world = _Warm(bench)

    def device() -> str:
        return world.dma()

    def zapper() -> None:
        world.tiny.kvm.mmu_lock.write_lock()
        world.zap_leaf()
        world.domain.flush_range(0, 1, ih=True)
        world.tiny.kvm.mmu_lock.write_unlock()

    return Tasks(device, zapper, after=world.leaves_left)


@FAMILY.program(
    "devtlb-before-iotlb",
    title="the device TLB is flushed first",
    rule="the IOTLB is invalidated before the device TLB that it fills",
    source="reference 1.8, VT-d specification 6.5.2.5, oracle O1",
    broken=True,
    grades=_ORDER_GRADES,
)
def devtlb_before_iotlb(bench: LitmusBench) -> Tasks:
    """The two commands the other way round."""
    world = _Warm(bench)

    def device() -> str:
        return world.dma()

    def zapper() -> None:
        world.tiny.kvm.mmu_lock.write_lock()
        world.zap_leaf()
        world.domain.flush_dev_iotlb(0, 1)
        world.domain.flush_iotlb(0, 0, ih=True)
        world.tiny.kvm.mmu_lock.write_unlock()

    return Tasks(device, zapper, after=world.leaves_left)


_TABLE_GRADES = {
    "done, nothing": acceptable("the access was first"),
    "page fault, nothing": acceptable("the flush was first"),
    "done, partial walk": forbidden("the IOMMU still knows the way into a table that RCU frees"),
    "page fault, partial walk": forbidden("it has just looked into that table"),
    "use-after-free": forbidden("it has looked into that table after RCU had freed it"),
}


def _removal(bench: LitmusBench) -> Tasks:
    world = _Warm(bench)

    def device() -> str:
        return world.dma()

    def zapper() -> None:
        world.tiny.kvm.mmu_lock.write_lock()
        world.zap_table()
        world.domain.cache_invalidate(0, 4 << 12)
        world.tiny.kvm.mmu_lock.write_unlock()

    return Tasks(device, zapper, after=world.walks_left)


@FAMILY.program(
    "table-removed-under-dma",
    title="a table is removed, and its range flushed, while an IOMMU walks it",
    rule="after the flush of a range no partial walk leads into a table that was taken out of it",
    source="domain_flush_iotlb_psi(), qi_desc_iotlb(); reference 8.3, oracle O1",
    grades=_TABLE_GRADES,
)
def table_removed_under_dma(bench: LitmusBench) -> Tasks:
    """The range flush as mended: it claims nothing."""
    return _removal(bench)


@FAMILY.program(
    "table-removed-with-hint",
    title="the flush after the removal of a table claims that only leaves have changed",
    rule="ih=1 is for ranges of which no page-table page was taken out",
    source="reference 1.11 R23, 8.3; 6b38a108eeb3",
    broken=True,
    variants=(POSTED["r23-range-flush-with-hint"],),
    grades=_TABLE_GRADES,
)
def table_removed_with_hint(bench: LitmusBench) -> Tasks:
    """The range flush as posted, on a kernel that hands the hint on."""
    return _removal(bench)


_DETACH_GRADES = {
    "SUCCESS, answered": acceptable("the detach has waited for it"),
    "freed, SUCCESS, answered": forbidden("the domain was freed while it was handled"),
    "domain-used-after-free": forbidden("handled in a domain that had been freed"),
}


def _detach(bench: LitmusBench) -> Tasks:
    tiny = bench.vm()
    tiny.slot()
    fd = tiny.export()
    hwpt = tiny.vm.attach(tiny.vm.create_device(), fd)
    request = hwpt.request([(0, False)])

    def detacher() -> str | None:
        hwpt.destroy()
        return None if request.code.value else "freed"

    def worker() -> str:
        hwpt.handle(request)
        return request.code.value

    return Tasks(detacher, worker, after=lambda: "answered" if request.code.value else "lost")


@FAMILY.program(
    "detach-against-page-request",
    title="a device is detached while a page request of it is in the queue",
    rule="a domain is freed when its device asks for nothing more, and everything was answered",
    source="intel_drain_pasid_prq(), iopf_queue_flush_dev(); reference 1.11 R24, oracle O2",
    grades=_DETACH_GRADES,
)
def detach_against_page_request(bench: LitmusBench) -> Tasks:
    """The detach blocks the device, waits for the worker, and frees the domain."""
    return _detach(bench)


@FAMILY.program(
    "detach-without-drain",
    title="a detach does not wait for the page requests in the queue",
    rule="a domain is freed when its device asks for nothing more, and everything was answered",
    source="reference 1.11 R24; c43e1ccdebf2",
    broken=True,
    variants=(POSTED["r24-detach-without-drain"],),
    grades=_DETACH_GRADES,
)
def detach_without_drain(bench: LitmusBench) -> Tasks:
    """As posted."""
    return _detach(bench)
