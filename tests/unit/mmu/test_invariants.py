"""Invariants: silent on a sound VM whatever it did, and each of them sees the damage it is there
for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmu.invariants import ENDED, INVARIANTS, RULE_OF, STANDS_FOR, check, violations
from mmu.memory.memslots import KVM_MEM_READONLY
from mmu.numbers.oracles import RULES
from mmu.paging.spte import HOST_WRITABLE, MMU_WRITABLE, REMOVED_SPTE, SPTE_D, SPTE_W
from mmu.paging.table import RootPage, RootRole
from tests.conftest import elsewhere, writing
from tests.model import Machine, w
from tests.unit.conftest import MakeMachine


@pytest.fixture
def busy(machine: Machine) -> Machine:
    """A machine in the middle of its life: two slots, two vCPUs, gfns 1, 2 and 33 mapped, and a
    read-only slot at 48."""
    machine.add_slot(0, 16, slot=1)
    machine.add_slot(32, 16, slot=2)
    machine.add_slot(48, 4, slot=3, flags=KVM_MEM_READONLY)
    for vcpu in (machine.vcpu(), machine.vcpu()):
        machine.run(vcpu, 1, 2, 33, 49)
    return machine


def broken(machine: Machine) -> set[str]:
    """The invariants that do not hold."""
    return {violation.invariant for violation in violations(machine.vm)}


def change_leaf(machine: Machine, gfn: int, change: Callable[[int], int]) -> None:
    """Write a leaf behind everybody's back, TLBs included."""
    sp, index = machine.entry(machine.root(), gfn)
    sp.spt.store(index, change(sp.spt[index]))
    forget(machine)


def forget(machine: Machine) -> None:
    """Empty the TLBs, so that only the tables are judged."""
    for vcpu in machine.vm.vcpus():
        vcpu.tlb.flush()


# Sound.


def test_a_new_vm_is_sound(machine: Machine) -> None:
    machine.assert_sound()
    assert check(machine.vm) == 0


def test_a_busy_vm_is_sound(busy: Machine) -> None:
    busy.assert_sound()
    busy.delete_slot(2)
    busy.assert_sound()
    busy.move_slot(16, slot=1)
    busy.assert_sound()
    assert check(busy.vm) == 0


def test_a_pending_flush_excuses_a_stale_tlb(busy: Machine) -> None:
    busy.vm.tlb.flush("test")
    change_leaf(busy, 1, lambda spte: spte)
    for vcpu in busy.vm.vcpus():
        vcpu.tlb.entries[1] = 0xBAD
    busy.assert_sound()


def test_every_invariant_says_what_it_is() -> None:
    assert all((holds.__doc__ or "").endswith(".") for holds in INVARIANTS.values())
    assert all(name.startswith("I") and name[1:].isdigit() for name in INVARIANTS)


# Broken.


def reference_lost(machine: Machine) -> None:
    """The TDP MMU's own and both vCPUs' references."""
    for _ in range(3):
        machine.root().refcount.put()


def mapped_behind_the_zapper(machine: Machine) -> None:
    """A root that is said to be zapped."""
    machine.root().zapped.value = True


def exported_flag(machine: Machine) -> None:
    """A flag without an exporter."""
    machine.root().exported.value = True


def exported_and_invalid(machine: Machine) -> None:
    """What an importer must never meet."""
    machine.export().metadata().root.invalid.value = True


def linked_twice(machine: Machine) -> None:
    """One table under two entries."""
    root = machine.root()
    root.spt.store(1, root.spt[0])


def linked_to_a_freed_page(machine: Machine) -> None:
    """A table that was freed but not unlinked."""
    root = machine.root()
    table = machine.kvm.tables.by_spte[root.spt[0]]
    machine.kvm.rcu.call(lambda: machine.kvm.tables.free(table))
    machine.kvm.rcu.barrier()


