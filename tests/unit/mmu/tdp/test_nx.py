"""The NX huge page mitigation: no executable huge leaf while it is on, and the worker gives huge
pages back (reference 2.12)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from mmu.machine.vcpu import Vcpu
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmu.paging.spte import SPTE_X
from mmu.tdp.fault import RetPf
from tests.conftest import blocked, finish, together
from tests.model import Machine, w, x
from tests.patience import PATIENCE
from tests.unit.conftest import MakeMachine


@pytest.fixture
def mitigated(make_machine: MakeMachine) -> Machine:
    """A machine with the mitigation on, and a slot at gfns 0..31 in "2M" pages; recovery takes
    everything at once."""
    machine = make_machine(huge_2m=8, nx_huge_pages=True, nx_recovery_ratio=1)
    machine.add_slot(0, 32, max_level=2)
    return machine


@pytest.fixture
def vcpu(mitigated: Machine) -> Vcpu:
    """Its vCPU."""
    return mitigated.vcpu()


def tracked(machine: Machine) -> list[tuple[int, int]]:
    """possible_nx_huge_pages as (gfn, level); the statistic says the same."""
    pages = machine.kvm.possible_nx_huge_pages.pages()
    assert machine.kvm.stat.nx_lpage_splits.value == len(pages)
    return [(sp.gfn, sp.level) for sp in pages]


# Faults.


def test_data_is_mapped_huge_but_not_executable(mitigated: Machine, vcpu: Vcpu) -> None:
    mitigated.run(vcpu, w(5))
    assert mitigated.huge_leaves() == [(4, 2)]
    assert not mitigated.spte(4, 2) & SPTE_X
    assert tracked(mitigated) == []
    mitigated.assert_sound()


def test_a_fetch_gets_a_small_page_and_its_table_is_remembered(
    mitigated: Machine, vcpu: Vcpu
) -> None:
    mitigated.run(vcpu, x(5))
    assert mitigated.huge_leaves() == []
    assert mitigated.spte(5) & SPTE_X
    assert tracked(mitigated) == [(4, 1)]
    mitigated.assert_sound()


def test_a_fetch_from_a_huge_page_that_is_mapped_splits_it(mitigated: Machine, vcpu: Vcpu) -> None:
    mitigated.run(vcpu, w(5), x(5), x(6), 7)
    assert mitigated.huge_leaves() == []
    assert [bool(mitigated.spte(gfn) & SPTE_X) for gfn in range(4, 8)] == [True] * 4
    assert tracked(mitigated) == [(4, 1)]
    mitigated.assert_sound()


def test_data_does_not_get_a_huge_page_over_small_executable_ones(
    mitigated: Machine, vcpu: Vcpu
) -> None:
    """disallowed_hugepage_adjust(): the two would replace each other for ever."""
    mitigated.run(vcpu, x(5))
    assert mitigated.fault(vcpu, 6, write=True) is RetPf.FIXED
    assert mitigated.huge_leaves() == []
    assert sorted(mitigated.leaves(mitigated.root())) == [5, 6]
    assert mitigated.leaves(mitigated.root())[6] == mitigated.regions[0, 0].ptes[6]
    mitigated.assert_sound()


def test_where_the_host_has_small_pages_nothing_is_remembered(make_machine: MakeMachine) -> None:
    machine = make_machine(nx_huge_pages=True)
    machine.add_slot(0, 16)
    machine.run(machine.vcpu(), x(5))
    assert tracked(machine) == []
    assert machine.spte(5) & SPTE_X


def test_without_the_mitigation_nothing_is_remembered(huge: Machine) -> None:
    huge.add_slot(0, 16, max_level=2)
    huge.run(huge.vcpu(), x(5), w(5))
    assert huge.huge_leaves() == [(4, 2)]
    assert tracked(huge) == []


def test_of_a_1g_page_only_what_could_be_huge_is_remembered(make_machine: MakeMachine) -> None:
    machine = make_machine(huge_1g=1, huge_2m=1, nx_huge_pages=True, max_level=2)
    machine.add_slot(0, 16, max_level=3)
    machine.run(machine.vcpu(), x(5))
    assert machine.tables(machine.root()) == [(0, 2), (4, 1)]
    assert tracked(machine) == [(4, 1)], "KVM would not have mapped 1G here"
    machine.assert_sound()


def test_a_table_that_is_zapped_before_it_could_be_remembered_is_not(
    mitigated: Machine, vcpu: Vcpu
) -> None:
    """B46: the list is written after the link, and the table may be gone by then."""
    other = mitigated.vcpu()
    mitigated.run(vcpu, 0)
    region = mitigated.regions[0, 0]
    root = mitigated.root()
    zapped: list[bool] = []

    def replace_by_a_huge_leaf() -> None:
        table, index = mitigated.entry(root, 5, 2)
        child = mitigated.kvm.tables.by_spte[table.spt[index]]
        leaf = mitigated.kvm.layout.leaf(
            region.ptes[4], 2, writable=True, host_writable=True, executable=False
        )
        mitigated.mmu_lock.read_lock()
        zapped.append(mitigated.vm.writer.set_spte_atomic(table, index, 4, table.spt[index], leaf))
        mitigated.mmu_lock.read_unlock()
        assert not child.nx_disallowed.value

    mitigated.at("P5", lambda: together(mitigated.runtime, replace_by_a_huge_leaf))
    assert mitigated.fault(other, 5, fetch=True) in (RetPf.FIXED, RetPf.RETRY)
    assert zapped == [True]
    assert tracked(mitigated) == []
    assert mitigated.kvm.stat.tdp_mmu_pages.value == 1


def test_a_table_of_a_slot_that_logs_dirty_pages_is_not_remembered(
    mitigated: Machine, vcpu: Vcpu
) -> None:
    """It would not be huge without the mitigation either, whatever the vCPU's last fault was
    about."""
    mitigated.add_slot(48, 16, slot=1, max_level=2, flags=KVM_MEM_LOG_DIRTY_PAGES)
    mitigated.run(vcpu, w(5))
    mitigated.run(vcpu, x(48))
    assert tracked(mitigated) == []


# The knob.


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("on", [False, True])
def test_a_toggle_removes_what_was_mapped_under_the_old_policy(
    make_machine: MakeMachine, on: bool, exported: bool
) -> None:
    machine = make_machine(huge_2m=8, nx_huge_pages=not on)
    machine.add_slot(0, 32, max_level=2)
    vcpu = machine.vcpu()
    if exported:
        machine.export()
    machine.run(vcpu, w(5))
    assert bool(machine.spte(4, 2) & SPTE_X) == on
    machine.vm.set_nx_huge_pages(on)
    assert machine.huge_leaves() == []
    machine.run(vcpu, w(5))
    assert bool(machine.spte(4, 2) & SPTE_X) != on
    machine.assert_sound()


def test_a_knob_that_does_not_change_zaps_nothing(mitigated: Machine, vcpu: Vcpu) -> None:
    mitigated.run(vcpu, 5)
    events = mitigated.record("zap_all_fast", "nx_toggle_begin")
    mitigated.vm.set_nx_huge_pages(True)
    assert events.events == []


def test_a_toggle_is_told_around_everything_it_does(mitigated: Machine) -> None:
    events = mitigated.record("nx_toggle_begin", "zap_all_fast", "nx_toggle_end")
    mitigated.vm.set_nx_huge_pages(False)
    assert [name for name, _ in events.events] == [
        "nx_toggle_begin",
        "zap_all_fast",
        "nx_toggle_end",
    ]
    assert events.args("nx_toggle_begin") == events.args("nx_toggle_end") == [(False,)]


@pytest.mark.parametrize("exported", [False, True])
def test_a_fault_from_before_the_toggle_does_not_map_after_it(
    make_machine: MakeMachine, exported: bool
) -> None:
    """Defect R10: a root that is kept valid cannot say that the policy has changed."""
    machine = make_machine(huge_2m=8)
    machine.add_slot(0, 32, max_level=2)
    vcpu = machine.vcpu()
    if exported:
        machine.export()
    stale = machine.record("fault_stale")
    machine.at("P2", lambda: together(machine.runtime, lambda: machine.vm.set_nx_huge_pages(True)))
    assert machine.fault(vcpu, 5, write=True) is RetPf.RETRY
    assert len(stale.events) == 1
    machine.run(vcpu, w(5))
    assert not machine.spte(4, 2) & SPTE_X
    machine.assert_sound()


def test_the_knob_is_written_before_anything_is_zapped(mitigated: Machine) -> None:
    """The other way round, what a fault maps in between would stay."""
    seen: list[bool] = []
    mitigated.on(zap_all_fast=lambda _: seen.append(mitigated.kvm.nx_huge_pages.value))
    mitigated.vm.set_nx_huge_pages(False)
    assert seen == [False]


def test_two_toggles_come_one_after_the_other(mitigated: Machine) -> None:
    inside, leave = threading.Event(), threading.Event()

    def park(_: int) -> None:
        inside.set()
        assert leave.wait(PATIENCE)

    mitigated.on(zap_all_fast=park)
    first = mitigated.runtime.spawn("off", lambda: mitigated.vm.set_nx_huge_pages(False))
    assert inside.wait(PATIENCE)
    second = blocked(
        mitigated.runtime,
        lambda: mitigated.vm.set_nx_huge_pages(True),
        lambda task: task.waiting_for == "kvm_lock",
    )
    assert not mitigated.kvm.nx_huge_pages.value
    leave.set()
    finish(mitigated.runtime, first, second)
    assert mitigated.kvm.nx_huge_pages.value


# Recovery.


def test_recovery_removes_tables_so_that_huge_pages_come_back(
    mitigated: Machine, vcpu: Vcpu
) -> None:
    mitigated.run(vcpu, x(5), x(9))
    assert mitigated.vm.recover_nx_huge_pages() == 2
    assert tracked(mitigated) == []
    assert mitigated.leaves(mitigated.root()) == {}
    mitigated.run(vcpu, w(5))
    assert mitigated.huge_leaves() == [(4, 2)]
    mitigated.assert_sound()


@pytest.mark.parametrize(("ratio", "dealt"), [(1, 3), (2, 2), (3, 1), (60, 1)])
def test_a_share_is_recovered_oldest_first_and_at_least_one(
    make_machine: MakeMachine, ratio: int, dealt: int
) -> None:
    machine = make_machine(huge_2m=8, nx_huge_pages=True, nx_recovery_ratio=ratio)
    machine.add_slot(0, 32, max_level=2)
    machine.run(machine.vcpu(), x(9), x(5), x(20))
    assert machine.vm.recover_nx_huge_pages() == dealt
    assert tracked(machine) == [(8, 1), (4, 1), (20, 1)][dealt:]
    machine.assert_sound()


def test_with_nothing_to_recover_nothing_is_flushed(mitigated: Machine, vcpu: Vcpu) -> None:
    mitigated.run(vcpu, 5)
    events = mitigated.record("flush_begin")
    assert mitigated.vm.recover_nx_huge_pages() == 0
    assert events.events == []
    mitigated.expect()


def test_recovered_tables_are_flushed_inside_the_rcu_section_that_keeps_them(
    mitigated: Machine, vcpu: Vcpu
) -> None:
    """B03."""
    mitigated.run(vcpu, x(5), x(9))
    held: list[tuple[str, bool, int]] = []
    mitigated.on(
        flush_begin=lambda reason, *_: held.append(
            (reason, mitigated.kvm.rcu.read_held(), mitigated.kvm.rcu.pending())
        )
    )
    mitigated.vm.recover_nx_huge_pages()
    assert held == [("nx-recovery", True, 2)], "once for all, while none can be freed"


def test_recovery_yields_and_flushes_before_it_does(mitigated: Machine, vcpu: Vcpu) -> None:
    mitigated.run(vcpu, x(5), x(9))
    yields: list[bool] = []
    mitigated.mmu_lock.needbreak = lambda: not yields  # type: ignore[method-assign]
    events = mitigated.record("flush_begin")
    plain = mitigated.mmu_lock.cond_resched

    def cond_resched(shared: bool) -> None:
        yields.append(mitigated.kvm.rcu.read_held())
        assert len(events.events) == 1
        plain(shared)

    mitigated.mmu_lock.cond_resched = cond_resched  # type: ignore[method-assign, assignment]
    assert mitigated.vm.recover_nx_huge_pages() == 2
    assert yields == [False], "outside of RCU"
    assert len(events.events) == 2


@pytest.fixture
def logging(mitigated: Machine, vcpu: Vcpu) -> Callable[[], None]:
    """Switches logging on for the slot whose tables are on the list: they are needed small for
    that, too."""

    def switch_on() -> None:
        mitigated.run(vcpu, x(5))
        mitigated.log_dirty_pages()

    return switch_on


def test_a_table_that_dirty_logging_needs_is_only_forgotten(
    mitigated: Machine, vcpu: Vcpu, logging: Callable[[], None]
) -> None:
    logging()
    before = mitigated.leaves(mitigated.root())
    events = mitigated.record("flush_begin", "prepare_zap_page")
    assert mitigated.vm.recover_nx_huge_pages() == 1
    assert tracked(mitigated) == []
    assert mitigated.leaves(mitigated.root()) == before
    assert events.events == []
    mitigated.assert_sound()


def test_the_slot_of_the_tables_own_address_space_decides(make_machine: MakeMachine) -> None:
    """B30: SMM's slot logs, the normal one does not."""
    machine = make_machine(huge_2m=8, nx_huge_pages=True, nx_recovery_ratio=1)
    machine.add_slot(0, 16, max_level=2)
    machine.add_slot(0, 16, as_id=1, flags=KVM_MEM_LOG_DIRTY_PAGES)
    machine.run(machine.vcpu(), x(5))
    assert machine.vm.recover_nx_huge_pages() == 1
    assert machine.leaves(machine.root()) == {}
    machine.assert_sound()


