"""Kernels around 6.6: a workqueue that zaps (5.18), roots under the read lock, small zaps first,
early retries (6.12)."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mmu.kernels import (
    KERNELS,
    RELEASED,
    SERIES,
    DirtyUnlessWritable,
    ExclusiveAtTheEnd,
    FlushBeforeBookkeeping,
    LookBeforeLocking,
    NoFlushForInvalidRoots,
    RecoverHugePages,
    RemovesTablesFirst,
    RootsUnderReadLock,
    SmallZapsFirst,
    SpuriousIfAllowed,
    UpstreamMmio,
    ZapByWorkqueue,
)
from mmu.machine.vm import PART_BASES
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmu.paging.spte import SPTE_A, SPTE_D, SPTE_MMIO, SPTE_R, SPTE_W, SPTE_X, pfn_of
from mmu.paging.table import RootRole
from mmu.sync.lockdep import READ, WRITE
from mmu.task import current
from mmu.tdp.fault import RetPf
from mmu.tdp.iter import TdpIter
from mmu.variant import Parts, Variant
from tests.conftest import (
    blocked,
    elsewhere,
    finish,
    rcu_section,
    reading,
    srcu_section,
    together,
    writing,
)
from tests.model import Machine, w
from tests.patience import PATIENCE
from tests.unit.conftest import MakeMachine


def only(part: type) -> list[Variant]:
    """One of a kernel's differences by itself."""
    return [Variant(part.__name__, part.__name__, (part,))]


@pytest.fixture(params=SERIES)
def kernel(request: pytest.FixtureRequest, make_machine: MakeMachine) -> Machine:
    """A machine of each kernel."""
    return make_machine(variants=SERIES[request.param])


def used(machine: Machine) -> Any:
    """A vCPU that has used gfns 1 and 17 of two slots."""
    machine.add_slot(0, 8, slot=1)
    machine.add_slot(16, 8, slot=2)
    vcpu = machine.vcpu()
    machine.run(vcpu, 1, w(17))
    return vcpu


def test_every_kernel_is_made_of_parts() -> None:
    assert list(SERIES) == ["5.18", "6.6", "6.12"]
    assert SERIES["6.6"] == (), "the base of the series"
    for name, variants in SERIES.items():
        Parts(PART_BASES, variants)
        assert all(variant.origin and name in variant.name for variant in variants)


def test_every_kernel_is_modelled_in_some_way() -> None:
    assert KERNELS.keys() == SERIES.keys() | RELEASED.keys()
    assert list(RELEASED) == ["6.1", "6.6", "6.12", "7.2"]


def test_every_kernel_unmaps_a_deleted_slot(kernel: Machine) -> None:
    vcpu = used(kernel)
    old = kernel.root()
    kernel.delete_slot(1)
    assert kernel.leaves(old) == {}
    kernel.run(vcpu, w(17))
    assert vcpu.root is not old
    kernel.kvm.rcu.barrier()
    kernel.assert_sound()


def test_every_kernel_keeps_an_exported_root(kernel: Machine) -> None:
    vcpu = used(kernel)
    device, hwpt = kernel.attach(kernel.export())
    root = device.root.value
    kernel.delete_slot(1)
    assert device.root.value is root is vcpu.root
    assert hwpt.io_fault(17, write=True)
    assert device.transact(1, write=True) is None
    kernel.assert_sound()


def test_every_kernel_works_under_load(kernel: Machine) -> None:
    used(kernel)
    vcpus = [*kernel.vm.vcpus(), kernel.vm.create_vcpu()]

    def guest(vcpu: Any) -> None:
        for _ in range(15):
            kernel.run(vcpu, 1, w(2), 17, w(18))

    def churn() -> None:
        for _ in range(6):
            kernel.add_slot(32, 4, slot=3)
            kernel.delete_slot(3)

    together(kernel.runtime, *[lambda vcpu=vcpu: guest(vcpu) for vcpu in vcpus], churn)
    for vcpu in vcpus:
        vcpu.service_requests()
    kernel.assert_sound()


# 5.18: the workqueue.