def somebody_elses_frame(machine: Machine) -> None:
    """The leaf of gfn 1 maps gfn 2's frame."""
    sp, index = machine.entry(machine.root(), 2)
    other = sp.spt[index]
    change_leaf(machine, 1, lambda _: other)


def released_frame(machine: Machine) -> None:
    """The host took the memory away and nobody told KVM."""
    machine.vm.host.munmap(machine.regions[0, 1])


def writable_without_permission(machine: Machine) -> None:
    """W, but not MMU-writable."""
    change_leaf(machine, 1, lambda spte: spte & ~MMU_WRITABLE)


def mmu_writable_without_the_host(machine: Machine) -> None:
    """MMU-writable, but not host-writable."""
    change_leaf(machine, 1, lambda spte: spte & ~(HOST_WRITABLE | SPTE_W))


def writable_in_a_read_only_slot(machine: Machine) -> None:
    """More rights than the slot gives, consistent as they may look."""
    change_leaf(machine, 49, lambda spte: spte | SPTE_W | MMU_WRITABLE | HOST_WRITABLE)


def leaf_without_a_slot(machine: Machine) -> None:
    """Gfn 60 belongs to nobody."""
    machine.plant(machine.root(), 60)
    machine.vm.host.stamp.store(61, 60)


def stale_tlb(machine: Machine) -> None:
    """A vCPU remembers rights that the tables no longer give, and nobody will remind it."""
    machine.vm.vcpus()[0].tlb.entries[49] |= SPTE_W


def valid_again(machine: Machine) -> None:
    """A root that was to be zapped because it was invalid."""
    machine.root().scheduled.value = True


def lost_page(machine: Machine) -> None:
    """A table page that nobody knows of."""
    machine.kvm.tables.allocate()


def invalidation_without_an_end(machine: Machine) -> None:
    """A notifier that has begun on one set of slots and ended on another."""
    machine.kvm.invalidation.in_progress.fetch_add(1)


def notifier_without_an_end(machine: Machine) -> None:
    """The count that memslot updates wait for."""
    machine.kvm.mn_active_invalidate_count.fetch_add(1)


def miscounted_splits(machine: Machine) -> None:
    """nx_lpage_splits went astray."""
    machine.kvm.stat.nx_lpage_splits.fetch_add(1)


def tracked_without_the_flag(machine: Machine) -> None:
    """On possible_nx_huge_pages, but not because of the mitigation any more."""
    table, _ = machine.entry(machine.root(), 1)
    table.nx_disallowed = machine.runtime.cell("nx_huge_page_disallowed", True)
    machine.kvm.possible_nx_huge_pages.track(table)
    table.nx_disallowed.value = False


def tracked_but_not_linked(machine: Machine) -> None:
    """On possible_nx_huge_pages, but not in any tree."""
    table = machine.kvm.tables.allocate()
    table.nx_disallowed = machine.runtime.cell("nx_huge_page_disallowed", True)
    machine.kvm.possible_nx_huge_pages.track(table)


def lost_dirty_bit(machine: Machine) -> None:
    """A guest wrote, the D bit vanished, and the host was never told."""
    machine.run(machine.vm.vcpus()[0], w(2))
    machine.vm.vcpus()[0].dirtied[machine.regions[0, 1].ptes[2]] = machine.kvm.dirty_clock.value + 1
    change_leaf(machine, 2, lambda spte: spte & ~SPTE_D)


def current_mmio_spte_in_a_slot(machine: Machine) -> None:
    """A fault would honour it, and emulate what is memory."""
    generation = machine.vm.memslots.peek(0).generation.value
    change_leaf(machine, 3, lambda _: machine.kvm.layout.mmio(3, generation))


def executable_huge_leaf_under_the_mitigation(machine: Machine) -> None:
    """What the iTLB multihit erratum must never meet."""
    sp, index = machine.entry(machine.root(), 8, level=2)
    sp.spt.store(index, machine.kvm.layout.leaf(8, 2, writable=True, host_writable=True))
    machine.kvm.nx_huge_pages.value = True


