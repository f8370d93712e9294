"""O1 and O16 by obligation: what was removed from a valid root must be flushed before mmu_lock is released."""

from __future__ import annotations

import threading

from mmu.export.importer import ExportedTdp
from mmu.machine.vm import VirtualMachine
from mmu.memory.tlb import WHOLE
from mmu.paging.table import RootPage, ShadowPage
from stress.oracles.base import Oracle
from stress.scenario.types import Limits


class _Debts(threading.local):
    """What the calling thread owes: the last gfn removed from each valid root, for vCPUs and for importers."""

    def __init__(self) -> None:
        self.vcpus: dict[RootPage, int] = {}
        self.importers: dict[RootPage, int] = {}


class FlushOracle(Oracle):
    """Keeps a ledger of removed translations a thread, settled by flushes, due when mmu_lock(write) is released."""

    rules = ("O1", "O16")
    title = "removals from a valid root are flushed, and importers told, before mmu_lock is released"

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        super().__init__(vm, limits)
        self._debts = _Debts()

    def spte_zapped(self, sp: ShadowPage, gfn: int, level: int, old: int, new: int, shared: bool) -> None:
        """A present SPTE went away or changed."""
        root = sp.root
        if root is None or root.invalid.value or self.kvm.dying.value:
            return
        debts = self._debts
        debts.vcpus[root] = gfn
        if root.exported.value:
            debts.importers[root] = gfn

    def flush_end(self, reason: str, gfn: int, pages: int, ns: int) -> None:
        """The vCPUs are flushed."""
        if pages == WHOLE:
            self._debts.vcpus.clear()

    def importers_notified(self, exported: ExportedTdp, gfn: int, pages: int) -> None:
        """One exported root's importers are told."""
        root = exported.root.value
        if pages == WHOLE and root is not None:
            self._debts.importers.pop(root, None)

    def mmu_write_unlocking(self) -> None:
        """Payday."""
        debts = self._debts
        for root, gfn in debts.vcpus.items():
            self.kvm.warn(
                "O1",
                "missing-flush",
                f"WARNING: mmu_lock released although {root.describe()} lost leaves that nobody flushed",
                "what was removed from a valid root must be flushed from every TLB before mmu_lock is released",
                "reference 2.7 tdp_mmu_zap_leafs() return value, 2.10; B03, B11",
                gfn=gfn,
            )
        bound = [exported.root.value for exported in self.vm.exported_tdps.all() if exported.importers()] if debts.importers else []
        for root, gfn in debts.importers.items():
            if root not in bound:
                continue
            self.kvm.warn(
                "O16",
                "importer-not-told",
                f"WARNING: mmu_lock released although {root.describe()} lost leaves that no importer was told of",
                "an importer must be told between the removal of an SPTE and the completion of the operation",
                "reference 1.8 (patch 42), invariant I18",
                gfn=gfn,
            )
        debts.vcpus.clear()
        debts.importers.clear()
