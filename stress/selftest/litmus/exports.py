"""Exported TDPs: importers that must hear of every flush, IO faults, and the end of an export."""

from __future__ import annotations

from mmu.errors import KvmError
from mmu.export.device import Device, Dma
from mmu.export.importer import ExportedTdp
from mmu.export.tdp_fd import TdpFd
from mmu.memory.memslots import MemoryRegion
from mmu.paging.table import RootPage
from mmu.probe import Instrument, override
from mmu.tdp.zap import BATCH_ZAP_PAGES
from stress.selftest.litmus.base import (
    Family,
    LitmusBench,
    Tasks,
    acceptable,
    forbidden,
    interesting,
)
from stress.selftest.litmus.tinyvm import ProbingGuest, TinyVm

FAMILY = Family("exports", "exported TDPs and their importers")


class _Importer:
    """Passes flushes on to a device."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def invalidate(self, gfn: int, pages: int) -> None:
        """IOTLB invalidation."""
        self.device.flush_iotlb(gfn, pages, leaves_only=False)

    def switch_root(self, root: RootPage) -> bool:
        """Not used here."""
        self.device.attach(root)
        return True

    def revoke(self) -> None:
        """Not used here."""
        self.device.detach()


class _Exported:
    """An exported root with one leaf, and a device that walks it."""

    def __init__(self, bench: LitmusBench) -> None:
        self.tiny: TinyVm = bench.vm()
        self.tiny.slot()
        self.fd: TdpFd = self.tiny.export()
        self.exported: ExportedTdp = self.fd.exported
        root = self.exported.root.value
        assert root is not None
        self.root = root
        self.vcpu = self.tiny.vcpu()
        self.tiny.map(self.vcpu, 0)
        self.device = self.tiny.vm.create_device()
        self.device.root.value = root
        self.importer = _Importer(self.device)

    def dma(self) -> str:
        """One access of the device."""
        return "page fault" if self.device.transact(0, False) is None else "done"

    def zap(self) -> None:
        """Zap the leaf and tell every importer; the page may be given to others then."""
        kvm = self.tiny.kvm
        sp = self.tiny.table_of(self.root, 0)
        kvm.mmu_lock.write_lock()
        self.tiny.vm.writer.set_spte(sp, 0, 0, sp.spt[0], 0)
        self.tiny.vm.tlb.notify_importers(0, 1)
        kvm.mmu_lock.write_unlock()

    def iotlb(self) -> str:
        """Whether the device has kept a translation of what was zapped."""
        return "stale IOTLB" if 0 in self.device.iotlb.entries else "empty IOTLB"


_NOTIFY_GRADES = {
    "done, empty IOTLB": acceptable("walked before the zap, and told"),
    "page fault, empty IOTLB": acceptable("walked after the zap"),
    "done, stale IOTLB": forbidden(
        "nobody has told the device: DMA goes to a page that is somebody else's"
    ),
}


@FAMILY.program(
    "register-then-walk",
    title="an importer registers and walks while a leaf is zapped",
    rule="an importer registers before its hardware walks: what it has cached it is told of",
    source="register_importer(), kvm_tdp_fd_flush_notify(); reference 1.4, 1.8",
    grades=_NOTIFY_GRADES,
)
def register_then_walk(bench: LitmusBench) -> Tasks:
    """The zapper clears the SPTE before it notifies; the importer registers before it walks."""
    world = _Exported(bench)

    def importer() -> str:
        world.exported.register(world.importer)
        return world.dma()

    def zapper() -> None:
        world.zap()

    return Tasks(importer, zapper, after=world.iotlb)


@FAMILY.program(
    "walk-then-register",
    title="an importer walks before it registers",
    rule="an importer registers before its hardware walks",
    source="reference 1.4, 1.8; R14 is the same at the other end",
    broken=True,
    grades=_NOTIFY_GRADES,
)
def walk_then_register(bench: LitmusBench) -> Tasks:
    """The notification comes in between."""
    world = _Exported(bench)

    def importer() -> str:
        done = world.dma()
        world.exported.register(world.importer)
        return done

    def zapper() -> None:
        world.zap()

    return Tasks(importer, zapper, after=world.iotlb)


@FAMILY.program(
    "unregister-against-notify",
    title="an importer unregisters while it is notified",
    rule=(
        "when unregister_importer() returns no callback of the importer is running and none will "
        "run"
    ),
    source="unregister_importer(), importer_lock; reference 1.4, R14",
    grades={
        "told": acceptable("told before it was gone"),
        "not told": acceptable("gone before"),
        "told when dead": forbidden("a callback on a domain that was freed"),
    },
)
def unregister_against_notify(bench: LitmusBench) -> Tasks:
    """importer_lock is held over the callback."""
    world = _Exported(bench)
    live, told = bench.cell("live", True), bench.cell("told", "not told")

    class LateImporter(_Importer):
        def invalidate(self, gfn: int, pages: int) -> None:  # noqa: ARG002 - only that it is called
            told.value = "told" if live.value else "told when dead"

    ops = LateImporter(world.device)
    world.exported.register(ops)

    def unbinder() -> None:
        world.exported.unregister(ops)
        live.value = False

    def flusher() -> None:
        world.tiny.vm.tlb.notify_importers(0, 1)

    return Tasks(unbinder, flusher, after=lambda: told.value)


@FAMILY.program(
    "dma-against-zap",
    title="DMA in flight against a zap with its notification",
    rule="an invalidation is complete when the access in flight has drained",
    source="reference 1.8, 2.16 P16; oracle O16",
    grades={
        "DONE, empty IOTLB": acceptable("the access was first, and has drained"),
        "page fault, empty IOTLB": acceptable("the zap was first"),
        "WRONG, empty IOTLB": forbidden("the access has reached memory that was somebody else's"),
        "DONE, stale IOTLB": forbidden("nobody has told the device"),
        "WRONG, stale IOTLB": forbidden(
            "nobody has told the device, and it has used memory that was somebody else's"
        ),
    },
)
def dma_against_zap(bench: LitmusBench) -> Tasks:
    """The page is released as soon as the notification is back."""
    world = _Exported(bench)
    world.exported.register(world.importer)
    region = world.tiny.slot_object().region

    def device() -> str:
        done = world.device.transact(0, False)
        return "page fault" if done is None else done.name

    def zapper() -> None:
        world.zap()
        world.tiny.vm.host.discard(region, 0, 1)

    assert Dma.DONE.name == "DONE"
    return Tasks(device, zapper, after=world.iotlb)


@FAMILY.program(
    "unexport-against-io-fault",
    title="the last close of a TDP FD against an IO page fault",
    rule=(
        "an IO fault looks at the exported root under mmu_lock: it maps in a root that is "
        "exported, or fails"
    ),
    source="kvm_mmu_put_exported_tdp(), kvm_mmu_fault_exported_tdp(); reference 1.6, 1.7, R5, R6",
    grades={
        "True, empty": acceptable("mapped before, zapped by the un-export"),
        "False, empty": acceptable("the root was not exported any more"),
        "True, mapped": forbidden("a leaf that a device asked for in a root that is no device's"),
        "use-after-free": forbidden("the fault has used what the un-export has freed"),
        "deadlock": forbidden("cache lock and mmu_lock, in two orders"),
    },
)
def unexport_against_io_fault(bench: LitmusBench) -> Tasks:
    """The cache mutex and mmu_lock order the two."""
    tiny = bench.vm()
    region = tiny.slot()
    tiny.vm.host.fault_in(region, 0)
    fd = tiny.export()
    root = fd.exported.root.value
    assert root is not None

    def io_fault() -> bool:
        return fd.fault(0, write=False)

    def closer() -> None:
        fd.put()

    return Tasks(
        io_fault, closer, after=lambda: "empty" if tiny.mapped(root, 0) == "none" else "mapped"
    )


@FAMILY.program(
    "io-fault-against-vcpu-fault",
    title="a device and a vCPU fault on one page",
    rule="whoever maps first, both go on: an IO fault that finds the page mapped is a success",
    source="R7; kvm_tdp_fault(), reference 1.7",
    grades={
        "True, FIXED": acceptable(
            "the device's fault found it mapped, or mapped it after the vCPU's"
        ),
        "True, SPURIOUS": acceptable("the device's fault was first"),
        "True, RETRY": acceptable("the vCPU's fault was overtaken"),
        "False, FIXED": forbidden("DMA is aborted because a vCPU was faster"),
    },
)
def io_fault_against_vcpu_fault(bench: LitmusBench) -> Tasks:
    """The common race of the design."""
    tiny = bench.vm()
    region = tiny.slot(npages=2)
    tiny.vm.host.fault_in(region, 0)
    fd = tiny.export()
    vcpu = tiny.vcpu()
    tiny.map(vcpu, 1)
    io_cache = fd._exporter._cache
    io_cache.topup()

    def io_fault() -> bool:
        return fd.fault(0, write=False)

    def vcpu_fault() -> str:
        return tiny.fault(vcpu, 0).name

    return Tasks(io_fault, vcpu_fault)


@FAMILY.program(
    "two-exports",
    title="two ioctls export one address space",
    rule="check and insertion are one critical section: one of two exports is refused",
    source="kvm_create_tdp_fd(); R1, invariant I5",
    grades={
        "exported, refused": acceptable("left was first"),
        "refused, exported": acceptable("right was first"),
        "exported, exported": forbidden("one flag for two exporters"),
        "refused, refused": forbidden("refused without reason"),
        "exported-twice": forbidden("one flag for two exporters"),
    },
)
def two_exports(bench: LitmusBench) -> Tasks:
    """The mend of R1."""
    tiny = bench.vm()
    tiny.root()

    def export() -> str:
        try:
            tiny.export()
        except KvmError:
            return "refused"
        return "exported"

    def left() -> str:
        return export()

    def right() -> str:
        return export()

    return Tasks(left, right)


@FAMILY.program(
    "export-against-invalidation",
    title="a root is exported while all roots are invalidated",
    rule="an exported root is valid, and stays so",
    source=(
        "kvm_mmu_get_exported_tdp(), kvm_tdp_mmu_invalidate_all_roots(); RFC PATCH 35 and 36, "
        "oracle O12"
    ),
    grades={
        "the old root, valid": acceptable("exported before: the invalidation has left it alone"),
        "a new root, valid": interesting(
            "exported after: the vCPUs still have to drop the old one"
        ),
        "the old root, invalid": forbidden("an exported root was invalidated"),
    },
)
def export_against_invalidation(bench: LitmusBench) -> Tasks:
    """The flag is set and looked at under mmu_lock for write."""
    tiny = bench.vm()
    old, kvm = tiny.root(), tiny.kvm

    def exporter() -> str:
        root = tiny.export().exported.root.value
        return "the old root" if root is old else "a new root"

    def zapper() -> None:
        kvm.mmu_lock.write_lock()
        tiny.vm.roots.invalidate_all_roots()
        kvm.mmu_lock.write_unlock()

    def after() -> str:
        exported = [root for root in tiny.vm.roots.snapshot() if root.exported.value]
        return "invalid" if any(root.invalid.value for root in exported) else "valid"

    return Tasks(exporter, zapper, after=after)


_DMA_GRADES = {
    "DONE": acceptable("the access was first, and has drained"),
    "page fault": acceptable("the translation was gone"),
    "WRONG": forbidden("the device has reached memory that was released"),
}


@FAMILY.program(
    "delete-against-dma",
    title="a memslot is deleted and its memory released while a device uses it",
    rule=(
        "when KVM_SET_USER_MEMORY_REGION returns no importer can reach what the slot had: the "
        "claim of the seed"
    ),
    source=(
        "kvm_mmu_zap_all_fast() with kvm_tdp_mmu_zap_exported_roots(); reference 1.9, 2.7, oracle "
        "O1"
    ),
    grades=_DMA_GRADES,
)
def delete_against_dma(bench: LitmusBench) -> Tasks:
    """The exported root stays valid; its leaves go under mmu_lock for write, and the importer is
    told."""
    world = _Exported(bench)
    world.exported.register(world.importer)
    world.device.transact(0, False)
    vm, region = world.tiny.vm, world.tiny.slot_object().region

    def device() -> str:
        done = world.device.transact(0, False)
        return "page fault" if done is None else done.name

    def deleter() -> None:
        vm.set_user_memory_region(MemoryRegion(0, 0, 0))
        vm.host.munmap(region)

    return Tasks(device, deleter)


@FAMILY.program(
    "unexport-in-the-gap",
    title="the root is un-exported while a fast zap meets shadow pages, and may drop mmu_lock",
    rule="a root that invalidation spares is zapped before mmu_lock is dropped",
    source="kvm_mmu_zap_all_fast() steps 4, 6 and 7; reference 1.11 R22, oracle O6",
    grades={
        "unmapped": acceptable("the fast zap has zapped the root, or the un-export has"),
        "invalid": acceptable("un-exported before: a root like any other"),
        "mapped": forbidden("a valid root maps what had to go"),
    },
)
def unexport_in_the_gap(bench: LitmusBench) -> Tasks:
    """Eleven obsolete shadow pages: after ten the lock may go to the exporter, whose own zap
    yields it back. The part of kvm_mmu_zap_all_fast() that holds mmu_lock for write."""
    tiny = bench.vm()
    tiny.slot(npages=2)
    fd = tiny.export()
    vcpu = tiny.vcpu()
    for gfn in range(2):
        tiny.map(vcpu, gfn)
    vcpu.shadow(BATCH_ZAP_PAGES + 1)
    root = fd.metadata().root

    def zapper() -> str:
        with tiny.kvm.slots_lock:
            tiny.kvm.mmu_lock.write_lock()
            tiny.vm.zapper.obsolete_roots()
            tiny.vm.zapper.zap_exported_and_obsolete()
            tiny.kvm.mmu_lock.write_unlock()
        if root.invalid.value:
            return "invalid"
        return "unmapped" if tiny.mapped(root, 1) == "none" else "mapped"

    def exporter() -> None:
        tiny.vm.close_tdp_fd(fd)

    return Tasks(zapper, exporter)


@FAMILY.program(
    "exit-against-dma",
    title="the process exits while a device uses its memory",
    rule="a root that a device walks is flushed before the memory of the process goes",
    source="kvm_mmu_zap_all() at mm release; R12, reference 2.13",
    grades=_DMA_GRADES,
)
def exit_against_dma(bench: LitmusBench) -> Tasks:
    """Files are closed after the memory is gone."""
    world = _Exported(bench)
    world.exported.register(world.importer)
    world.device.transact(0, False)

    def device() -> str:
        done = world.device.transact(0, False)
        return "page fault" if done is None else done.name

    def process() -> None:
        world.tiny.vm.exit_mm()

    return Tasks(device, process)


@FAMILY.program(
    "hwpt-destroy-against-flush",
    title="an HWPT is destroyed while KVM flushes",
    rule="an HWPT unregisters before its domain is freed",
    source="R14, reference 1.4; oracle O16",
    grades={
        "live": acceptable("told while the domain was there"),
        "not told": acceptable("unregistered before"),
        "freed": forbidden("a callback on a domain that was freed"),
    },
)
def hwpt_destroy_against_flush(bench: LitmusBench) -> Tasks:
    """Drain, unbind, free, put."""
    world = _Exported(bench)
    told = bench.cell("told", "not told")
    hwpt = world.tiny.vm.attach(world.device, world.fd)

    class Told(Instrument):
        @override
        def importer_called(self, importer: object, gfn: int, pages: int) -> None:
            told.store("live" if hwpt.live.value else "freed")

    bench.probe.attach(Told())

    def destroyer() -> None:
        hwpt.destroy()

    def flusher() -> str:
        world.tiny.vm.tlb.notify_importers(0, 1)
        return str(told.value)

    return Tasks(destroyer, flusher)


@FAMILY.program(
    "unexport-against-guest",
    title="the last close of a TDP FD against a guest with a filled TLB",
    rule="un-export zaps a root that stays valid and loaded, so it has to flush",
    source="kvm_mmu_put_exported_tdp(); R5, reference 1.6, oracle O1",
    grades={
        "old before": acceptable("the guest ran before the un-export was over"),
        "new before": acceptable("the vCPU has flushed, the close has not returned yet"),
        "new after": acceptable("the vCPU has flushed first"),
        "old after": forbidden(
            "a translation that is in no table any more: nobody will ever flush it"
        ),
    },
)
def unexport_against_guest(bench: LitmusBench) -> Tasks:
    """No later zap finds the leaf, so nothing else would flush."""
    world = _Exported(bench)
    vcpu, closed = world.vcpu, bench.cell("closed")
    vcpu.tlb.entries[0] = world.tiny.spte(world.root, 0)
    guest = ProbingGuest(vcpu, closed)

    def runner() -> str:
        vcpu.run(guest, 1)
        return guest.seen

    def closer() -> None:
        world.fd.put()
        closed.value = 1

    return Tasks(runner, closer)


@FAMILY.program(
    "userfault-against-io-fault",
    title="an IO page fault on a page that user space brings in, and a memslot ioctl of user space",
    rule="no lock that an ioctl needs is held while user space is waited for",
    source="kvm_tdp_fault() with slots_lock; R17, userfaultfd",
    grades={
        "True": acceptable("the page was brought in and mapped"),
        "deadlock": forbidden(
            "the fault waits for user space with slots_lock, and user space for slots_lock"
        ),
    },
)
def userfault_against_io_fault(bench: LitmusBench) -> Tasks:
    """The handler does its memslot business first."""
    tiny = bench.vm()
    userfaults = bench.queue("userfaultfd")
    region = tiny.slot(userfaults=userfaults)
    fd = tiny.export()

    def io_fault() -> bool:
        return fd.fault(0, write=False)

    def handler() -> None:
        bench.runtime.wait_until("a userfault", lambda: len(userfaults) > 0)
        with tiny.kvm.slots_lock:
            pass
        tiny.vm.host.resolve(region, 0)

    return Tasks(io_fault, handler)