@pytest.fixture
def workqueue(make_machine: MakeMachine) -> Machine:
    """A machine that zaps invalidated roots by a work item."""
    return make_machine(variants=only(ZapByWorkqueue))


def test_the_zap_is_done_by_the_worker_and_waited_for(workqueue: Machine) -> None:
    used(workqueue)
    zapped: list[tuple[str, int, bool]] = []

    def note(_: object) -> None:
        zapped.append(
            (current.task.name, workqueue.mmu_lock.held_mode(), workqueue.kvm.slots_lock.held())
        )

    workqueue.on(root_zapped=note)
    workqueue.delete_slot(1)
    assert zapped == [("tdp_mmu_zap_wq", READ, False)]


def test_a_memslot_change_waits_until_the_queue_is_empty(workqueue: Machine) -> None:
    used(workqueue)
    order: list[str] = []
    may_zap = threading.Event()

    def delete() -> None:
        workqueue.delete_slot(1)
        order.append("deleted")

    def zap_late(_: object) -> None:
        assert may_zap.wait(PATIENCE)
        order.append("zapped")

    workqueue.on(root_zapped=zap_late)
    deleter = blocked(workqueue.runtime, delete, lambda task: "flush_workqueue" in task.waiting_for)
    may_zap.set()
    finish(workqueue.runtime, deleter)
    assert order == ["zapped", "deleted"]
    workqueue.assert_sound()


def test_each_root_is_queued_once(workqueue: Machine) -> None:
    used(workqueue)
    zapped = workqueue.record("root_zapped")
    workqueue.delete_slot(1)
    workqueue.delete_slot(2)
    assert len(zapped.events) == 1, "the vCPU has not come back for a second root yet"


def test_the_worker_ends_with_the_vm(workqueue: Machine) -> None:
    used(workqueue)
    workqueue.delete_slot(1)
    workqueue.destroy()
    workers = [task for task in workqueue.runtime.tasks() if task.name == "tdp_mmu_zap_wq"]
    assert [workqueue.runtime.join(task, PATIENCE) for task in workers] == [True]


def test_a_vm_that_never_zapped_starts_its_worker_and_ends_it(workqueue: Machine) -> None:
    workqueue.destroy()
    assert workqueue.vm.destroyed.value
    assert all(workqueue.runtime.join(task, PATIENCE) for task in workqueue.runtime.tasks())


# 6.9: roots under the read lock.


@pytest.fixture
def shared_roots(make_machine: MakeMachine) -> Machine:
    """A machine that loads and drops roots under mmu_lock(read)."""
    return make_machine(variants=only(RootsUnderReadLock))


def test_a_root_is_loaded_and_dropped_beside_other_readers(shared_roots: Machine) -> None:
    with elsewhere(shared_roots.runtime, reading(shared_roots.mmu_lock)):
        vcpu = shared_roots.vcpu()
        assert vcpu.root is not None
        assert vcpu.root.refcount.read() == 2
        vcpu.unload()
    with writing(shared_roots.mmu_lock):
        assert [root.refcount.read() for root in shared_roots.vm.roots.snapshot()] == [1]
    shared_roots.assert_sound()


def test_two_vcpus_that_come_at_once_make_one_root(shared_roots: Machine) -> None:
    """The second look under tdp_mmu_pages_lock."""
    roots = shared_roots.vm.roots
    plain, others = roots.look_for_root, list[Any]()  # type: ignore[attr-defined]

    def look_and_be_late(role: RootRole) -> Any:
        found = plain(role)
        if not others:
            others.append(None)
            together(shared_roots.runtime, lambda: others.append(shared_roots.vcpu()))
        return found

    roots.look_for_root = look_and_be_late  # type: ignore[attr-defined]
    vcpu = shared_roots.vcpu()
    assert vcpu.root is others[1].root
    assert len(roots.snapshot()) == 1
    assert vcpu.root is not None
    assert vcpu.root.refcount.read() == 3
    shared_roots.assert_sound()


def test_loading_a_root_without_any_lock_is_reported(shared_roots: Machine) -> None:
    root = shared_roots.vm.roots.get_vcpu_root(RootRole(0))
    shared_roots.expect("O5 assert-held-for-read")
    with writing(shared_roots.mmu_lock):
        shared_roots.vm.roots.put_root(root, shared=False)


