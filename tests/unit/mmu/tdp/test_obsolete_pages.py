"""Step 6 of kvm_mmu_zap_all_fast(): obsolete shadow pages, and the lock break between two batches
of them (reference 2.7; R22)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmu.errors import KvmError
from mmu.posted import POSTED
from mmu.tdp.zap import BATCH_ZAP_PAGES
from mmu.variant import Variant
from stress.mutants.controls import CONTROLS
from tests.model import Machine
from tests.unit.conftest import MakeMachine

R22 = POSTED["r22-exported-zap-after-break"]


def zap_all_fast(machine: Machine) -> None:
    """kvm_mmu_zap_all_fast() under the lock it needs."""
    with machine.kvm.slots_lock:
        machine.vm.zapper.zap_all_fast()


def in_the_gap(machine: Machine, then: Callable[[], object], times: int = 1) -> list[int]:
    """Let somebody wait for mmu_lock at the first `times` looks, and do `then` while it is
    dropped; returns the pages that were left each time."""
    left: list[int] = []

    def cond_resched(shared: bool) -> bool:
        assert not shared
        if len(left) == times:
            return False
        left.append(machine.kvm.shadow_pages.count())
        machine.mmu_lock.write_unlock()
        then()
        machine.mmu_lock.write_lock()
        return True

    machine.mmu_lock.cond_resched = cond_resched  # type: ignore[method-assign]
    return left


def test_a_fast_zap_leaves_no_page_of_the_old_generation(machine: Machine) -> None:
    machine.vcpu().shadow(3)
    zap_all_fast(machine)
    assert machine.kvm.shadow_pages.count() == 0


def test_pages_are_zapped_under_one_lock_if_nobody_waits(machine: Machine) -> None:
    machine.vcpu().shadow(3 * BATCH_ZAP_PAGES)
    events = machine.record("shadow_pages_zapped", "obsolete_zap_broken", "mmu_write_unlocking")
    zap_all_fast(machine)
    assert events.names() == ["shadow_pages_zapped", "mmu_write_unlocking"]
    assert events.args("shadow_pages_zapped") == [(3 * BATCH_ZAP_PAGES,)]


def test_the_lock_may_go_after_every_ten_pages(machine: Machine) -> None:
    machine.vcpu().shadow(25)
    left = in_the_gap(machine, lambda: None, times=5)
    events = machine.record("shadow_pages_zapped", "obsolete_zap_broken")
    zap_all_fast(machine)
    assert left == [15, 5]
    assert events.names() == ["obsolete_zap_broken"] * 2 + ["shadow_pages_zapped"]


def test_ten_pages_are_too_few_for_a_break(machine: Machine) -> None:
    machine.vcpu().shadow(BATCH_ZAP_PAGES)
    assert in_the_gap(machine, lambda: None) == []
    events = machine.record("point")
    zap_all_fast(machine)
    assert ("P8b",) not in events.args("point")


def test_where_nobody_took_the_lock_the_next_page_asks_again(machine: Machine) -> None:
    machine.vcpu().shadow(13)
    events = machine.record("point")
    zap_all_fast(machine)
    assert events.args("point").count(("P8b",)) == 3


def test_pages_made_in_the_break_are_of_the_new_generation_and_stay(machine: Machine) -> None:
    vcpu = machine.vcpu()
    vcpu.shadow(11)
    in_the_gap(machine, lambda: vcpu.shadow(4))
    zap_all_fast(machine)
    assert machine.kvm.shadow_pages.count() == 4
    assert vcpu.stat.shadow_pages == 15
    zap_all_fast(machine)
    assert machine.kvm.shadow_pages.count() == 0


def test_the_flush_comes_before_the_lock_is_released(machine: Machine) -> None:
    machine.vcpu().shadow(1)
    events = machine.record("flush_end", "mmu_write_unlocking")
    zap_all_fast(machine)
    assert events.names() == ["flush_end", "mmu_write_unlocking"]
    assert events.args("flush_end")[0][0] == "obsolete-pages"


def test_the_pages_need_mmu_lock_for_write(machine: Machine) -> None:
    machine.vm.zapper.zap_obsolete_pages()
    machine.expect("O5 assert-held-for-write")


def test_nothing_of_them_is_left_when_the_vm_goes(machine: Machine) -> None:
    machine.vcpu().shadow(12)
    machine.vm.put()
    assert machine.vm.destroyed.value
    assert machine.kvm.shadow_pages.count() == 0


def test_pages_left_at_destroy_are_a_leak(machine: Machine) -> None:
    machine.vm.put()
    machine.kvm.shadow_pages.fill(1, 0)
    machine.vm._check_teardown()
    machine.expect("O11 leak-shadow-pages")


def test_no_nested_guest_faults_once_the_process_is_gone(machine: Machine) -> None:
    vcpu = machine.vcpu()
    machine.vm.exit_mm()
    with pytest.raises(KvmError, match="exited"):
        vcpu.shadow(1)
    assert machine.kvm.shadow_pages.count() == 0


def leaves_after_a_hand_over(make_machine: MakeMachine, *variants: Variant) -> int:
    """The leaves of a root that is un-exported in the break, while its own zap has got nowhere,
    when the fast zap returns."""
    machine = make_machine(variants=variants)
    machine.add_slot(0, 8)
    vcpu, fd = machine.vcpu(), machine.export()
    root = fd.metadata().root
    machine.fault(vcpu, 1)
    vcpu.shadow(11)
    machine.vm.exporter.zap_unexported = lambda root: None  # type: ignore[method-assign]
    in_the_gap(machine, lambda: machine.vm.close_tdp_fd(fd))
    zap_all_fast(machine)
    assert not root.exported.value
    assert not root.invalid.value
    return len(machine.leaves(root))


def test_a_root_that_changes_hands_in_the_break_is_zapped_before_it(
    make_machine: MakeMachine,
) -> None:
    assert leaves_after_a_hand_over(make_machine) == 0


def test_as_posted_it_is_passed_over_twice(make_machine: MakeMachine) -> None:
    assert leaves_after_a_hand_over(make_machine, R22) == 1


def test_zapping_what_was_spared_mends_it_as_well(make_machine: MakeMachine) -> None:
    mend = CONTROLS["skipped-roots-zapped"]
    assert leaves_after_a_hand_over(make_machine, mend) == 0
