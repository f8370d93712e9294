"""The dirty log as the kernel takes it: word by word under mmu_lock, with pages that are dirty to
begin with; and PML, which vCPUs switch on and off by request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmu.candidates import CANDIDATES
from mmu.machine.vcpu import Vcpu
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from mmu.memory.requests import KVM_REQ_UPDATE_CPU_DIRTY_LOGGING
from mmu.paging.geometry import PG_LEVEL_1G, PG_LEVEL_2M, Geometry
from mmu.paging.spte import MMU_WRITABLE, SPTE_W
from tests.conftest import finish, writing
from tests.model import REAL, Machine, ParkedGuest, w
from tests.unit.conftest import MakeMachine

Huge = Callable[..., tuple[Machine, Vcpu]]
EIGHT = Geometry(levels=3, entries=8)
ALL = {"manual_protect": True, "dirty_initially_set": True}


@pytest.fixture
def huge(make_machine: MakeMachine) -> Huge:
    """A machine with huge pages of eight frames and a slot at gfns 4..31, of which 8..31 are mapped
    by huge leaves; the slot logs, with every page dirty to begin with."""

    def make(*, eager: bool, **config: Any) -> tuple[Machine, Vcpu]:
        machine = make_machine(EIGHT, huge_2m=8, eager_page_split=eager, **ALL, **config)
        machine.add_slot(4, 28, max_level=2)
        vcpu = machine.vcpu()
        machine.run(vcpu, *(w(gfn) for gfn in range(4, 8)), w(8), w(16), w(24))
        machine.log_dirty_pages()
        return machine, vcpu

    return make


def leaf(machine: Machine, gfn: int) -> int:
    """The entry of level 2 for a gfn."""
    return machine.spte(gfn, 2)


def writable(machine: Machine) -> list[int]:
    """The huge leaves that may be written, by their first gfn."""
    return [gfn for gfn in (8, 16, 24) if leaf(machine, gfn) & SPTE_W]


def test_pages_that_are_dirty_to_begin_with_are_protected_when_they_are_cleared(
    huge: Huge,
) -> None:
    machine, vcpu = huge(eager=False)
    assert writable(machine) == [8, 16, 24], "nothing was protected when logging went on"
    machine.vm.clear_dirty_log(0, machine.vm.get_dirty_log(0))
    assert writable(machine) == []
    machine.run(vcpu, w(19))
    assert machine.vm.get_dirty_log(0) == {15}
    machine.assert_sound()


def test_what_was_not_cleared_stays_writable(huge: Huge) -> None:
    machine, _ = huge(eager=False)
    machine.vm.clear_dirty_log(0, {12, 13})
    assert writable(machine) == [8, 24], "pages 12 and 13 are gfns 16 and 17"


@pytest.mark.parametrize(
    ("pages", "left"),
    [({8, 15}, [24]), ({15}, [8, 24]), ({8, 11}, [16, 24]), ({16, 23}, [8])],
    ids=["crosses", "second only", "first only", "the next word crosses"],
)
def test_a_word_that_crosses_into_the_next_huge_page_protects_both(
    huge: Huge, pages: set[int], left: list[int]
) -> None:
    """Pages 8 to 15, which are gfns 12 to 19, are one word of the log."""
    machine, _ = huge(eager=False)
    machine.vm.clear_dirty_log(0, pages)
    assert writable(machine) == left


def test_with_eager_splitting_the_cleared_part_is_split(huge: Huge) -> None:
    machine, vcpu = huge(eager=True)
    splits = machine.record("huge_page_split")
    machine.vm.clear_dirty_log(0, {12, 13})
    assert splits.args("huge_page_split") == [(16, 2)]
    assert machine.huge_leaves() == [(8, 2), (24, 2)]
    machine.run(vcpu, w(16), w(18))
    assert {12, 14} <= machine.vm.get_dirty_log(0)
    assert 13 not in machine.vm.get_dirty_log(0)


def test_without_initially_dirty_pages_clearing_splits_nothing(make_machine: MakeMachine) -> None:
    """Whatever is huge was split, or protected, when logging went on."""
    machine = make_machine(EIGHT, huge_2m=8, manual_protect=True, eager_page_split=False)
    machine.add_slot(8, 8, max_level=2)
    machine.run(machine.vcpu(), w(8))
    machine.log_dirty_pages()
    splits = machine.record("huge_page_split")
    machine.vm.clear_dirty_log(0, {0, 1})
    assert splits.events == []


def test_the_right_to_write_is_not_given_back_without_mmu_lock(huge: Huge) -> None:
    machine, _ = huge(eager=False)
    (root,) = machine.vm.roots.snapshot()
    with writing(machine.mmu_lock):
        assert machine.vm.dirty.write_protect_gfn(root, 17, PG_LEVEL_2M)
        assert not machine.vm.dirty.write_protect_gfn(root, 17, PG_LEVEL_2M)
    assert not leaf(machine, 16) & (SPTE_W | MMU_WRITABLE)
    assert leaf(machine, 24) & SPTE_W


@pytest.mark.parametrize(("gfn", "level"), [(5, PG_LEVEL_2M), (17, PG_LEVEL_1G)])
def test_smaller_leaves_than_asked_for_are_left_alone(huge: Huge, gfn: int, level: int) -> None:
    machine, _ = huge(eager=False)
    (root,) = machine.vm.roots.snapshot()
    with writing(machine.mmu_lock):
        assert not machine.vm.dirty.write_protect_gfn(root, gfn, level)


def test_the_log_is_taken_word_by_word_under_one_lock(make_machine: MakeMachine) -> None:
    machine = make_machine(REAL)
    machine.add_slot(0, 200)
    machine.log_dirty_pages()
    words: list[set[int]] = []
    plain = machine.vm.dirty.enable_log_dirty_pt_masked

    def masked(slot: Any, pages: set[int]) -> None:
        machine.mmu_lock.assert_held_write()
        words.append(set(pages))
        plain(slot, pages)

    machine.vm.dirty.enable_log_dirty_pt_masked = masked  # type: ignore[method-assign]
    for gfn in (3, 63, 64, 199):
        machine.slot().mark_dirty(gfn)
    events = machine.record("mmu_write_locked")
    assert machine.vm.get_dirty_log(0) == {3, 63, 64, 199}
    assert words == [{3, 63}, {64}, {199}]
    assert events.names() == ["mmu_write_locked"]


def test_only_bits_that_were_set_are_cleared(make_machine: MakeMachine) -> None:
    machine = make_machine(manual_protect=True)
    machine.add_slot(8, 8)
    machine.log_dirty_pages()
    machine.slot().mark_dirty(9)
    events = machine.record("flush_begin")
    machine.vm.clear_dirty_log(0, {2, 3})
    assert events.events == [], "neither was dirty"
    machine.vm.clear_dirty_log(0, {1, 2, 100, -1})
    assert len(events.events) == 1
    assert machine.vm.get_dirty_log(0) == set()


# PML.


def logs(vcpu: Vcpu) -> bool:
    """Whether page modification logging is on, once the vCPU has served its requests."""
    vcpu.service_requests()
    return vcpu._logs


def test_pml_is_on_while_any_slot_logs(machine: Machine) -> None:
    machine.add_slot(0, 8, slot=1)
    machine.add_slot(16, 8, slot=2)
    vcpu = machine.vcpu()
    assert not logs(vcpu)
    machine.log_dirty_pages(1)
    assert logs(vcpu)
    machine.log_dirty_pages(2)
    machine.set_flags(0, 1)
    assert logs(vcpu)
    machine.delete_slot(2)
    assert not logs(vcpu)


def test_a_slot_that_is_created_logging_switches_it_on(machine: Machine) -> None:
    vcpu = machine.vcpu()
    machine.add_slot(0, 8, flags=KVM_MEM_LOG_DIRTY_PAGES)
    assert logs(vcpu)
    assert logs(machine.vm.create_vcpu()), "also for a vCPU that comes later"


def test_a_move_changes_nothing(machine: Machine) -> None:
    machine.add_slot(0, 8, flags=KVM_MEM_LOG_DIRTY_PAGES)
    vcpu = machine.vcpu()
    machine.move_slot(32)
    assert logs(vcpu)
    assert machine.kvm.nr_memslots_dirty_logging.value == 1


@pytest.mark.parametrize("config", [{"pml": False}, {"ad_bits": False}])
def test_without_hardware_that_logs_no_vcpu_is_asked(
    make_machine: MakeMachine, config: dict[str, bool]
) -> None:
    machine = make_machine(**config)
    machine.add_slot(0, 8)
    vcpu = machine.vcpu()
    machine.log_dirty_pages()
    assert not vcpu.state.requests.value & KVM_REQ_UPDATE_CPU_DIRTY_LOGGING


def test_only_the_first_slot_that_logs_asks(machine: Machine) -> None:
    machine.add_slot(0, 8, slot=1, flags=KVM_MEM_LOG_DIRTY_PAGES)
    machine.add_slot(16, 8, slot=2)
    vcpu = machine.vcpu()
    vcpu.service_requests()
    machine.log_dirty_pages(2)
    assert not vcpu.state.requests.value & KVM_REQ_UPDATE_CPU_DIRTY_LOGGING


@pytest.mark.parametrize("waits", [True, False])
def test_the_mended_request_waits_for_those_in_the_guest(
    make_machine: MakeMachine, waits: bool
) -> None:
    machine = make_machine(variants=[] if waits else [CANDIDATES["pml-request-not-awaited"]])
    machine.add_slot(0, 8)
    vcpu, guest = machine.vm.create_vcpu(), ParkedGuest(1)
    machine.run(vcpu, w(1))
    running = machine.runtime.spawn("vcpu0", lambda: vcpu.run(guest, 1))
    assert guest.inside.wait(20)
    asked: list[bool] = []
    plain = machine.vm.dirty.remove_write_access

    def remove(slot: Any) -> bool:
        asked.append(guest.leave.is_set())
        guest.leave.set()
        return plain(slot)

    machine.vm.dirty.remove_write_access = remove  # type: ignore[method-assign]
    if waits:
        machine.vm.requests._wait_for_exit = (  # type: ignore[method-assign]
            lambda state, before, wait=machine.vm.requests._wait_for_exit: (
                guest.leave.set(),
                wait(state, before),
            )
        )
    machine.log_dirty_pages()
    finish(machine.runtime, running)
    assert asked == [waits], "D bits are cleared with the vCPU out of the guest, or still in it"


def test_logging_of_a_read_only_slot_protects_nothing(machine: Machine) -> None:
    machine.add_slot(0, 8, flags=KVM_MEM_READONLY)
    machine.run(machine.vcpu(), 1)
    events = machine.record("flush_begin", "spte_changed")
    machine.set_flags(KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES)
    assert events.events == []