# 6.9: small zaps first.


def test_small_entries_are_zapped_first(make_machine: MakeMachine) -> None:
    machine = make_machine(variants=only(SmallZapsFirst))
    used(machine)
    levels: list[int] = []
    machine.on(spte_zapped=lambda sp, gfn, level, old, new, shared: levels.append(level))
    root = machine.root()
    with writing(machine.mmu_lock):
        machine.vm.roots.invalidate(root)
        machine.vm.zapper.zap_root(root, shared=False)
        root.scheduled.value = False
    assert levels == sorted(levels)
    assert machine.vm.zapper.zap_levels(root)[0] == 1
    assert machine.leaves(root) == {}
    machine.abandon()


# 6.8: a look before mmu_lock is taken.


def test_a_fault_in_a_range_that_is_being_invalidated_takes_no_lock(
    make_machine: MakeMachine,
) -> None:
    machine = make_machine(variants=only(LookBeforeLocking))
    vcpu = used(machine)
    region = machine.regions[0, 1]
    points: list[str] = []
    machine.on(point=points.append)
    with machine.invalidating(region, 3, 4):
        points.clear()
        assert machine.fault(vcpu, 3) is RetPf.RETRY
        assert "P2" not in points, "it never came as far as the lock"
        assert machine.fault(vcpu, 4) is RetPf.FIXED
        assert "P2" in points
    assert machine.fault(vcpu, 3) is RetPf.FIXED
    assert machine.fault(vcpu, 40) is RetPf.EMULATE, "without a slot there is nothing to look at"
    machine.assert_sound()


def test_the_look_is_a_hint_and_the_check_under_the_lock_stays(make_machine: MakeMachine) -> None:
    machine = make_machine(variants=only(LookBeforeLocking))
    vcpu = used(machine)
    machine.at(
        "P2",
        lambda: together(machine.runtime, lambda: machine.discard(machine.regions[0, 1], 3, 4)),
    )
    assert machine.fault(vcpu, 3) is RetPf.RETRY
    with srcu_section(machine.kvm.srcu):
        assert machine.vm.memslots.gfn_to_memslot(0, 3) is not None
    assert machine.fault(vcpu, 3) is RetPf.FIXED
    machine.assert_sound()


# Kernels as they were released.


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_kernel_is_made_of_parts_and_works(
    make_machine: MakeMachine, name: str
) -> None:
    Parts(PART_BASES, RELEASED[name])
    machine = make_machine(variants=RELEASED[name])
    vcpu = used(machine)
    machine.delete_slot(1)
    machine.run(vcpu, w(17))
    machine.kvm.rcu.barrier()
    machine.assert_sound()


@pytest.mark.parametrize("parts", [(UpstreamMmio,), (UpstreamMmio, DirtyUnlessWritable)])
def test_the_first_leaf_over_an_mmio_spte_is_clean_before_6_13(
    make_machine: MakeMachine, parts: tuple[type, ...]
) -> None:
    machine = make_machine(variants=[Variant("mmio", "mmio", parts)])
    vcpu = machine.vcpu()
    assert machine.fault(vcpu, 3, write=True) is RetPf.EMULATE
    assert machine.spte(3) & SPTE_MMIO
    assert machine.spte(3) & SPTE_W
    machine.add_slot(0, 8)
    machine.fault(vcpu, 3, write=True)
    machine.fault(vcpu, 4, write=True)
    assert bool(machine.spte(3) & SPTE_D) is (DirtyUnlessWritable not in parts)
    assert machine.spte(4) & SPTE_D
    machine.assert_sound()


def test_an_access_that_is_allowed_by_now_writes_nothing(make_machine: MakeMachine) -> None:
    for parts, written in (((), 1), ((SpuriousIfAllowed,), 0)):
        machine = make_machine(variants=[Variant("spurious", "spurious", parts)] if parts else ())
        vcpu = used(machine)
        sp, index = machine.entry(machine.root(), 17)
        sp.spt[index] &= ~(SPTE_D | SPTE_A)
        recorder = machine.record("spte_changed")
        assert machine.fault(vcpu, 17) is (RetPf.SPURIOUS if parts else RetPf.FIXED)
        assert len(recorder.events) == written
        machine.mmu_lock.write_lock()
        sp.spt[index] &= ~SPTE_W
        machine.mmu_lock.write_unlock()
        assert machine.fault(vcpu, 17, write=True) is RetPf.FIXED, "this access is not"


