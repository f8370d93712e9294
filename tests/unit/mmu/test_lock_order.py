"""The documented lock order: each of its rules is known to a VM from the start, and every lock in
it is one of the model's."""

from __future__ import annotations

import pytest

from mmu.kvm import VmConfig
from mmu.lock_order import DOCUMENTED, SOURCE, Held
from mmu.machine.vm import VirtualMachine
from mmu.report import Reporter
from mmu.runtime import Runtime
from mmu.sync.lockdep import READ, WRITE, LockDep
from mmu.task import current
from tests.conftest import forget_held_locks


@pytest.fixture
def vm() -> VirtualMachine:
    return VirtualMachine(VmConfig(frames=64), runtime=Runtime(), reporter=Reporter(sink=None))


def hold(lockdep: LockDep, name: str, mode: int) -> None:
    """Take a lock of this class as far as lockdep is concerned."""
    known = lockdep.registered(name)
    assert known is not None
    current.task.chain = lockdep.extend(current.task, known, mode)


@pytest.mark.parametrize(
    ("rule", "outer", "inner"),
    DOCUMENTED,
    ids=lambda value: value[0] if isinstance(value, tuple) else f"rule {value}",
)
def test_the_opposite_order_is_reported_although_nobody_has_taken_the_right_one(
    vm: VirtualMachine, rule: int, outer: Held, inner: Held
) -> None:
    lockdep = vm.kvm.sync.lockdep
    try:
        hold(lockdep, inner[0], WRITE)
        hold(lockdep, outer[0], WRITE)
    finally:
        forget_held_locks()
    (report,) = vm.kvm.reporter.reports
    assert report.code == "circular-dependency"
    (known,) = [part for part in report.sections if "documented dependency" in part.title]
    assert f"{outer[0]} (" in known.title
    assert known.lines[0] == f"{SOURCE}{rule}"


def test_a_vcpu_may_read_the_slots_inside_srcu_although_updates_wait_for_it(
    vm: VirtualMachine,
) -> None:
    lockdep = vm.kvm.sync.lockdep
    try:
        for name, mode in (("kvm->srcu", READ), ("slots_arch_lock", WRITE)):
            hold(lockdep, name, mode)
        forget_held_locks()
        for name, mode in (
            ("slots_lock", WRITE),
            ("exported_tdp_cache_lock", WRITE),
            ("kvm->srcu", READ),
            ("mmu_lock", READ),
        ):
            hold(lockdep, name, mode)
    finally:
        forget_held_locks()
    assert vm.kvm.reporter.reports == ()


def test_every_lock_of_the_order_is_one_of_the_models(vm: VirtualMachine) -> None:
    """A name that no lock has would be an order that nobody can break."""
    fd = vm.create_tdp_fd()
    locks = [
        vm.kvm.kvm_lock,
        vm.kvm.slots_lock,
        vm.kvm.slots_arch_lock,
        vm.kvm.mmu_lock,
        vm.kvm.srcu,
        vm.kvm.tdp_mmu_pages_lock,
    ]
    locks += [
        vm.exporter.cache_lock,
        vm.exported_tdps.exported_tdplist_lock,
        fd.exported.importer_lock,
    ]
    assert {name for _, outer, inner in DOCUMENTED for name, _ in (outer, inner)} == {
        lock.lock_class.name for lock in locks
    }
    lockdep = vm.kvm.sync.lockdep
    assert all(lockdep.registered(lock.lock_class.name) is lock.lock_class for lock in locks)


def test_what_nobody_does_is_no_order_that_was_seen(vm: VirtualMachine) -> None:
    assert vm.kvm.sync.lockdep.orders() == []
