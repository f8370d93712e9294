"""The third column of the reference's assertion table (2.14): who gives up mmu_lock to a thread
that waits for it, who does not, and who sleeps. Each program has two threads; the second one is
known to wait before the first one is asked to yield.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from mmu.paging.table import RootPage, RootRole
from mmu.task import Task
from mmu.tdp.fault import Fault, RetPf
from mmu.tdp.iter import TdpIter
from tests.conftest import elsewhere, eventually, finish, rcu_section, reading, writing
from tests.litmus.bench import add_huge_slot, both_ways, defect, expect, fetch, meanwhile
from tests.model import Machine, machine_of, w


class Waiter:
    """Another thread that wants mmu_lock for write. `arrive` returns when it is waiting; `yields`
    counts how often mmu_lock was given up for it, as (mode it was held in, whether RCU was held);
    `served` says that it has had the lock."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.yields: list[tuple[bool, bool]] = []
        self.served = threading.Event()
        self.tasks: list[Task] = []
        self._cond_resched = machine.mmu_lock.cond_resched
        machine.mmu_lock.cond_resched = self._asked  # type: ignore[method-assign]

    def arrive(self) -> None:
        """The caller holds mmu_lock; from now on somebody waits for it."""
        if not self.tasks:
            self.tasks.append(self.machine.runtime.spawn("waiter", self._want))
            eventually(self.machine.mmu_lock.needbreak, "the other thread to wait for mmu_lock")

    def leave(self) -> None:
        """The lock is free: the other thread has had it, and is gone."""
        finish(self.machine.runtime, *self.tasks)
        assert not self.tasks or self.served.is_set()

    def _want(self) -> None:
        with writing(self.machine.mmu_lock):
            self.served.set()

    def _asked(self, shared: bool) -> bool:
        needed = self.machine.mmu_lock.needbreak()
        if needed:
            self.yields.append((shared, self.machine.kvm.rcu.read_held()))
        return self._cond_resched(shared) or needed


Call = Callable[[Machine, RootPage], object]


def freed(machine: Machine) -> int:
    """Table pages that RCU has freed."""
    return machine.kvm.tables.released.value - machine.kvm.tables.discarded.value


def prepared(machine: Machine) -> RootPage:
    """A slot of 64 frames, a vCPU, and leaves far apart."""
    machine.add_slot(0, 64)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(1), w(2), w(21), w(37), w(63))
    assert vcpu.root is not None
    return vcpu.root


def slot_of(machine: Machine) -> object:
    slot = machine.vm.memslots.peek(0).by_id(0)
    assert slot is not None
    return slot


def yields_of(
    machine: Machine, shared: bool, call: Callable[[], object], *sections: str
) -> tuple[int, bool]:
    """How often `call` gives up mmu_lock, which the caller holds and another thread wants, and
    whether that one got it."""
    waiter = Waiter(machine)
    with ExitStack() as stack:
        stack.enter_context(reading(machine.mmu_lock) if shared else writing(machine.mmu_lock))
        if "rcu" in sections:
            stack.enter_context(rcu_section(machine.kvm.rcu))
        waiter.arrive()
        call()
        served = waiter.served.is_set()
    waiter.leave()
    assert all(mode == shared and not rcu for mode, rcu in waiter.yields), (
        "RCU is left before the lock is"
    )
    return len(waiter.yields), served


# Who yields while its caller holds the lock.


YIELDING: list[tuple[str, bool, Call]] = [
    (
        "tdp_mmu_zap_root shared",
        True,
        lambda machine, root: machine.vm.zapper.zap_root(root, shared=True),
    ),
    (
        "tdp_mmu_zap_root exclusive",
        False,
        lambda machine, root: machine.vm.zapper.zap_root(root, shared=False),
    ),
    (
        "tdp_mmu_zap_leafs can_yield",
        False,
        lambda machine, root: machine.vm.zapper.zap_leafs(root, 0, 64, can_yield=True, flush=False),
    ),
    (
        "kvm_tdp_mmu_unmap_gfn_range",
        False,
        lambda machine, root: machine.vm.zapper.zap_roots_leafs(0, 0, 64),
    ),
    (
        "wrprot_slot",
        True,
        lambda machine, root: machine.vm.dirty.wrprot_slot(root, slot_of(machine), 1),
    ),
    (
        "clear_dirty_slot",
        True,
        lambda machine, root: machine.vm.dirty.clear_dirty_slot(root, slot_of(machine)),
    ),
    (
        "zap_collapsible_sptes",
        True,
        lambda machine, root: machine.vm.huge.zap_collapsible_sptes(slot_of(machine)),
    ),
    (
        "try_split shared",
        True,
        lambda machine, root: machine.vm.huge.try_split_huge_pages(
            slot_of(machine), 0, 64, shared=True
        ),
    ),
    (
        "try_split exclusive",
        False,
        lambda machine, root: machine.vm.huge.try_split_huge_pages(
            slot_of(machine), 0, 64, shared=False
        ),
    ),
]


