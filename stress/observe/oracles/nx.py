"""O14: while the NX huge page mitigation is on, no executable huge leaf exists."""

from __future__ import annotations

from mmu.machine.vm import VirtualMachine
from mmu.paging.geometry import PG_LEVEL_2M
from mmu.paging.spte import SPTE_X, describe
from mmu.paging.table import RootPage, ShadowPage
from mmu.probe import override
from mmu.tdp.iter import TdpIter
from stress.observe.oracles.base import Oracle
from stress.scenario.types import Limits


class NxOracle(Oracle):
    """Judges every huge leaf as it is installed, outside the window of a toggle: from before the
    knob is written until everything that was mapped before is gone. Whoever installs holds
    mmu_lock, which a toggle needs before it can end."""

    rules = ("O14",)
    title = "no executable huge leaf is installed while the NX mitigation is on"

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        super().__init__(vm, limits)
        self._toggling = self.kvm.runtime.cell("oracle.nx_toggling", False)

    @override
    def nx_toggle_begin(self, on: bool) -> None:
        self._toggling.value = True

    @override
    def nx_toggle_end(self, on: bool) -> None:
        # The new policy holds for everything, also for what was installed while the knob was being
        # switched. kvm_lock is still held, so the knob is not switched again meanwhile.
        self._toggling.value = False
        if not on:
            return
        self.kvm.rcu.read_lock()
        for root in self.vm.roots.each_rcu():
            it = TdpIter(self.kvm, root, PG_LEVEL_2M, 0, self.kvm.geometry.max_gfn + 1)
            while it.valid:
                if self.kvm.layout.is_leaf(it.old_spte, it.level):
                    self._judge(root, it.gfn, it.level, it.old_spte)
                it.next_present()
        self.kvm.rcu.read_unlock()

    @override
    def huge_mapped(self, sp: ShadowPage, gfn: int, level: int, spte: int) -> None:
        if sp.root is not None and self.kvm.nx_huge_pages.value and not self._toggling.value:
            self._judge(sp.root, gfn, level, spte)

    def _judge(self, root: RootPage, gfn: int, level: int, spte: int) -> None:
        self.judged["O14"].add(1)
        if not spte & SPTE_X or root.role.iommu or root.invalid.value:
            return
        self.kvm.warn(
            "O14",
            "executable-huge-leaf",
            f"BUG: executable huge leaf at gfn {gfn:#x} level {level} of {root.describe()} while "
            "nx_huge_pages is on",
            "while the NX huge page mitigation is on no executable huge leaf may exist: a CPU "
            "could be crashed through it",
            "kvm_mmu_hugepage_adjust(), set_nx_huge_pages(); R10 NX toggle race; invariant I17",
            subject="huge",
            extra=(("SPTE", [describe(spte, self.kvm.layout)]),),
            gfn=gfn,
        )
