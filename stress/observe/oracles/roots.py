"""O12: nobody uses an obsolete root, and an exported root stays valid. O4: nobody goes on in a root
that is gone."""

from __future__ import annotations

import threading

from mmu.machine.vcpu import Vcpu
from mmu.machine.vm import VirtualMachine
from mmu.paging.table import RootPage, RootRole
from mmu.probe import override
from mmu.sync.lockdep import WRITE
from mmu.sync.poison import is_poisoned
from stress.observe.oracles.base import Oracle
from stress.scenario.types import Limits


class RootOracle(Oracle):
    """Watches invalidation, guest entry, and the list of roots whenever it may have changed; the
    model itself refuses to map into an invalid root unseen."""

    rules = ("O12", "O4")
    title = (
        "no vCPU runs on, or keeps, an obsolete root; an exported root never becomes invalid; a "
        "role has one valid root; walks hold their root"
    )

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        super().__init__(vm, limits)
        self._lock = threading.Lock()
        self._obsolete: frozenset[int] = frozenset()
        self._invalidated: dict[int, None] = {}
        """Roots that were walked when they were invalidated, which is reported once."""

    @override
    def root_invalidated(self, root: RootPage) -> None:
        self.judged["O12"].add(1)
        if root.exported.value or any(device.root.value is root for device in self.vm.devices()):
            self._invalidated[root.address] = None
            self.kvm.warn(
                "O12",
                "exported-root-invalid",
                f"BUG: {root.describe()} was invalidated while an importer walks it",
                "an importer has no request and no kick: its root must stay valid until it is "
                "un-exported",
                "RFC PATCH 36/42, invariant I5; reference 1.10",
            )

    @override
    def root_allocated(self, root: RootPage) -> None:
        # Under mmu_lock held for write the section may go on to export the root: judged at its end.
        if self.kvm.mmu_lock.held_mode() != WRITE:
            self._judge_roles()

    @override
    def mmu_write_unlocking(self) -> None:
        self._judge_roles()

    def _judge_roles(self) -> None:
        """Every root as it is now. mmu_lock is held, so none becomes valid, invalid or exported."""
        valid: dict[RootRole, RootPage] = {}
        self.kvm.rcu.read_lock()
        for root in self.vm.roots.each_rcu():
            if root.invalid.value:
                if root.exported.value and root.address not in self._invalidated:
                    self._exported_invalid(root)
                continue
            first = valid.setdefault(root.role, root)
            # a republish has two for a while: every importer switches from one to the other
            if first is not root and not (root.exported.value and first.exported.value):
                self._two_of_a_role(first, root)
        self.kvm.rcu.read_unlock()

    def _exported_invalid(self, root: RootPage) -> None:
        self.kvm.warn(
            "O12",
            "invalid-root-exported",
            f"BUG: {root.describe()} is exported although it was invalidated",
            "a root is found and marked exported in one section of mmu_lock(write): in between it "
            "could be invalidated, and would be zapped without a flush under the importer",
            "kvm_mmu_get_exported_tdp(), invariant I5; reference 1.5",
        )

    def _two_of_a_role(self, first: RootPage, second: RootPage) -> None:
        self.kvm.warn(
            "O12",
            "two-roots-of-one-role",
            f"BUG: {first.describe()} and {second.describe()} are both valid",
            "a role has one valid root, which every vCPU of that role shares: who makes one has "
            "looked for it under the lock that adds it to the list",
            "kvm_tdp_mmu_get_vcpu_root_hpa(); reference 2.2",
            subject=str(first.role),
        )

    @override
    def roots_kicked(self, roots: list[RootPage]) -> None:
        # From here on no vCPU may be in the guest with one of these roots.
        if roots:
            with self._lock:
                self._obsolete = self._obsolete | {root.address for root in roots}

    @override
    def root_freed(self, root: RootPage) -> None:
        with self._lock:
            self._obsolete = self._obsolete - {root.address}

    @override
    def guest_enter(self, vcpu: Vcpu) -> None:
        if not self._obsolete:
            return
        self.judged["O12"].add(1)
        root = vcpu.root
        if root is not None and root.address in self._obsolete:
            self.kvm.warn(
                "O12",
                "guest-on-obsolete-root",
                f"BUG: {vcpu} runs the guest on obsolete {root.describe()}",
                "after KVM_REQ_MMU_FREE_OBSOLETE_ROOTS was acknowledged, no vCPU may enter the "
                "guest on an invalidated root",
                "kvm_vcpu_exit_request(), reference 2.8 root load, P20",
            )
        for kept in vcpu.prev_roots:
            if kept.address in self._obsolete:
                self._kept(vcpu, kept)

    def _kept(self, vcpu: Vcpu, root: RootPage) -> None:
        self.kvm.warn(
            "O12",
            "obsolete-root-kept",
            f"BUG: {vcpu} has acknowledged that its roots are obsolete, and keeps "
            f"{root.describe()} among its previous ones",
            "KVM_REQ_MMU_FREE_OBSOLETE_ROOTS drops every obsolete root, the previous ones too, "
            "whatever the current root is",
            "__kvm_mmu_free_obsolete_roots(), cf4a8693d97a; reference 2.8, B26",
        )

    @override
    def zap_yielded(self, root: RootPage, since: int, goal: int) -> None:
        # The walk had dropped mmu_lock, so a reference must have kept the root meanwhile.
        self.judged["O4"].add(1)
        if is_poisoned(root) or root.refcount.read():
            return  # a root that is freed already reports its next use itself
        self.kvm.warn(
            "O4",
            "walk-of-dead-root",
            f"BUG: a walk goes on at gfn {goal:#x} of {root.describe()}, whose last reference went "
            "while it had yielded",
            "whoever drops mmu_lock inside a root holds a reference on it, or it may be unlinked "
            "and freed meanwhile",
            "tdp_mmu_next_root(), 7533377215b6; reference 2.3, B17",
            gfn=goal,
        )