@pytest.mark.parametrize(
    ("shared", "call"), [row[1:] for row in YIELDING], ids=[row[0] for row in YIELDING]
)
def test_it_gives_the_lock_to_who_waits(shared: bool, call: Call) -> None:
    with machine_of() as machine:
        root = prepared(machine)
        count, _ = yields_of(machine, shared, lambda: call(machine, root))
        assert count
        expect(machine)
        machine.abandon()


@pytest.mark.parametrize(
    ("shared", "call"), [row[1:] for row in YIELDING], ids=[row[0] for row in YIELDING]
)
def test_it_keeps_the_lock_when_nobody_waits(shared: bool, call: Call) -> None:
    with machine_of() as machine:
        root = prepared(machine)
        waiter = Waiter(machine)
        machine.mmu_lock.lock(shared)
        call(machine, root)
        machine.mmu_lock.unlock(shared)
        assert waiter.yields == []
        machine.abandon()


def put_a_reference(machine: Machine, root: RootPage) -> None:
    root.refcount.get()
    machine.vm.roots.put_root(root, shared=False)


def put_the_last_reference(machine: Machine, root: RootPage) -> None:
    """The root is unlinked at once and freed by RCU: the caller does not wait for that."""
    smm = machine.vm.roots.get_vcpu_root(RootRole(1))
    machine.vm.roots.invalidate(smm)
    smm.refcount.put()
    machine.vm.roots.put_root(smm, shared=False)
    assert smm not in machine.vm.roots.snapshot()


def map_a_page(machine: Machine, root: RootPage) -> None:
    vcpu = machine.vm.vcpus()[0]
    vcpu.cache.pages.extend(machine.kvm.tables.allocate() for _ in range(3))
    fault = Fault()
    fault.gfn, fault.pfn, fault.host_writable = 50, 200, True
    assert machine.vm.faults.map(root, vcpu.cache, fault) is RetPf.FIXED


def change_atomically(machine: Machine, root: RootPage) -> None:
    sp, index = machine.entry(root, 1)
    assert machine.vm.writer.set_spte_atomic(sp, index, 1, sp.spt[index], 0)


def change_exclusively(machine: Machine, root: RootPage) -> None:
    sp, index = machine.entry(root, 1)
    machine.vm.writer.set_spte(sp, index, 1, sp.spt[index], 0)


def ask_whether_stale(machine: Machine, root: RootPage) -> None:
    machine.vm.faults.is_page_fault_stale(root, Fault())


def begin_and_end(machine: Machine, root: RootPage) -> None:
    machine.kvm.invalidation.begin(0, 64)
    machine.kvm.invalidation.end()


KEEPING: list[tuple[str, bool, Call]] = [
    (
        "kvm_tdp_mmu_invalidate_all_roots",
        False,
        lambda machine, root: machine.vm.roots.invalidate_all_roots(),
    ),
    (
        "tdp_mmu_zap_leafs",
        False,
        lambda machine, root: machine.vm.zapper.zap_leafs(
            root, 0, 64, can_yield=False, flush=False
        ),
    ),
    ("kvm_tdp_mmu_put_root", False, put_a_reference),
    ("kvm_tdp_mmu_put_root last", False, put_the_last_reference),
    (
        "tdp_mmu_next_root",
        False,
        lambda machine, root: list(machine.vm.roots.each_yield_safe(shared=False)),
    ),
    ("age", False, lambda machine, root: machine.vm.ageing.age_gfn_range(slot_of(machine), 0, 64)),
    (
        "test_age",
        False,
        lambda machine, root: machine.vm.ageing.test_age_gfn(slot_of(machine), 0, 64),
    ),
    ("root lookup", False, lambda machine, root: machine.vm.roots.find_root(RootRole(0))),
    (
        "clear_dirty_pt_masked",
        False,
        lambda machine, root: machine.vm.dirty.clear_dirty_pt_masked(
            root, slot_of(machine), {1, 2, 63}
        ),
    ),
    ("tdp_mmu_set_spte_atomic", True, change_atomically),
    ("tdp_mmu_set_spte", False, change_exclusively),
    ("kvm_tdp_mmu_map", True, map_a_page),
    ("is_page_fault_stale shared", True, ask_whether_stale),
    ("is_page_fault_stale exclusive", False, ask_whether_stale),
    ("invalidate_begin and end", False, begin_and_end),
]