def device_on_an_unexported_root(machine: Machine) -> None:
    """Nobody will tell it of anything."""
    machine.vm.create_device().root.value = machine.root()


def device_that_is_not_registered(machine: Machine) -> None:
    """The root is exported, but this device is no importer's."""
    machine.vm.create_device().root.value = machine.export().metadata().root


def wrong_answer(machine: Machine) -> None:
    """An IO fault was answered otherwise than the slots would have it."""
    machine.vm.exporter.wrong_answers.fetch_add(1)


def frozen_at_rest(machine: Machine) -> None:
    """A freezer forgot its entry."""
    sp, index = machine.entry(machine.root(), 3)
    sp.spt.store(index, REMOVED_SPTE)


def junk_at_rest(machine: Machine) -> None:
    """Neither present nor zero nor frozen."""
    machine.root().spt.store(1, 0x40)


def miscounted_tables(machine: Machine) -> None:
    """tdp_mmu_pages went astray."""
    machine.kvm.stat.tdp_mmu_pages.fetch_add(1)


def miscounted_leaves(machine: Machine) -> None:
    """pages_4k went astray."""
    machine.kvm.stat.pages_4k.add(-1)


DAMAGE: list[tuple[Callable[[Machine], None], set[str]]] = [
    (reference_lost, {"I1", "I3"}),
    (mapped_behind_the_zapper, {"I2", "I3"}),
    (exported_flag, {"I5"}),
    (exported_and_invalid, {"I5"}),
    (linked_twice, {"I6"}),
    (linked_to_a_freed_page, {"I6"}),
    (somebody_elses_frame, {"I7"}),
    (released_frame, {"I7"}),
    (writable_without_permission, {"I7"}),
    (mmu_writable_without_the_host, {"I7"}),
    (writable_in_a_read_only_slot, {"I7"}),
    (leaf_without_a_slot, {"I8"}),
    (valid_again, {"I4"}),
    (stale_tlb, {"I9"}),
    (lost_page, {"I10"}),
    (invalidation_without_an_end, {"I12"}),
    (notifier_without_an_end, {"I12"}),
    (miscounted_splits, {"I14"}),
    (tracked_without_the_flag, {"I14"}),
    (tracked_but_not_linked, {"I14"}),
    (lost_dirty_bit, {"I15"}),
    (current_mmio_spte_in_a_slot, {"I16"}),
    (executable_huge_leaf_under_the_mitigation, {"I17"}),
    (device_on_an_unexported_root, {"I18"}),
    (device_that_is_not_registered, {"I18"}),
    (wrong_answer, {"I19"}),
    (frozen_at_rest, {"I11"}),
    (junk_at_rest, {"I11"}),
    (miscounted_tables, {"I13"}),
    (miscounted_leaves, {"I13"}),
]


@pytest.mark.parametrize(
    ("damage", "expected"), DAMAGE, ids=lambda value: value.__name__ if callable(value) else ""
)
def test_each_damage_is_seen(
    busy: Machine, damage: Callable[[Machine], None], expected: set[str]
) -> None:
    busy.abandon()
    damage(busy)
    assert broken(busy) >= expected
    busy.news()


def test_every_invariant_is_tried() -> None:
    assert set().union(*(expected for _, expected in DAMAGE)) | {"I20"} == set(INVARIANTS)


def test_a_lock_that_is_held_at_rest_is_seen(busy: Machine) -> None:
    with elsewhere(busy.runtime, busy.kvm.slots_lock, "forgetful"):
        (violation,) = violations(busy.vm)
    assert violation.invariant == "I20"
    assert "forgetful" in violation.found
    assert "slots_lock" in violation.found
    busy.assert_sound()


