"""KVM_CREATE_TDP_FD: export one TDP root through a file-backed object (reference 1.3-1.7)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from attrs import frozen

from mmu.errors import KvmError
from mmu.export.importer import ExportedTdp, ExportedTdps, ImporterOps
from mmu.kvm import ADDRESS_SPACES, Kvm
from mmu.memory.memslots import KVM_MEM_READONLY, Memslots
from mmu.memory.tlb import RemoteTlb
from mmu.paging.table import RootPage, RootRole
from mmu.sync.refcount import Refcount
from mmu.tdp.fault import Fault, FaultHandler, PageCache, RetPf
from mmu.tdp.roots import Roots
from mmu.tdp.zap import Zapper


@frozen(eq=False)
class TdpMetadata:
    """kvm_exported_tdp_meta_vmx: what an IOMMU driver needs to program the root."""

    root: RootPage
    level: int
    max_huge_page_level: int = 1


class TdpFd:
    """A reference-counted TDP FD. `count` is the file's: 1 for user space, 1 for each `get`; release runs at 0."""

    def __init__(self, exporter: Exporter, exported: ExportedTdp) -> None:
        self.exported = exported
        self.count: Refcount = exporter.kvm.sync.refcount(f"tdp_fd[{exported.as_id}]", 1)
        self._exporter = exporter

    def get(self) -> TdpFd:
        """kvm_tdp_fd_get()."""
        self.count.get()
        return self

    def put(self) -> None:
        """kvm_tdp_fd_put() and close(): the last one un-exports the root."""
        if self.count.put():
            self._exporter.release(self.exported)

    def register_importer(self, ops: ImporterOps) -> None:
        """Bind an importer: it hears of every flush from now on."""
        self.exported.register(ops)

    def unregister_importer(self, ops: ImporterOps) -> None:
        """Unbind it."""
        self.exported.unregister(ops)

    def metadata(self) -> TdpMetadata:
        """get_metadata(): the blob composed at export."""
        root = self.exported.root.value
        if root is None:
            raise KvmError(errno.ENODEV, "the TDP FD was released: its root is not exported any more")
        return TdpMetadata(root, root.level)

    def fault(self, gfn: int, write: bool) -> bool:
        """The `fault` op: map `gfn` in the exported root; whether the device may go on."""
        return self._exporter.fault(self.exported, gfn, write)