@pytest.mark.parametrize(
    ("shared", "call"), [row[1:] for row in KEEPING], ids=[row[0] for row in KEEPING]
)
def test_it_keeps_the_lock_whoever_waits(shared: bool, call: Call) -> None:
    with machine_of() as machine:
        root = prepared(machine)
        assert yields_of(machine, shared, lambda: call(machine, root)) == (0, False)
        expect(machine)
        machine.abandon()


def test_the_exported_zap_keeps_the_lock_whoever_waits() -> None:
    with machine_of() as machine:
        root = prepared(machine)
        machine.export()
        assert yields_of(machine, False, machine.vm.zapper.zap_exported_roots) == (0, False)
        assert machine.leaves(root) == {}
        expect(machine)


@pytest.mark.parametrize("shared", [True, False])
def test_cond_resched_is_the_yield_point_itself(shared: bool) -> None:
    with machine_of() as machine:
        root = prepared(machine)
        answers: list[bool] = []

        def ask() -> None:
            it = TdpIter(machine.kvm, root, 1, 0, 64)
            answers.append(machine.vm.yielding.iter_cond_resched(it, False, shared))
            it.next()
            it.next()
            it.next()
            it.next()
            answers.append(machine.vm.yielding.iter_cond_resched(it, False, shared))

        count, _ = yields_of(machine, shared, ask, "rcu")
        assert (answers, count) == ([False, True], 1), (
            "not before a step was made, and then at once"
        )
        expect(machine)


# Who takes the lock itself.


def arrive_at(machine: Machine, waiter: Waiter, hook: str) -> None:
    """The waiter comes when this happens for the first time."""
    machine.on(**{hook: lambda *_: waiter.arrive()})


def test_zap_all_fast_drops_the_lock_only_while_it_zaps_invalidated_roots() -> None:
    with machine_of() as machine:
        prepared(machine)
        waiter = Waiter(machine)
        arrive_at(machine, waiter, "prepare_zap_page")
        with machine.kvm.slots_lock:
            machine.vm.zapper.zap_all_fast()
        waiter.leave()
        assert waiter.yields
        assert all(shared for shared, _ in waiter.yields), "it is then held for read"
        expect(machine)


def test_zap_all_fast_keeps_the_lock_from_invalidation_to_the_end_of_the_exported_zap() -> None:
    with machine_of() as machine:
        prepared(machine)
        machine.export()
        machine.root(as_id=1)
        waiter = Waiter(machine)
        arrive_at(machine, waiter, "root_invalidated")
        served: list[bool] = []
        machine.on(exported_zapped=lambda *_: served.append(waiter.served.is_set()))
        with machine.kvm.slots_lock:
            machine.vm.zapper.zap_all_fast()
        waiter.leave()
        assert served == [False]
        expect(machine)


def test_zapping_invalidated_roots_yields() -> None:
    with machine_of() as machine:
        root = prepared(machine)
        with writing(machine.mmu_lock):
            machine.vm.roots.invalidate(root)
        waiter = Waiter(machine)
        arrive_at(machine, waiter, "prepare_zap_page")
        machine.vm.zapper.zap_invalidated_roots()
        waiter.leave()
        assert waiter.yields
        assert not any(root.spt)
        expect(machine)
        machine.abandon()


