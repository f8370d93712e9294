"""KVM_CREATE_TDP_FD: export one TDP root through a file-backed object (reference 1.3-1.7)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from attrs import frozen

from mmu.errors import KvmError
from mmu.export.importer import ExportedTdp, ExportedTdps, ImporterOps
from mmu.kvm import ADDRESS_SPACES, Kvm
from mmu.memory.memslots import KVM_MEM_READONLY, Memslots
from mmu.memory.tlb import RemoteTlb
from mmu.paging.spte import PFN_SHIFT, SPTE_PS
from mmu.paging.table import RootPage, RootRole, ShadowPage
from mmu.runtime import Cell
from mmu.sync.refcount import Refcount
from mmu.tdp.dirty import DirtyLog
from mmu.tdp.fault import Fault, FaultHandler, PageCache, RetPf
from mmu.tdp.roots import Roots
from mmu.tdp.zap import Zapper

TYPE_EPT = "ept"


@frozen(eq=False)
class TdpMetadata:
    """kvm_exported_tdp_meta_vmx: what an IOMMU driver needs to program the root. `root` stands for
    root_hpa; `reserved_bits` are bits that are never set in a present entry, for leaves by level
    (index 0 unused)."""

    type: str
    root: RootPage
    level: int
    max_huge_page_level: int
    reserved_bits: tuple[int, ...]


class TdpFd:
    """A reference-counted TDP FD. `count` is the file's: 1 for user space, 1 for each `get`;
    release runs at 0.

    `number` is what user space sees, 0 until it is installed in its file table.
    """

    STANDS_FOR: Final = (
        "virt/kvm/tdp_fd.c of the series: struct kvm_tdp_fd, kvm_tdp_fd_get(), kvm_tdp_fd_put()"
    )

    def __init__(self, exporter: Exporter, exported: ExportedTdp) -> None:
        self.exported = exported
        self.count: Refcount = exporter.kvm.sync.refcount(f"tdp_fd[{exported.as_id}]", 1)
        self.number: Cell[int] = exporter.kvm.runtime.cell("tdp_fd.number", 0)
        self._exporter = exporter

    def get(self) -> TdpFd:
        """kvm_tdp_fd_get(): -EBADF once it is closed for good."""
        if not self.count.inc_not_zero():
            raise KvmError(errno.EBADF, "the TDP FD was closed")
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
        return self._exporter.metadata(self.exported)

    def fault(self, gfn: int, write: bool) -> bool:
        """The `fault` op: map `gfn` in the exported root; whether the device may go on."""
        return self._exporter.fault(self.exported, gfn, write)


class Exporter:
    """Creates, serves and releases exported TDPs (arch/x86/kvm, patches 04-08 and 35-38, with the
    mends of `hardened`)."""

    STANDS_FOR: Final = "virt/kvm/tdp_fd.c of the series: kvm_create_tdp_fd(), kvm_tdp_fd_release()"

    def __init__(
        self,
        kvm: Kvm,
        exported_tdps: ExportedTdps,
        roots: Roots,
        zapper: Zapper,
        tlb: RemoteTlb,
        memslots: Memslots,
        faults: FaultHandler,
        dirty: DirtyLog,
        put_vm: Callable[[], None],
        mmput: Callable[[], None],
    ) -> None:
        self.kvm = kvm
        self.exported_tdps = exported_tdps
        self.roots = roots
        self.zapper = zapper
        self.tlb = tlb
        self.memslots = memslots
        self.faults = faults
        self.dirty = dirty
        self.cache_lock = kvm.sync.mutex("exported_tdp_cache_lock")
        self.files: Cell[tuple[TdpFd, ...]] = kvm.runtime.cell("files", ())
        """The TDP FDs in user space's file table; a closed one leaves it."""
        self._numbers = kvm.runtime.counter("next_fd", 3)
        self.wrong_answers = kvm.runtime.counter("exporter.wrong_answers")
        """IO faults answered otherwise than the slots would have it (I19)."""
        self._cache = PageCache(kvm)
        self._put_vm = put_vm
        self._mmput = mmput

    # Creation.

    def create(self, as_id: int) -> TdpFd:
        """kvm_create_tdp_fd(): everything is set up before the fd can be seen (the mend of R3)."""
        kvm = self.kvm
        if not kvm.config.have_exported_tdp:
            raise KvmError(errno.EOPNOTSUPP, "this VM was built with have_exported_tdp = false")
        if not 0 <= as_id < ADDRESS_SPACES:
            raise KvmError(errno.EINVAL, f"address space {as_id} does not exist: 0 or 1 does")
        if as_id != 0:
            raise KvmError(errno.EINVAL, "only address space 0 can be exported")
        if not self.get_vm():
            raise KvmError(errno.ENOENT, "the VM is being destroyed")
        exported = kvm.parts[ExportedTdp](kvm, as_id)
        try:
            self.exported_tdps.reserve(exported)
        except KvmError:
            self.put_vm()
            raise
        if not self.get_exported_tdp(exported):
            self.exported_tdps.remove(exported)
            self.put_vm()
            raise KvmError(errno.ESRCH, "the process that owns the VM has exited")
        fd = kvm.parts[TdpFd](self, exported)
        if kvm.should_fail("get_unused_fd"):
            self.abandon(fd)
            raise KvmError(errno.EMFILE, "no free file descriptor (injected)")
        self.finish(fd)
        return fd

    def get_vm(self) -> bool:
        """kvm_get_kvm_safe(): a TDP FD keeps the VM, whose tables its importers walk, for as long
        as it is open."""
        return self.kvm.users_count.inc_not_zero()

    def put_vm(self) -> None:
        """kvm_put_kvm(): the counterpart; the last one destroys the VM."""
        self._put_vm()

    def finish(self, fd: TdpFd) -> None:
        """List the object, and install the fd as the very last step."""
        self.exported_tdps.publish(fd.exported)
        self.fd_install(fd)

    def abandon(self, fd: TdpFd) -> None:
        """Creation failed after the file exists: its release undoes everything, once (the mend of
        R4)."""
        fd.put()

    def fd_install(self, fd: TdpFd) -> None:
        """fd_install(): from here on user space can use and close it."""
        fd.number.value = self._numbers.fetch_add(1)
        while True:
            seen = self.files.value
            if self.files.cmpxchg(seen, (*seen, fd)) == seen:
                return

    def close(self, fd: TdpFd) -> bool:
        """close(): drop user space's own reference; false when somebody has closed that fd
        before."""
        while True:
            seen = self.files.value
            if fd not in seen:
                return False
            if self.files.cmpxchg(seen, tuple(other for other in seen if other is not fd)) == seen:
                break
        fd.put()
        return True

    def get_exported_tdp(self, exported: ExportedTdp) -> bool:
        """kvm_mmu_get_exported_tdp(): find or make the root of the address space and mark it
        exported; not once the process is gone, whose memory is being unmapped."""
        kvm = self.kvm
        token = kvm.srcu.read_lock()
        with self.cache_lock:
            self._cache.topup()
            kvm.mmu_lock.write_lock()
            alive = not kvm.mm_gone.value
            if alive:
                root = self.roots.get_vcpu_root(self.export_role(exported.as_id))
                if root.exported.value:
                    self._warn_exported_twice(root)
                root.exported.value = True
                exported.root.value = root
                self.dirty.protect_exported(root, self.memslots)
            kvm.mmu_lock.write_unlock()
            if not alive:
                self._cache.drain()
        kvm.srcu.read_unlock(token)
        return alive

    def export_role(self, as_id: int) -> RootRole:
        """The role of the root that is exported: the one that vCPUs use, outside SMM and nested
        guests."""
        return RootRole(as_id)

    def metadata(self, exported: ExportedTdp) -> TdpMetadata:
        """kvm_arch_exported_tdp_get_metadata()."""
        root = exported.root.value
        if root is None:
            raise KvmError(
                errno.ENODEV, "the TDP FD was released: its root is not exported any more"
            )
        geometry = self.kvm.geometry
        largest = min(self.kvm.config.max_level, geometry.levels)
        reserved = tuple(
            (geometry.pages(level) - 1) << PFN_SHIFT if level <= largest else SPTE_PS
            for level in range(1, root.level + 1)
        )
        return TdpMetadata(TYPE_EPT, root, root.level, largest, (0, *reserved))

    def _warn_exported_twice(self, root: RootPage) -> None:
        self.kvm.warn(
            "O12",
            "exported-twice",
            f"WARNING: {root.describe()} is exported already",
            "one flag stands for one exporter: the first to close would un-export the root under "
            "the other's importer",
            "kvm_mmu_get_exported_tdp() WARN; reference 1.5, R1 double export race, invariant I5",
        )

    def cached_pages(self) -> list[ShadowPage]:
        """The table pages set aside for IO faults, for checks at a quiescent point."""
        return self._cache.pages

    # Release.

    def release(self, exported: ExportedTdp) -> None:
        """kvm_tdp_fd_release(): the last file reference is gone.

        Importers that never unregistered hear of the un-export's flush, so they go after it. The
        object leaves the list last: as long as it is there nobody can export the same root again,
        and have the `exported` flag cleared behind his back (the other half of the mend of R1; the
        posted order is list first).
        """
        self.retract(exported)
        self.exported_tdps.remove(exported)
        exported.released.value = True
        self.put_vm()

    def retract(self, exported: ExportedTdp) -> None:
        """Un-export the root, then cut off the importers that are left."""
        with exported.bind_lock:
            self.put_exported_tdp(exported)
            exported.unregister_all()

    def put_exported_tdp(self, exported: ExportedTdp) -> None:
        """kvm_mmu_put_exported_tdp(): un-export; what the device used is zapped and flushed before
        the reference goes."""
        kvm = self.kvm
        if kvm.probe.point is not None:
            kvm.probe.point("P17")
        with self.cache_lock:
            kvm.mmu_lock.write_lock()
            root = exported.root.value
            if root is None:
                self._warn_not_exported()
            else:
                root.exported.value = False
                self.zap_unexported(root)
                self.roots.put_root(root, shared=False)
                exported.root.value = None
            kvm.mmu_lock.write_unlock()
            self._cache.drain()

    def _warn_not_exported(self) -> None:
        self.kvm.warn(
            "O12",
            "not-exported",
            "WARNING: a root is un-exported that is not exported",
            "one flag stands for one exporter, who clears it once",
            "kvm_mmu_put_exported_tdp() WARN; reference 1.5, 1.6, invariant I5",
        )

    def zap_unexported(self, root: RootPage) -> None:
        """Zap the leaves and flush. The root stays valid and loaded, so a zap of its tables without
        a flush (R5) would leave vCPUs with translations, and partial walks, into freed memory. It
        may yield: the exporter's reference pins the root, and what vCPUs map behind it is
        theirs."""
        if self.zapper.zap_leafs(
            root, 0, self.kvm.geometry.max_gfn + 1, can_yield=True, flush=False
        ):
            self.tlb.flush("un-export")

    # IO page faults.

    def fault(self, exported: ExportedTdp, gfn: int, write: bool) -> bool:
        """kvm_tdp_fault(): on behalf of the VM's process, which must still exist; tried until it is
        decided."""
        if not self.kvm.mm_users.inc_not_zero():
            return False
        try:
            while True:
                self.prefault(exported, gfn)
                ok = self.fault_once(exported, gfn, write)
                if ok is not None:
                    return ok
        except KvmError:
            # the host has no memory left: the fault cannot be served, whatever the slots say
            return False
        finally:
            self._mmput()

    def prefault(self, exported: ExportedTdp, gfn: int) -> None:
        """Bring the page in before any of KVM's locks is taken (the mend of R17): whoever must
        provide it, such as a userfaultfd handler, may need slots_lock itself, or a memslot update
        that waits for SRCU readers."""
        token = self.kvm.srcu.read_lock()
        slot = self.memslots.gfn_to_memslot(exported.as_id, gfn)
        region, index = (
            (slot.region, gfn - slot.origin) if slot is not None and not slot.invalid else (None, 0)
        )
        self.kvm.srcu.read_unlock(token)
        if region is None or region.ptes[index] or region.dead.value:
            return
        try:
            self.faults.host.fault_in(region, index)
        except KvmError:
            if not region.dead.value:
                # no memory left; a region that has gone is the memslots' business, which are looked
                # at next
                raise

    def may_sleep(self) -> bool:
        """Whether the host may be waited for with slots_lock held (R17)."""
        return False

    def fault_once(self, exported: ExportedTdp, gfn: int, write: bool) -> bool | None:
        """Under slots_lock, which keeps the slots still, so no SRCU section is needed."""
        with self.kvm.slots_lock:
            start = self.kvm.runtime.now()
            ok = self.fault_locked(exported, gfn, write)
            if ok is not None:
                self._answered(exported, gfn, write, ok)
            if self.kvm.probe.io_fault_held is not None:
                self.kvm.probe.io_fault_held(self.kvm.runtime.now() - start)
        return ok

    def _answered(self, exported: ExportedTdp, gfn: int, write: bool, ok: bool) -> None:
        mappable = self.mappable(exported, gfn, write)
        if ok != mappable:
            self.wrong_answers.add(1)
        if self.kvm.probe.io_fault_answered is not None:
            self.kvm.probe.io_fault_answered(gfn, write, ok, mappable)

    def fault_locked(self, exported: ExportedTdp, gfn: int, write: bool) -> bool | None:
        """kvm_mmu_fault_exported_tdp(). None when the page has to be brought in first."""
        self.kvm.slots_lock.assert_held()
        fault: Fault | None = None
        while True:
            fault = self.next_fault(fault)
            fault.nowait = not self.may_sleep()
            fault.gfn, fault.write, fault.as_id = gfn, write, exported.as_id
            fault.nx_workaround = self.kvm.nx_huge_pages.value
            result = self._attempt(exported, fault)
            if result is RetPf.INVALID:
                return None
            if result is not RetPf.RETRY:
                return self.answer(result)
            if self.kvm.probe.io_fault_retried is not None:
                self.kvm.probe.io_fault_retried(gfn)
            if self.kvm.probe.point is not None:
                self.kvm.probe.point("P16")
            self.kvm.runtime.relax()

    def next_fault(self, previous: Fault | None) -> Fault:  # noqa: ARG002 - nothing is taken over
        """Every attempt starts from a fresh fault, so nothing stale is carried over (the mend of
        R8)."""
        return Fault()

    def answer(self, result: RetPf) -> bool:
        """What the importer is told: SPURIOUS means that a vCPU mapped the page first, which is a
        success (the mend of R7)."""
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
        if result is not RetPf.CONTINUE or fault.slot is None:
            return RetPf.EMULATE if result is RetPf.CONTINUE else result
        with self.cache_lock:
            self._cache.topup()
            kvm.mmu_lock.read_lock()
            root = exported.root.value
            if root is None:
                result = RetPf.EMULATE
            elif self.faults.is_page_fault_stale(root, fault):
                if kvm.probe.fault_stale is not None:
                    kvm.probe.fault_stale(
                        None, fault.gfn, "root" if root.invalid.value else "notifier"
                    )
                result = RetPf.RETRY
            else:
                result = self.faults.map(root, self._cache, fault)
            kvm.mmu_lock.read_unlock()
        return result
