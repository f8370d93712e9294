"""The VM as a whole: it is taken down in order, every leak is named, and everybody together does no
harm."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmu.export.device import Dma
from mmu.kvm import VmConfig
from mmu.machine.vcpu import Vcpu
from mmu.machine.vm import VirtualMachine
from mmu.report import Reporter
from mmu.sync.rcu import Rcu
from mmu.variant import Variant
from tests.conftest import together
from tests.model import REAL, Machine, w
from tests.patience import PATIENCE
from tests.unit.conftest import MakeMachine

# Taking it down.


def test_a_vm_that_did_nothing_goes_quietly(machine: Machine) -> None:
    machine.vm.put()
    assert machine.vm.destroyed.value
    assert machine.kvm.tables.live() == 0


def test_a_vm_that_did_everything_leaves_nothing(machine: Machine) -> None:
    machine.add_slot(0, 16, slot=1)
    machine.add_slot(32, 16, slot=2)
    machine.add_slot(0, 8, slot=1, as_id=1)
    vcpus = [machine.vm.create_vcpu() for _ in range(3)]
    device, hwpt = machine.attach(machine.export())
    for vcpu in vcpus:
        machine.run(vcpu, 1, 33, 40)
    vcpus[0].set_smm(True)
    machine.run(vcpus[0], 2)
    hwpt.io_fault(5, write=True)
    assert device.transact(5, write=True) is Dma.DONE
    machine.delete_slot(2)
    machine.run(vcpus[1], 1)
    machine.assert_sound()
    machine.destroy()
    kvm = machine.kvm
    assert (
        kvm.tables.live(),
        kvm.stat.pages_4k.value,
        kvm.stat.tdp_mmu_pages.value,
        kvm.rcu.pending(),
    ) == (0, 0, 0, 0)
    assert machine.vm.roots.empty()


def test_the_order_is_mappings_then_vcpus_then_roots(machine: Machine) -> None:
    machine.add_slot(0, 8)
    vcpu = machine.vcpu()
    machine.run(vcpu, 1)
    root = machine.root()
    events = machine.record(
        "spte_zapped",
        "root_invalidated",
        "root_zapped",
        "root_freed",
        "flush_begin",
        "roots_kicked",
    )
    vcpu_roots: list[bool] = []
    machine.on(root_invalidated=lambda _: vcpu_roots.append(vcpu.root is None))
    machine.vm.put()
    assert list(dict.fromkeys(events.names())) == [
        "spte_zapped",
        "root_invalidated",
        "root_zapped",
        "root_freed",
    ]
    assert events.args("root_freed") == [(root,)]
    assert vcpu_roots == [True]


def test_the_last_put_is_the_last(machine: Machine) -> None:
    machine.vm.put()
    machine.vm.put()
    machine.expect("O4 refcount-underflow")


def test_the_grace_period_worker_ends_with_the_vm(machine: Machine) -> None:
    machine.add_slot(0, 4)
    machine.fault(machine.vcpu(), 1)
    machine.destroy()
    assert [
        machine.runtime.join(task, PATIENCE)
        for task in machine.runtime.tasks()
        if task.name == "rcu_gp"
    ] == [True]


# Leaks.


class _LateCallback(Rcu):
    """An RCU in which somebody queues a callback after the barrier."""

    def barrier(self) -> None:
        super().barrier()
        self.read_lock()
        self.call(lambda: None)


LEAKS: dict[str, Callable[[Machine], object]] = {
    "O11 leak-tdp-mmu-pages": lambda machine: machine.kvm.stat.tdp_mmu_pages.fetch_add(1),
    "O11 leak-page-table-memory": lambda machine: machine.kvm.tables.allocate(),
    "O11 leak-page-stats": lambda machine: machine.kvm.stat.pages_4k.add(1),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_each_leak_is_named(machine: Machine, leak: str) -> None:
    LEAKS[leak](machine)
    machine.vm.put()
    machine.expect(leak)


def test_a_root_that_somebody_still_holds_is_a_leak_of_root_and_page(machine: Machine) -> None:
    assert machine.vm.roots.get_root(machine.root())
    machine.vm.put()
    machine.expect("O11 leak-roots", "O11 leak-page-table-memory")


def test_a_root_that_is_still_exported_is_a_leak(machine: Machine) -> None:
    """The TDP FD's reference on the VM exists so that this cannot happen."""
    machine.root().exported.value = True
    machine.vm.put()
    machine.expect("O11 leak-roots", "O11 leak-page-table-memory")


def test_a_callback_after_the_barrier_is_a_leak(make_machine: MakeMachine) -> None:
    machine = make_machine(
        variants=[Variant("late", "a callback after the barrier", (_LateCallback,))]
    )
    machine.vm.put()
    machine.kvm.rcu.read_unlock()
    machine.expect("O11 leak-rcu-callbacks")


