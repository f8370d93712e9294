"""O14: an executable huge leaf is reported while the mitigation is on, but not in the toggle's own
window."""

from __future__ import annotations

import threading

import pytest

from mmu.export.policies import SEPARATE_ROOT
from mmu.paging.spte import SPTE_X
from mmu.posted import POSTED
from mmu.task import Task, current
from mmu.tdp.fault import Fault, FaultHandler
from mmu.variant import Variant
from tests.conftest import blocked, evidence, finish
from tests.model import Machine, w, x
from tests.patience import PATIENCE
from tests.unit.stress.observe.oracles.conftest import Watch, reported

TOGGLE_RACE = POSTED["r10-nx-toggle-race"]


class AlwaysExecutable(FaultHandler):
    """Leaves are made as if there were no mitigation."""

    def make_spte(self, fault: Fault) -> int:
        fault.nx_workaround = False
        return super().make_spte(fault)


EXECUTABLE = Variant("always-executable", "ignores the mitigation", (AlwaysExecutable,))


class InFlight:
    """A fault of a vCPU that has looked at the knob, off, and has its frame, but not yet mmu_lock;
    the root is exported."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.add_slot(0, 16, max_level=2)
        machine.export()
        self.vcpu = machine.vcpu()
        self._there, self._go_on = threading.Event(), threading.Event()
        machine.on(point=self._hold)
        self._task: Task = blocked(machine.runtime, self._writes, at=lambda _: self._there.is_set())

    def _writes(self) -> None:
        self.machine.run(self.vcpu, w(5))

    def _hold(self, name: str) -> None:
        if name == "P2" and current.task.name == "_writes" and not self._there.is_set():
            self._there.set()
            assert self._go_on.wait(PATIENCE)

    def land(self) -> None:
        """It maps, and the access is made."""
        self._go_on.set()
        finish(self.machine.runtime, self._task)


def test_a_fault_that_lands_after_the_toggle_is_reported(watch: Watch) -> None:
    machine = watch(TOGGLE_RACE, huge_2m=8)
    fault = InFlight(machine)
    machine.vm.set_nx_huge_pages(True)
    machine.expect()
    fault.land()
    machine.expect("O14 executable-huge-leaf")
    report = reported(machine, "executable-huge-leaf")
    assert report.gfn == 4
    assert "gfn 0x4 level 2" in report.headline
    assert "(rwx huge frame" in evidence(report, "SPTE")
    machine.abandon()


def test_a_fault_that_lands_within_the_toggle_is_taken_away_again(watch: Watch) -> None:
    machine = watch(TOGGLE_RACE, huge_2m=8)
    fault = InFlight(machine)
    mapped = machine.record("huge_mapped")
    machine.at("P19", fault.land)
    machine.vm.set_nx_huge_pages(True)
    assert [bool(args[3] & SPTE_X) for args in mapped.args("huge_mapped")] == [True], (
        "it was installed while the knob was on"
    )
    assert machine.huge_leaves() == []
    machine.assert_sound()


def test_the_mended_fault_notices_the_toggle(watch: Watch) -> None:
    machine = watch(huge_2m=8)
    fault = InFlight(machine)
    machine.vm.set_nx_huge_pages(True)
    fault.land()
    assert machine.huge_leaves() == [(4, 2)]
    assert not machine.spte(4, 2) & SPTE_X
    machine.assert_sound()


def test_switching_off_lets_huge_leaves_be_executable_again(watch: Watch) -> None:
    machine = watch(huge_2m=8, nx_huge_pages=True)
    machine.add_slot(0, 16, max_level=2)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(5))
    machine.vm.set_nx_huge_pages(False)
    machine.run(vcpu, x(5))
    assert machine.spte(4, 2) & SPTE_X
    machine.vm.set_nx_huge_pages(True)
    machine.run(vcpu, x(5), w(9))
    machine.assert_sound()


@pytest.mark.parametrize("on", [True, False])
def test_the_knob_decides(watch: Watch, on: bool) -> None:
    machine = watch(EXECUTABLE, huge_2m=8, nx_huge_pages=on)
    machine.add_slot(0, 16, max_level=2)
    machine.run(machine.vcpu(), w(5))
    machine.expect(*(["O14 executable-huge-leaf"] if on else []))


def test_the_window_ends_with_the_toggle(watch: Watch) -> None:
    machine = watch(EXECUTABLE, huge_2m=8)
    machine.add_slot(0, 16, max_level=2)
    machine.vm.set_nx_huge_pages(True)
    machine.run(machine.vcpu(), w(5))
    machine.expect("O14 executable-huge-leaf")


def test_small_executable_leaves_are_what_the_mitigation_is_about(watch: Watch) -> None:
    machine = watch(huge_2m=8, nx_huge_pages=True)
    machine.add_slot(0, 16, max_level=2)
    machine.run(machine.vcpu(), x(5), w(6))
    assert machine.spte(5) & SPTE_X
    machine.assert_sound()


def test_a_root_that_only_an_iommu_walks_may_have_executable_huge_leaves(watch: Watch) -> None:
    """Devices fetch no instructions."""
    machine = watch(SEPARATE_ROOT, EXECUTABLE, huge_2m=8, nx_huge_pages=True)
    machine.add_slot(0, 16, max_level=2)
    device, hwpt = machine.attach(machine.export())
    mapped = machine.record("huge_mapped")
    assert hwpt.io_fault(5, write=True)
    assert [bool(args[3] & SPTE_X) for args in mapped.args("huge_mapped")] == [True]
    machine.expect()
    machine.run(machine.vcpu(), w(5))
    machine.expect("O14 executable-huge-leaf")
    assert device.transact(5, write=True)
