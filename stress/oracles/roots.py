"""O12: nobody uses an obsolete root, and an exported root stays valid."""

from __future__ import annotations

import threading

from mmu.machine.vcpu import Vcpu
from mmu.machine.vm import VirtualMachine
from mmu.paging.table import RootPage
from stress.oracles.base import Oracle
from stress.scenario.types import Limits


class RootOracle(Oracle):
    """Watches invalidation and guest entry; the model itself refuses to map into an invalid root unseen."""

    rules = ("O12",)
    title = "no vCPU runs on, or keeps, an obsolete root; an exported root never becomes invalid"

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        super().__init__(vm, limits)
        self._lock = threading.Lock()
        self._obsolete: frozenset[int] = frozenset()

    def root_invalidated(self, root: RootPage) -> None:
        """An exported root may not be invalidated."""
        if root.exported.value:
            self.kvm.warn(
                "O12",
                "exported-root-invalid",
                f"BUG: {root.describe()} was invalidated while an importer walks it",
                "an importer has no request and no kick: its root must stay valid until it is un-exported",
                "RFC PATCH 36/42, invariant I5; reference 1.10",
            )

    def roots_kicked(self, roots: list[RootPage]) -> None:
        """From here on no vCPU may be in the guest with one of these roots."""
        if roots:
            with self._lock:
                self._obsolete = self._obsolete | {root.address for root in roots}

    def root_freed(self, root: RootPage) -> None:
        """Nobody can use it any more."""
        with self._lock:
            self._obsolete = self._obsolete - {root.address}

    def guest_enter(self, vcpu: Vcpu) -> None:
        """Entered with an obsolete root after the request was acknowledged, or with one still in hand?"""
        if not self._obsolete:
            return
        root = vcpu.root
        if root is not None and root.address in self._obsolete:
            self.kvm.warn(
                "O12",
                "guest-on-obsolete-root",
                f"BUG: {vcpu} runs the guest on obsolete {root.describe()}",
                "after KVM_REQ_MMU_FREE_OBSOLETE_ROOTS was acknowledged, no vCPU may enter the guest on an invalidated root",
                "kvm_vcpu_exit_request(), reference 2.8 root load, P20",
            )
        for kept in vcpu.prev_roots:
            if kept.address in self._obsolete:
                self._kept(vcpu, kept)

    def _kept(self, vcpu: Vcpu, root: RootPage) -> None:
        self.kvm.warn(
            "O12",
            "obsolete-root-kept",
            f"BUG: {vcpu} has acknowledged that its roots are obsolete, and keeps {root.describe()} among its previous ones",
            "KVM_REQ_MMU_FREE_OBSOLETE_ROOTS drops every obsolete root, the previous ones too, whatever the current root is",
            "__kvm_mmu_free_obsolete_roots(), cf4a8693d97a; reference 2.8, B26",
        )
