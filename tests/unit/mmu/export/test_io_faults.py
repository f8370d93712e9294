"""IO page faults: memory that is not there, attempts that have to be repeated, and answers that are
right (I19)."""

from __future__ import annotations

from typing import Any

import pytest

from mmu.export.importer import ExportedTdp
from mmu.paging.spte import REMOVED_SPTE
from mmu.tdp.fault import RetPf
from tests.conftest import blocked, finish, together
from tests.model import Machine
from tests.unit.conftest import MakeMachine

# Memory that is not there.


def test_an_io_fault_waits_for_user_space_without_any_of_kvms_locks(machine: Machine) -> None:
    """Defect R17: the userfaultfd handler may need a memslot ioctl before it can answer."""
    queue = machine.runtime.queue()
    region = machine.add_slot(0, 8, userfaults=queue)
    fd, answers = machine.export(), list[bool]()
    fault = blocked(
        machine.runtime,
        lambda: answers.append(fd.fault(5, write=True)),
        lambda task: task.waiting_for == "userfaultfd",
    )
    machine.add_slot(16, 4, slot=1)
    machine.delete_slot(1)
    assert queue.drain() == [(region, 5)]
    machine.vm.host.resolve(region, 5)
    finish(machine.runtime, fault)
    assert answers == [True]
    machine.assert_sound()


def test_a_page_that_goes_again_before_the_fault_has_its_locks_is_waited_for_again(
    machine: Machine,
) -> None:
    """With slots_lock held nobody waits for the host: the fault starts over."""
    region = machine.add_slot(0, 8)
    fd, discarded = machine.export(), list[int]()
    held_while_fetching: list[bool] = []
    plain = machine.vm.host.fault_in

    def fault_in(*args: Any) -> int:
        held_while_fetching.append(machine.kvm.slots_lock.held())
        return plain(*args)

    machine.vm.host.fault_in = fault_in  # type: ignore[method-assign]
    machine.at("P1", lambda: discarded.append(machine.vm.host.discard(region, 5, 6)))
    assert fd.fault(5, write=True)
    assert discarded == [1]
    assert held_while_fetching == [False, False]
    assert machine.leaves(fd.metadata().root) == {5: region.ptes[5]}


def test_an_io_fault_in_memory_that_was_unmapped_fails(machine: Machine) -> None:
    """A vCPU gets -EFAULT there."""
    region = machine.add_slot(0, 8)
    fd, tries = machine.export(), list[int]()
    machine.vm.host.munmap(region)
    plain = machine.vm.exporter.prefault

    def counted(exported: ExportedTdp, gfn: int) -> None:
        tries.append(gfn)
        assert len(tries) < 100, "it is tried for ever"
        plain(exported, gfn)

    machine.vm.exporter.prefault = counted  # type: ignore[method-assign]
    assert not fd.fault(5, write=True)


def test_a_host_without_memory_fails_the_io_fault(make_machine: MakeMachine) -> None:
    machine = make_machine(frames=2)
    machine.add_slot(0, 4)
    fd = machine.export()
    assert [fd.fault(1, write=True), fd.fault(2, write=True)] == [True, False]
    assert not machine.kvm.slots_lock.held()
    assert machine.kvm.mm_users.read() == 1


# Answers.


def test_every_attempt_starts_from_a_fresh_fault(make_machine: MakeMachine) -> None:
    """Defect R8: the host splits its page between two attempts; the second must not map "2M"."""
    machine = make_machine(huge_2m=4)
    region = machine.add_slot(0, 16, max_level=2)
    fd = machine.export()

    def split() -> None:
        with machine.invalidating(region, 4, 8):
            machine.vm.host.split(region, 4, 8)

    retried = machine.record("io_fault_retried")
    machine.at("P4", lambda: machine.entry(fd.metadata().root, 0, 3)[0].spt.store(0, REMOVED_SPTE))
    machine.on(
        io_fault_retried=lambda _: (
            machine.entry(fd.metadata().root, 0, 3)[0].spt.store(0, 0),
            together(machine.runtime, split),
        )
    )
    assert fd.fault(5, write=True)
    assert len(retried.events) == 1
    assert machine.huge_leaves(fd.metadata().root) == []
    machine.assert_sound()


def test_answers_that_the_slots_contradict_are_counted(machine: Machine) -> None:
    machine.add_slot(0, 8)
    fd = machine.export()
    fd.fault(5, write=True)
    fd.fault(40, write=True)
    assert machine.vm.exporter.wrong_answers.value == 0
    machine.vm.exporter.answer = lambda _: False  # type: ignore[method-assign]
    fd.fault(6, write=True)
    assert machine.vm.exporter.wrong_answers.value == 1
    machine.abandon()


@pytest.mark.parametrize(
    ("result", "ok"),
    [(RetPf.FIXED, True), (RetPf.SPURIOUS, True), (RetPf.EMULATE, False), (RetPf.INVALID, False)],
)
def test_what_an_importer_is_told(machine: Machine, result: RetPf, ok: bool) -> None:
    assert machine.vm.exporter.answer(result) is ok
