"""Exported TDPs and their importers: who must be told when a translation goes away (reference 1.4,
1.8)."""

from __future__ import annotations

import errno
from typing import Final, Protocol

from mmu.errors import KvmError
from mmu.kvm import Kvm
from mmu.paging.table import RootPage
from mmu.runtime import Cell


class ImporterOps(Protocol):
    """kvm_tdp_importer_ops. `invalidate` is called under spinlocks, usually under mmu_lock: it must
    not sleep nor call KVM. The other two are what the republish policy needs beyond the series;
    they are called without spinning locks."""

    def invalidate(self, gfn: int, pages: int) -> None:
        """Stop using translations of `pages` frames from `gfn` on (`tlb.WHOLE`: all) before
        returning."""
        ...

    def switch_root(self, root: RootPage) -> bool:
        """Walk `root` from now on and drop every translation of the one before. May sleep; true
        acknowledges, false is a failure or a timeout, after which `revoke` follows."""
        ...

    def revoke(self) -> None:
        """Stop walking any root, at once and without fail: every access is blocked until the
        importer comes back."""
        ...


class ExportedTdp:
    """struct kvm_exported_tdp: one exported address space with its root and the importers bound to
    it.

    `bind_lock` makes registering an importer and programming the root into its hardware one step,
    against a switch of the root and against un-export.
    """

    STANDS_FOR: Final = "virt/kvm/tdp_fd.c of the series: struct kvm_exported_tdp"

    def __init__(self, kvm: Kvm, as_id: int) -> None:
        self.kvm = kvm
        self.as_id = as_id
        self.bind_lock = kvm.sync.mutex("exported_bind_lock")
        self.importer_lock = kvm.sync.spinlock("importer_lock")
        self.root: Cell[RootPage | None] = kvm.runtime.cell("exported.root", None)
        self.released: Cell[bool] = kvm.runtime.cell("exported.released", False)
        self._importers: Cell[tuple[ImporterOps, ...]] = kvm.runtime.cell("exported.importers", ())

    def register(self, ops: ImporterOps) -> None:
        """register_importer(): -EBUSY when the same ops are registered already."""
        with self.importer_lock:
            if ops in self._importers.value:
                raise KvmError(errno.EBUSY, "this importer is already registered with the TDP FD")
            self._importers.value = (*self._importers.value, ops)

    def unregister(self, ops: ImporterOps) -> None:
        """unregister_importer(): on return no callback of `ops` is running and none will run."""
        with self.importer_lock:
            self._importers.value = tuple(
                other for other in self._importers.value if other is not ops
            )

    def unregister_all(self) -> None:
        """At release."""
        with self.importer_lock:
            self._importers.value = ()

    def importers(self) -> tuple[ImporterOps, ...]:
        """Who is bound now."""
        return self._importers.value

    def notify(self, gfn: int, pages: int) -> None:
        """Call every importer's `invalidate`, under importer_lock."""
        start = self.kvm.runtime.now()
        with self.importer_lock:
            for ops in self._importers.value:
                if self.kvm.probe.importer_called is not None:
                    self.kvm.probe.importer_called(ops, gfn, pages)
                ops.invalidate(gfn, pages)
        if self.kvm.probe.importers_notified is not None:
            self.kvm.probe.importers_notified(self, gfn, pages, self.kvm.runtime.now() - start)


class ExportedTdps:
    """kvm->exported_tdp_list: at most one object an address space."""

    STANDS_FOR: Final = "virt/kvm/tdp_fd.c of the series: kvm->exported_tdp_list"

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.exported_tdplist_lock = kvm.sync.spinlock("exported_tdplist_lock")
        self._list: Cell[tuple[ExportedTdp, ...]] = kvm.runtime.cell("exported_tdp_list", ())
        self._claims: Cell[tuple[ExportedTdp, ...]] = kvm.runtime.cell("exported_tdp_claims", ())

    def reserve(self, exported: ExportedTdp) -> None:
        """Check and insert in one critical section (the mend of R1): -EEXIST when the address space
        is exported."""
        with self.exported_tdplist_lock:
            self.refuse_second(exported)
            self.claim(exported)
            self.insert_early(exported)

    def claim(self, exported: ExportedTdp) -> None:
        """The address space is taken from now on; exported_tdplist_lock is held."""
        self._claims.value = (*self._claims.value, exported)

    def insert_early(self, exported: ExportedTdp) -> None:
        """On the list before anybody can see the object; exported_tdplist_lock is held."""
        self.insert(exported)

    def publish(self, exported: ExportedTdp) -> None:
        """The object is complete. It is on the list already."""

    def refuse_second(self, exported: ExportedTdp) -> None:
        """-EEXIST when the address space is exported; exported_tdplist_lock is held."""
        if any(other.as_id == exported.as_id for other in (*self._claims.value, *self._list.value)):
            raise KvmError(
                errno.EEXIST,
                f"address space {exported.as_id} is exported already: close that TDP FD first",
            )

    def insert(self, exported: ExportedTdp) -> None:
        """list_add(); exported_tdplist_lock is held."""
        if exported.released.value:
            self._corrupt("an exported TDP is added that was released and freed")
            return
        self._list.value = (*self._list.value, exported)

    def remove(self, exported: ExportedTdp) -> None:
        """list_del(): no notification reaches it any more."""
        with self.exported_tdplist_lock:
            if exported not in self._list.value:
                self._corrupt("an exported TDP is removed that was never added")
            self._list.value = tuple(other for other in self._list.value if other is not exported)
            self._claims.value = tuple(
                other for other in self._claims.value if other is not exported
            )

    def all(self) -> tuple[ExportedTdp, ...]:
        """What is exported now."""
        return self._list.value

    def flush_notify(self, gfn: int, pages: int) -> None:
        """kvm_tdp_fd_flush_notify(): every importer of every exported TDP of the VM."""
        with self.exported_tdplist_lock:
            for exported in self._list.value:
                exported.notify(gfn, pages)

    def _corrupt(self, what: str) -> None:
        self.kvm.warn(
            "O17",
            "list-corruption",
            f"BUG: list corruption on exported_tdp_list: {what}",
            "the object is complete and listed before its fd can be seen, and leaves the list once",
            "kvm_create_tdp_fd(), R3; DEBUG_LIST; reference 1.5",
            subject=what,
        )