# Making it.


def test_without_arguments_it_is_the_real_thing() -> None:
    vm = VirtualMachine(VmConfig(frames=16), reporter=Reporter(sink=None))
    assert vm.kvm.geometry == REAL
    assert vm.kvm.config.have_exported_tdp
    vm.put()
    assert vm.destroyed.value


def test_vms_do_not_know_of_each_other(make_machine: MakeMachine) -> None:
    one, other = make_machine(), make_machine()
    one.add_slot(0, 8)
    one.fault(one.vcpu(), 1)
    assert other.vm.roots.empty()
    one.vm.put()
    other.add_slot(0, 8)
    other.assert_sound()


def test_vcpus_are_numbered_as_they_come(machine: Machine) -> None:
    vcpus = [machine.vm.create_vcpu() for _ in range(3)]
    assert [str(vcpu) for vcpu in vcpus] == ["vcpu0", "vcpu1", "vcpu2"]
    assert machine.vm.vcpus() == tuple(vcpus)


def test_nothing_is_reported_twice_under_one_signature(machine: Machine) -> None:
    for _ in range(5):
        machine.vm.memslots.gfn_to_memslot(0, 1)
    (report,) = machine.reporter.reports
    assert report.count == 5
    machine.expect("O3 suspicious-srcu-usage")


@pytest.mark.parametrize("preference", ["fair", "reader", "writer"])
def test_every_kind_of_mmu_lock_will_do(make_machine: MakeMachine, preference: str) -> None:
    machine = make_machine(mmu_lock=preference)
    machine.add_slot(0, 8)
    machine.run(machine.vcpu(), 1)
    machine.delete_slot()
    machine.assert_sound()


# All together.


def churn(machine: Machine, slot: int, gfn: int) -> None:
    """The VMM's memslot thread: create, move and delete a slot, its memory released each time."""
    for _ in range(6):
        machine.add_slot(gfn, 4, slot=slot)
        machine.move_slot(gfn + 8, slot=slot)
        machine.delete_slot(slot)


@pytest.mark.parametrize("preference", ["fair", "writer"])
def test_guests_a_device_and_memslot_changes_at_once(
    make_machine: MakeMachine, preference: str
) -> None:
    """No schedule in particular, but every rule and every byte is checked on the way."""
    machine = make_machine(mmu_lock=preference)
    machine.add_slot(0, 8, slot=0)
    vcpus = [machine.vm.create_vcpu() for _ in range(2)]
    device, hwpt = machine.attach(machine.export())
    outcomes: list[Dma | None] = []

    def guest(vcpu: Vcpu) -> None:
        for _ in range(12):
            for access in (1, w(2), 17, w(18), 25, w(26), 33, w(34), 41, w(42)):
                machine.run(vcpu, access)

    def dma() -> None:
        for _ in range(12):
            for gfn in (3, 18, 26, 34, 42):
                while (outcome := device.transact(gfn, write=True)) is None and hwpt.io_fault(
                    gfn, write=True
                ):
                    pass
                outcomes.append(outcome)

    guests = [lambda vcpu=vcpu: guest(vcpu) for vcpu in vcpus]
    together(
        machine.runtime, *guests, dma, lambda: churn(machine, 1, 16), lambda: churn(machine, 2, 32)
    )
    assert outcomes.count(Dma.DONE) >= 12, "gfn 3 is always there"
    assert Dma.WRONG not in outcomes
    for vcpu in vcpus:
        vcpu.service_requests()
    machine.assert_sound()


def test_export_and_un_export_under_load(make_machine: MakeMachine) -> None:
    """The root changes hands between "kept valid" and "invalidated like any other" all the time."""
    machine = make_machine()
    machine.add_slot(0, 8, slot=0)
    vcpus = [machine.vm.create_vcpu() for _ in range(2)]

    def guest(vcpu: Vcpu) -> None:
        for _ in range(30):
            machine.run(vcpu, 1, w(2), 3, w(4))

    def export() -> None:
        for _ in range(15):
            device, hwpt = machine.attach(fd := machine.vm.create_tdp_fd())
            fd.put()
            assert hwpt.io_fault(5, write=True)
            assert device.transact(5, write=True) in (Dma.DONE, None)
            hwpt.destroy()

    guests = [lambda vcpu=vcpu: guest(vcpu) for vcpu in vcpus]
    together(machine.runtime, *guests, export, lambda: churn(machine, 1, 16))
    for vcpu in vcpus:
        vcpu.service_requests()
    machine.assert_sound()