def test_an_mmio_spte_of_another_generation_is_harmless(busy: Machine) -> None:
    """A fault would not honour it."""
    generation = busy.vm.memslots.peek(0).generation.value
    change_leaf(busy, 3, lambda _: busy.kvm.layout.mmio(3, generation - 2))
    busy.assert_sound()


def test_a_d_bit_that_the_host_was_told_of_is_not_lost(busy: Machine) -> None:
    lost_dirty_bit(busy)
    busy.kvm.dirty_clock.fetch_add(1)
    busy.kvm.set_pfn_dirty(busy.regions[0, 1].ptes[2])
    busy.assert_sound()


def test_an_exporter_without_the_flag_is_seen(busy: Machine) -> None:
    root = busy.export().metadata().root
    root.exported.value = False
    assert broken(busy) == {"I5"}
    root.exported.value = True


def test_too_many_references_are_seen_too(busy: Machine) -> None:
    root = busy.root()
    root.refcount.get()
    assert broken(busy) == {"I3"}
    with writing(busy.mmu_lock):
        busy.vm.roots.put_root(root, shared=False)
    busy.assert_sound()


# Telling.


def test_a_broken_invariant_is_reported_once_with_everything_found(busy: Machine) -> None:
    busy.abandon()
    busy.vm.host.munmap(busy.regions[0, 1])
    count = check(busy.vm)
    assert count == 2, "the leaves of gfns 1 and 2"
    busy.expect("INV I7")
    (report,) = busy.reporter.reports
    assert [section.title for section in report.sections] == ["found at rest", "2 found"]
    assert report.sections[0].lines[0].startswith("while all tasks were paused outside KVM")
    assert len(report.sections[1].lines) == 2
    assert "appendix A I7" in report.source
    assert report.gfn == 1, "so that a recorder can add what happened to it"


def test_a_broken_invariant_says_which_rule_it_stands_for(busy: Machine) -> None:
    busy.abandon()
    busy.vm.host.munmap(busy.regions[0, 1])
    check(busy.vm, ENDED)
    busy.expect("INV I7")
    (report,) = busy.reporter.reports
    assert report.names() == {"INV", "I7", "O6"}
    assert report.headline.startswith(
        "WARNING: invariant I7 (O6 STALE-MAP) does not hold at rest: "
    )
    assert f"stands for O6 {RULES['O6']}" in report.render()
    assert report.sections[0].lines[0].startswith("after all tasks had ended")


@pytest.mark.parametrize("name", INVARIANTS)
def test_every_invariant_is_reported_as_a_rule_or_stands_for_one(name: str) -> None:
    assert (name in RULE_OF) != (name in STANDS_FOR)
    assert {**RULE_OF, **STANDS_FOR}[name] in set(RULES) - {"INV"}


def test_a_table_that_is_linked_below_itself_is_reported_and_not_walked_for_ever(
    busy: Machine,
) -> None:
    busy.abandon()
    root = busy.root()
    sp, _ = busy.entry(root, 1)
    assert sp.parent is not None
    sp.parent.spt.store(busy.kvm.geometry.entries - 1, busy.kvm.layout.table(sp.parent.address))
    assert "I6" in broken(busy)


def test_checking_changes_nothing(busy: Machine) -> None:
    roots: list[RootPage] = busy.vm.roots.snapshot()
    before = [(root.refcount.read(), list(root.spt)) for root in roots]
    check(busy.vm)
    assert [(root.refcount.read(), list(root.spt)) for root in busy.vm.roots.snapshot()] == before


def test_roots_of_every_role_are_looked_at(make_machine: MakeMachine) -> None:
    machine = make_machine()
    with writing(machine.mmu_lock):
        nested = machine.vm.roots.get_vcpu_root(RootRole(0, guest_mode=True))
    nested.spt.store(0, REMOVED_SPTE)
    assert broken(machine) == {"I3", "I11"}
    nested.spt.store(0, 0)
    with writing(machine.mmu_lock):
        machine.vm.roots.put_root(nested, shared=False)