class Exporter:
    """Creates, serves and releases exported TDPs (arch/x86/kvm, patches 04-08 and 35-38, with the mends of `hardened`)."""

    def __init__(
        self,
        kvm: Kvm,
        exported_tdps: ExportedTdps,
        roots: Roots,
        zapper: Zapper,
        tlb: RemoteTlb,
        memslots: Memslots,
        faults: FaultHandler,
        put_vm: Callable[[], None],
    ) -> None:
        self.kvm = kvm
        self.exported_tdps = exported_tdps
        self.roots = roots
        self.zapper = zapper
        self.tlb = tlb
        self.memslots = memslots
        self.faults = faults
        self.cache_lock = kvm.sync.mutex("exported_tdp_cache_lock")
        self._cache = PageCache(kvm)
        self._put_vm = put_vm

    def create(self, as_id: int) -> TdpFd:
        """kvm_create_tdp_fd(): everything is set up before the fd can be seen (the mend of R3)."""
        kvm = self.kvm
        if not kvm.config.have_exported_tdp:
            raise KvmError(errno.EOPNOTSUPP, "this VM was built with have_exported_tdp = false")
        if not 0 <= as_id < ADDRESS_SPACES:
            raise KvmError(errno.EINVAL, f"address space {as_id} does not exist: 0 or 1 does")
        if as_id != 0:
            raise KvmError(errno.EINVAL, "only address space 0 can be exported")
        if not kvm.users_count.inc_not_zero():
            raise KvmError(errno.ENOENT, "the VM is being destroyed")
        exported = ExportedTdp(kvm, as_id)
        try:
            self.exported_tdps.insert(exported)
        except KvmError:
            self._put_vm()
            raise
        self.get_exported_tdp(exported)
        return TdpFd(self, exported)

    def get_exported_tdp(self, exported: ExportedTdp) -> None:
        """kvm_mmu_get_exported_tdp(): find or make the root of the address space and mark it exported."""
        kvm = self.kvm
        with self.cache_lock:
            self._cache.topup()
            kvm.mmu_lock.write_lock()
            root = self.roots.get_vcpu_root(RootRole(exported.as_id))
            if root.exported.value:
                self._warn_exported_twice(root)
            root.exported.value = True
            exported.root.value = root
            kvm.mmu_lock.write_unlock()

    def _warn_exported_twice(self, root: RootPage) -> None:
        self.kvm.warn(
            "O12",
            "exported-twice",
            f"WARNING: {root.describe()} is exported already",
            "one flag stands for one exporter: the first to close would un-export the root under the other's importer",
            "kvm_mmu_get_exported_tdp() WARN; reference 1.5, R1, invariant I5",
        )

    def release(self, exported: ExportedTdp) -> None:
        """kvm_tdp_fd_release(): the last file reference is gone.

        Importers that never unregistered hear of the un-export's flush, so they go after it. The object leaves the list
        last: as long as it is there nobody can export the same root again, and have the
        `exported` flag cleared behind his back (the other half of the mend of R1; the posted order is list first).
        """
        self.put_exported_tdp(exported)
        exported.unregister_all()
        self.exported_tdps.remove(exported)
        self._put_vm()

    def put_exported_tdp(self, exported: ExportedTdp) -> None:
        """kvm_mmu_put_exported_tdp(): un-export; what the device used is zapped and flushed before the reference goes."""
        kvm = self.kvm
        if kvm.probe.point is not None:
            kvm.probe.point("P17")
        with self.cache_lock:
            self._cache.drain()
        kvm.mmu_lock.write_lock()
        root = exported.root.value
        assert root is not None
        root.exported.value = False
        self.zap_unexported(root)
        self.roots.put_root(root, shared=False)
        exported.root.value = None
        kvm.mmu_lock.write_unlock()

    def zap_unexported(self, root: RootPage) -> None:
        """Zap the leaves and flush. The root stays valid and loaded, so a zap of its tables without a flush (R5) would
        leave vCPUs with translations, and partial walks, into freed memory."""
        if self.zapper.zap_leafs(root, 0, self.kvm.geometry.max_gfn + 1, can_yield=False, flush=False):
            self.tlb.flush("un-export")

    def fault(self, exported: ExportedTdp, gfn: int, write: bool) -> bool:
        """kvm_tdp_fault(): slots_lock keeps the slots still, so no SRCU section is needed; retried until decided."""
        with self.kvm.slots_lock:
            try:
                ok = self.fault_locked(exported, gfn, write)
            except KvmError:
                return False  # the host has no memory left: the fault cannot be served, whatever the slots say
            if self.kvm.probe.io_fault_answered is not None:
                self.kvm.probe.io_fault_answered(gfn, write, ok, self.mappable(exported, gfn, write))
        return ok

    def fault_locked(self, exported: ExportedTdp, gfn: int, write: bool) -> bool:
        """kvm_mmu_fault_exported_tdp(). SPURIOUS counts as success (the mend of R7); every attempt starts from a fresh
        fault, so nothing stale is carried over (the mend of R8)."""
        while True:
            fault = Fault()
            fault.gfn, fault.write, fault.as_id = gfn, write, exported.as_id
            result = self._attempt(exported, fault)
            if result is not RetPf.RETRY:
                return self.answer(result)
            self.kvm.runtime.relax()

    def answer(self, result: RetPf) -> bool:
        """What the importer is told."""
        return result in (RetPf.FIXED, RetPf.SPURIOUS)

    def mappable(self, exported: ExportedTdp, gfn: int, write: bool) -> bool:
        """Whether the slots allow the access; slots_lock is held."""
        slot = self.memslots.gfn_to_memslot(exported.as_id, gfn)
        if slot is None or slot.invalid:
            return False
        return not write or (slot.region.writable and not slot.flags & KVM_MEM_READONLY)

    def _attempt(self, exported: ExportedTdp, fault: Fault) -> RetPf:
        kvm = self.kvm
        result = self.faults.faultin_pfn(fault)
        if result is not RetPf.CONTINUE:
            return result
        with self.cache_lock:
            self._cache.topup()
            kvm.mmu_lock.read_lock()
            root = exported.root.value
            if root is None:
                result = RetPf.EMULATE
            elif self.faults.is_page_fault_stale(root, fault):
                if kvm.probe.fault_stale is not None:
                    kvm.probe.fault_stale(None, fault.gfn, "root" if root.invalid.value else "notifier")
                result = RetPf.RETRY
            else:
                result = self.faults.map(root, self._cache, fault)
            kvm.mmu_lock.read_unlock()
        return result
