"""TDP MMU roots: allocation, references, the two ways to iterate, and invalidation (reference 2.2,
2.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mmu.kvm import Kvm
from mmu.paging.table import RootPage, RootRole
from mmu.runtime import Cell


class Roots:
    """`tdp_mmu_roots`: an RCU list. The TDP MMU holds one reference on each root until it is
    invalidated and zapped."""

    STANDS_FOR: Final = (
        "arch/x86/kvm/mmu/tdp_mmu.c: kvm_tdp_mmu_get_vcpu_root_hpa(), "
        "kvm_tdp_mmu_invalidate_all_roots()"
    )

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self._head: Cell[RootPage | None] = kvm.runtime.cell("tdp_mmu_roots", None)

    # References.

    def get_root(self, root: RootPage) -> bool:
        """kvm_tdp_mmu_get_root(): take a reference unless the root is dying. Says nothing about
        validity."""
        alive = root.refcount.inc_not_zero()
        if self.kvm.probe.root_pinned is not None:
            self.kvm.probe.root_pinned(root, alive)
        return alive

    def put_root(self, root: RootPage, shared: bool) -> None:
        """kvm_tdp_mmu_put_root(): drop a reference; the last one unlinks the root and frees it
        after a grace period."""
        kvm = self.kvm
        kvm.mmu_lock.assert_held_mode(shared)
        if not root.refcount.put():
            return
        self._check_last_put(root)
        kvm.tdp_mmu_pages_lock.acquire()
        self._unlink(root)
        kvm.tdp_mmu_pages_lock.release()
        if kvm.probe.root_freed is not None:
            kvm.probe.root_freed(root)
        kvm.tables.retire(root)

    def get_vcpu_root(self, role: RootRole) -> RootPage:
        """kvm_tdp_mmu_get_vcpu_root_hpa(): the valid root of `role`, found or made, with a
        reference for the caller."""
        self.kvm.mmu_lock.assert_held_write()
        return self.find_root(role) or self.allocate_root(role)

    def load_lock(self) -> None:
        """Take mmu_lock as loading and dropping a root needs it: for write (read from 6.9 on)."""
        self.kvm.mmu_lock.write_lock()

    def load_unlock(self) -> None:
        """The counterpart of `load_lock`."""
        self.kvm.mmu_lock.write_unlock()

    def put_loaded(self, root: RootPage) -> None:
        """kvm_mmu_free_roots(): a vCPU drops a root; `load_lock` is held."""
        self.put_root(root, shared=False)

    def find_root(self, role: RootRole) -> RootPage | None:
        """The first valid root of `role` that is not dying, with a reference for the caller."""
        for root in self._all():
            if root.role == role and not root.invalid.value and self.get_root(root):
                return root
        return None

    def allocate_root(self, role: RootRole) -> RootPage:
        """A new root at the head of the list, with a reference for the caller and the TDP MMU's
        own."""
        kvm = self.kvm
        root = kvm.tables.allocate_root(role, kvm.geometry.levels)
        kvm.tdp_mmu_pages_lock.acquire()
        self.link(root)
        kvm.tdp_mmu_pages_lock.release()
        if kvm.probe.root_allocated is not None:
            kvm.probe.root_allocated(root)
        return root

    def link(self, root: RootPage) -> None:
        """list_add_rcu(); tdp_mmu_pages_lock is held."""
        root.next.value = self._head.value
        self._head.value = root

    # Iteration.

    def each(self) -> Iterator[RootPage]:
        """for_each_tdp_mmu_root(): a plain walk under mmu_lock(write); the body must not drop the
        lock."""
        root = self._head.value
        while root is not None:
            self.kvm.mmu_lock.assert_held_write()
            yield root
            root = root.next.value

    def each_rcu(self) -> Iterator[RootPage]:
        """list_for_each_entry_rcu(): a walk without references inside an RCU section; the body must
        not yield."""
        self.kvm.rcu.assert_held("tdp_mmu_roots")
        root = self._head.value
        while root is not None:
            yield root
            self.kvm.rcu.assert_held("tdp_mmu_roots")
            root = root.next.value

    def each_yield_safe(
        self, shared: bool, *, only_valid: bool = False, as_id: int | None = None
    ) -> Iterator[RootPage]:
        """for_each_tdp_mmu_root_yield_safe(): holds a reference on the current root, so the body
        may drop mmu_lock.

        A caller that leaves the loop early owns the reference and must put it.
        """
        root = self._next_root(None, shared, only_valid)
        while root is not None:
            if as_id is None or root.role.as_id == as_id:
                yield root
            root = self._next_root(root, shared, only_valid)

    def _next_root(
        self, previous: RootPage | None, shared: bool, only_valid: bool
    ) -> RootPage | None:
        """tdp_mmu_next_root(): pin the next root, then put the previous one."""
        kvm = self.kvm
        kvm.mmu_lock.assert_held_mode(shared)
        kvm.rcu.read_lock()
        root = self._head.value if previous is None else previous.next.value
        while root is not None and ((only_valid and root.invalid.value) or not self.get_root(root)):
            root = root.next.value
        kvm.rcu.read_unlock()
        if kvm.probe.point is not None:
            kvm.probe.point("P11")
        if previous is not None:
            self.put_visited(previous, shared)
        return root

    def put_visited(self, root: RootPage, shared: bool) -> None:
        """The iteration leaves a root: its reference may by now be the last one (B01)."""
        self.put_root(root, shared)

    # Invalidation.

    def invalidate_all_roots(self) -> list[RootPage]:
        """kvm_tdp_mmu_invalidate_all_roots(): every valid root that is not exported becomes invalid
        and scheduled."""
        kvm = self.kvm
        if kvm.users_count.read() and kvm.created_vcpus.value:
            kvm.mmu_lock.assert_held_write()
        invalidated = []
        for root in self._all():
            if not root.invalid.value and not self.keeps_valid(root):
                self.invalidate(root)
                invalidated.append(root)
        return invalidated

    def keeps_valid(self, root: RootPage) -> bool:
        """The seed: an exported root is not touched by invalidation."""
        return root.exported.value

    def invalidate(self, root: RootPage) -> None:
        """Mark one root; its gifted reference now belongs to zap_invalidated_roots. It never
        becomes valid again (I4)."""
        root.scheduled.value = True
        root.invalid.value = True
        if self.kvm.probe.root_invalidated is not None:
            self.kvm.probe.root_invalidated(root)

    def empty(self) -> bool:
        """list_empty(&kvm->arch.tdp_mmu_roots)."""
        return self._head.value is None

    def snapshot(self) -> list[RootPage]:
        """Every linked root, for checks at a quiescent point."""
        return list(self._all())

    def _all(self) -> Iterator[RootPage]:
        root = self._head.value
        while root is not None:
            yield root
            root = root.next.value

    def _unlink(self, root: RootPage) -> None:
        """list_del_rcu(): the removed root keeps its own link, so that a reader standing on it can
        go on."""
        link = self._head
        while link.value is not None and link.value is not root:
            link = link.value.next
        if link.value is None:
            self.kvm.warn(
                "O4",
                "root-not-linked",
                f"BUG: {root.describe()} put to zero but not on the list",
                "a root leaves the list once, with its last reference",
                "list_del_rcu(), DEBUG_LIST; reference 2.2",
            )
            return
        link.value = root.next.value

    def _check_last_put(self, root: RootPage) -> None:
        """The last put is legal only on an invalid root that was zapped (KVM_BUG_ON, invariant
        I1)."""
        present = self.kvm.layout.present
        linked = [spte for spte in root.spt if spte & present]
        problems = []
        if not root.invalid.value:
            problems.append("it is still valid")
        if root.exported.value:
            problems.append("it is still exported")
        if linked:
            problems.append(
                f"{len(linked)} of its entries {'is' if len(linked) == 1 else 'are'} still "
                "present, so what they map is leaked"
            )
        if problems:
            self.kvm.warn(
                "O4",
                "last-put",
                f"BUG: last reference of {root.describe()} dropped although "
                + " and ".join(problems),
                "the last put is legal only on an invalid, zapped, un-exported root",
                "kvm_tdp_mmu_put_root() KVM_BUG_ON; reference 2.2, invariant I1",
                subject="; ".join(
                    problem.split(",")[0].lstrip("0123456789 ") for problem in problems
                ),
            )