def test_an_entry_is_told_of_after_its_flush(make_machine: MakeMachine) -> None:
    for part, hooks in (
        (None, ["spte_changed", "flush_begin"]),
        (FlushBeforeBookkeeping, ["flush_begin", "spte_changed"]),
    ):
        machine = make_machine(variants=only(part) if part else ())
        vcpu = used(machine)
        root = vcpu.root
        recorder = machine.record("spte_changed", "flush_begin")
        with reading(machine.mmu_lock), rcu_section(machine.kvm.rcu):
            it = TdpIter(machine.kvm, root, 1, 17, 18)
            while it.level > 1:
                it.next()
            assert machine.vm.writer.zap_spte_atomic(it)
        assert recorder.names() == hooks
        assert machine.spte(17) == 0


def test_leaves_that_go_from_an_invalid_root_owe_no_flush(make_machine: MakeMachine) -> None:
    for part, owed in ((None, True), (NoFlushForInvalidRoots, False)):
        machine = make_machine(variants=only(part) if part else ())
        vcpu = used(machine)
        zap = machine.vm.zapper.zap_leafs
        with writing(machine.mmu_lock):
            assert zap(vcpu.root, 1, 2, can_yield=False, flush=False), (
                "vCPUs may still use a valid one"
            )
            machine.vm.roots.invalidate(vcpu.root)
            assert zap(vcpu.root, 17, 18, can_yield=False, flush=False) is owed
            machine.vm.tlb.flush("test")
        machine.vm.zapper.zap_invalidated_roots()


def test_the_end_of_a_vm_is_exclusive(make_machine: MakeMachine) -> None:
    for part, mode in ((None, READ), (ExclusiveAtTheEnd, WRITE)):
        machine = make_machine(variants=only(part) if part else ())
        used(machine)
        modes: list[int] = []
        machine.on(
            root_zapped=lambda root, lock=machine.mmu_lock, modes=modes: modes.append(
                lock.held_mode()
            )
        )
        machine.destroy()
        assert modes == [mode]


def test_a_table_is_told_of_after_what_was_in_it(make_machine: MakeMachine) -> None:
    levels = []
    for part in (None, RemovesTablesFirst):
        machine = make_machine(variants=only(part) if part else ())
        used(machine)
        recorder = machine.record("spte_zapped")
        root = machine.root()
        with machine.zapping():
            it = TdpIter(machine.kvm, root, 2, 16, 17)
            while it.level > 2:
                it.next()
            machine.vm.writer.iter_set_spte(it, 0)
            machine.vm.tlb.flush("test")
        levels.append([args[2] for args in recorder.args("spte_zapped")])
    assert levels == [[2, 1], [1, 2]]


@pytest.mark.parametrize("nx", [False, True])
def test_huge_pages_are_recovered_in_place(make_machine: MakeMachine, nx: bool) -> None:
    machine = make_machine(variants=only(RecoverHugePages), huge_2m=8, nx_huge_pages=nx)
    region = machine.add_slot(0, 16, flags=KVM_MEM_LOG_DIRTY_PAGES, max_level=2)
    vcpu = machine.vcpu()
    machine.run(vcpu, *(w(gfn) for gfn in range(4, 8)), 9)
    assert machine.huge_leaves() == []
    recorder = machine.record("flush_begin", "spte_zapped")
    machine.set_flags(0)
    assert machine.huge_leaves() == [(4, 2), (8, 2)]
    assert pfn_of(machine.spte(4, 2)) == region.ptes[4]
    assert machine.spte(4, 2) & SPTE_R
    assert bool(machine.spte(4, 2) & SPTE_X) is not nx
    assert [args[0] for args in recorder.args("flush_begin")] == ["collapse"]
    machine.run(vcpu, w(5), w(8))
    machine.assert_sound()