def test_a_table_of_a_deleted_slot_is_recovered_without_a_warning(
    mitigated: Machine, vcpu: Vcpu
) -> None:
    """Defect R11: the exported root's leaf zap leaves its tables behind."""
    mitigated.add_slot(48, 16, slot=1, flags=KVM_MEM_LOG_DIRTY_PAGES)
    mitigated.export()
    mitigated.run(vcpu, x(5))
    mitigated.delete_slot(0)
    assert tracked(mitigated) == [(4, 1)]
    assert mitigated.vm.recover_nx_huge_pages() == 1
    assert tracked(mitigated) == []
    mitigated.expect()
    mitigated.assert_sound()


def test_a_table_whose_parent_entry_is_gone_is_reported_and_taken_off(
    mitigated: Machine, vcpu: Vcpu
) -> None:
    mitigated.run(vcpu, x(5))
    sp, index = mitigated.entry(mitigated.root(), 5, 2)
    sp.spt.store(index, 0)
    assert mitigated.vm.recover_nx_huge_pages() == 1
    assert tracked(mitigated) == []
    mitigated.expect("O9 nx-page-not-linked")
    mitigated.abandon()


def test_recovery_while_guests_run_does_no_harm(mitigated: Machine, vcpu: Vcpu) -> None:
    other = mitigated.vm.create_vcpu()

    def guest(which: Vcpu) -> None:
        for _ in range(20):
            mitigated.run(which, x(5), w(6), x(9), w(9), 4, x(20))

    def recover() -> None:
        for _ in range(20):
            mitigated.vm.recover_nx_huge_pages()

    together(mitigated.runtime, lambda: guest(vcpu), lambda: guest(other), recover)
    for each in (vcpu, other):
        each.service_requests()
    mitigated.assert_sound()