def test_the_recovery_worker_yields_between_pages() -> None:
    with machine_of(huge_2m=8, nx_huge_pages=True, nx_recovery_ratio=1) as machine:
        add_huge_slot(machine)
        vcpu = machine.vcpu()
        for gfn in (1, 5, 9):
            assert fetch(machine, vcpu, gfn) is RetPf.FIXED
        waiter = Waiter(machine)
        arrive_at(machine, waiter, "prepare_zap_page")
        events = machine.record("prepare_zap_page", "flush_begin", "mmu_write_unlocking")
        assert machine.vm.recover_nx_huge_pages() == 3
        waiter.leave()
        assert waiter.yields
        assert events.names()[:3] == ["prepare_zap_page", "flush_begin", "mmu_write_unlocking"], (
            "flushed before the lock goes"
        )
        expect(machine)


@both_ways
def test_un_export_may_yield_and_flushes_first_since_it_is_mended(posted: bool) -> None:
    with machine_of(variants=defect("r5-unexport-without-flush", posted)) as machine:
        prepared(machine)
        fd = machine.export()
        waiter = Waiter(machine)
        machine.on(spte_zapped=lambda *_: waiter.arrive())
        events = machine.record("flush_begin", "mmu_write_unlocking")
        fd.put()
        waiter.leave()
        assert waiter.yields
        assert (events.names()[0] == "flush_begin") != posted
        expect(machine)


def test_exporting_keeps_the_lock() -> None:
    with machine_of() as machine:
        waiter = Waiter(machine)
        arrive_at(machine, waiter, "root_allocated")
        machine.export()
        waiter.leave()
        assert waiter.yields == []
        expect(machine)


def test_an_io_fault_keeps_the_lock_while_it_maps() -> None:
    with machine_of() as machine:
        prepared(machine)
        fd = machine.export()
        waiter = Waiter(machine)
        machine.at("P4", waiter.arrive)
        assert fd.fault(50, write=True)
        waiter.leave()
        assert waiter.tasks
        assert waiter.yields == []
        expect(machine)


# Who needs no lock, and who waits for nobody.


def test_the_lockless_fault_runs_while_somebody_else_holds_mmu_lock_for_write() -> None:
    with machine_of() as machine:
        prepared(machine)
        machine.log_dirty_pages()
        vcpu = machine.vm.vcpus()[0]
        assert vcpu.root is not None
        with reading(machine.mmu_lock):
            machine.vm.dirty.wrprot_slot(vcpu.root, slot_of(machine), 1)
        with elsewhere(machine.runtime, writing(machine.mmu_lock)):
            assert machine.fault(vcpu, 1, write=True, present=True) is RetPf.FIXED
        expect(machine)


def test_the_last_put_does_not_wait_for_readers() -> None:
    with machine_of() as machine:
        smm = machine.root(as_id=1)
        with elsewhere(machine.runtime, rcu_section(machine.kvm.rcu)), writing(machine.mmu_lock):
            machine.vm.roots.invalidate(smm)
            machine.vm.roots.put_root(smm, shared=False)
            assert freed(machine) == 0
        machine.kvm.rcu.barrier()
        assert freed(machine) == 1
        expect(machine)


@pytest.mark.parametrize("shared", [True, False])
def test_the_body_of_a_yield_safe_loop_may_drop_the_lock_while_the_root_goes(shared: bool) -> None:
    """The loop's own reference keeps the root that it stands on, and its link, alive; RCU is not
    held in the body."""
    with machine_of() as machine:
        vcpu = machine.vcpu()
        last = machine.root(as_id=1)
        seen: list[tuple[RootPage, bool]] = []

        def drop_it() -> None:
            with machine.kvm.slots_lock:
                machine.vm.zapper.zap_all_fast()
            vcpu.service_requests()

        freed = machine.record("root_freed")
        machine.mmu_lock.lock(shared)
        for root in machine.vm.roots.each_yield_safe(shared):
            seen.append((root, machine.kvm.rcu.read_held()))
            if root is last:
                machine.mmu_lock.unlock(shared)
                meanwhile(machine, drop_it)
                assert (last,) not in freed.args("root_freed"), "the loop stands on it"
                machine.mmu_lock.lock(shared)
        machine.mmu_lock.unlock(shared)
        assert [rcu for _, rcu in seen] == [False] * len(seen)
        assert (last,) in freed.args("root_freed")
        expect(machine)
