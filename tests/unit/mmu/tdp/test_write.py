"""Writing SPTEs: who may write in which mode, which changes are illegal, and what a change has to
carry with it."""

from __future__ import annotations

from typing import Any

import pytest

from mmu.paging.spte import HOST_WRITABLE, MMU_WRITABLE, REMOVED_SPTE, SPTE_D, SPTE_W, pfn_of
from mmu.paging.table import RootPage
from mmu.sync.poison import is_poisoned
from mmu.tdp.iter import TdpIter
from mmu.tdp.write import SpteWriter
from tests.conftest import blocked, elsewhere, finish, rcu_section, reading, writing
from tests.model import Machine, round_down


@pytest.fixture
def root(machine: Machine) -> RootPage:
    """A root with one leaf, at gfn 5."""
    root = machine.root()
    machine.plant(root, 5)
    return root


@pytest.fixture
def writer(machine: Machine) -> SpteWriter:
    """What is tested."""
    return machine.vm.writer


@pytest.fixture
def leaf(machine: Machine) -> int:
    """An ordinary writable leaf for frame 9."""
    return machine.kvm.layout.leaf(9, 1, writable=True, host_writable=True)


def at(machine: Machine, root: RootPage, gfn: int) -> TdpIter:
    """An iterator that stands on the last-level SPTE of `gfn`."""
    it = TdpIter(machine.kvm, root, 1, gfn, gfn + 1)
    while it.level > 1:
        it.next()
    return it


# Modes.


def test_the_atomic_setter_needs_the_read_lock(
    machine: Machine, root: RootPage, writer: SpteWriter, leaf: int
) -> None:
    sp, index = machine.entry(root, 6)
    assert writer.set_spte_atomic(sp, index, 6, 0, leaf)
    machine.expect("O5 assert-held-for-read")


def test_the_write_lock_is_not_good_enough_for_the_atomic_setter(
    machine: Machine, root: RootPage, writer: SpteWriter, leaf: int
) -> None:
    sp, index = machine.entry(root, 6)
    with writing(machine.mmu_lock):
        writer.set_spte_atomic(sp, index, 6, 0, leaf)
    machine.expect("O5 assert-held-for-read")


@pytest.mark.parametrize("locked", [False, True], ids=["unlocked", "read-locked"])
def test_the_exclusive_setter_needs_the_write_lock(
    machine: Machine, root: RootPage, writer: SpteWriter, locked: bool
) -> None:
    sp, index = machine.entry(root, 5)
    if locked:
        machine.mmu_lock.read_lock()
    writer.set_spte(sp, index, 5, sp.spt[index], 0)
    if locked:
        machine.mmu_lock.read_unlock()
    machine.expect("O5 assert-held-for-write")


@pytest.mark.parametrize("shared", [True, False], ids=["atomic", "exclusive"])
def test_in_its_own_mode_each_setter_is_silent(
    machine: Machine, root: RootPage, writer: SpteWriter, shared: bool
) -> None:
    with rcu_section(machine.kvm.rcu):
        it = at(machine, root, 5)
    machine.mmu_lock.lock(shared)
    writer.iter_set_spte_atomic(it, 0) if shared else writer.iter_set_spte(it, 0)
    machine.mmu_lock.unlock(shared)
    assert machine.leaves(root) == {}
    machine.expect()


@pytest.mark.parametrize("shared", [True, False], ids=["atomic", "exclusive"])
def test_writing_through_an_iterator_that_has_yielded_is_reported(
    machine: Machine, root: RootPage, writer: SpteWriter, shared: bool
) -> None:
    with rcu_section(machine.kvm.rcu):
        it = at(machine, root, 5)
    it.yielded = True
    machine.mmu_lock.lock(shared)
    writer.iter_set_spte_atomic(it, 0) if shared else writer.iter_set_spte(it, 0)
    machine.mmu_lock.unlock(shared)
    machine.expect("O7 set-after-yield")


# Losing and winning.


def test_a_lost_compare_exchange_changes_nothing(
    machine: Machine, root: RootPage, writer: SpteWriter, leaf: int
) -> None:
    sp, index = machine.entry(root, 5)
    before = sp.spt[index]
    changes = machine.record("spte_changed")
    with reading(machine.mmu_lock):
        assert not writer.set_spte_atomic(sp, index, 5, 0, leaf)
    assert sp.spt[index] == before
    assert changes.events == []
    assert machine.kvm.stat.pages_4k.value == 1


def test_a_lost_compare_exchange_refreshes_the_iterator(
    machine: Machine, root: RootPage, writer: SpteWriter
) -> None:
    with reading(machine.mmu_lock), rcu_section(machine.kvm.rcu):
        it = at(machine, root, 5)
        truth, it.old_spte = it.old_spte, 0
        assert not writer.iter_set_spte_atomic(it, 0xBAD)
        assert it.old_spte == truth
        assert writer.iter_set_spte_atomic(it, 0)


def test_the_exclusive_setter_sees_what_the_cpu_changed_behind_it(
    machine: Machine, root: RootPage, writer: SpteWriter
) -> None:
    """A leaf that the lockless path may make writable is exchanged, not stored over."""
    sp, index = machine.entry(root, 5)
    protected = sp.spt[index] & ~SPTE_W
    assert writer.has_volatile_bits(protected, 1)
    assert sp.spt[index] & SPTE_W, "meanwhile the entry was made writable"
    with writing(machine.mmu_lock):
        assert writer.set_spte(sp, index, 5, protected, 0) == protected | SPTE_W


@pytest.mark.parametrize("bits", [SPTE_D | SPTE_W | MMU_WRITABLE | HOST_WRITABLE, HOST_WRITABLE, 0])
def test_other_leaves_have_no_volatile_bits(
    machine: Machine, writer: SpteWriter, bits: int
) -> None:
    assert not writer.has_volatile_bits(
        machine.kvm.layout.leaf(1, 1, writable=False, host_writable=False) | bits, 1
    )


def test_tables_and_empty_entries_have_no_volatile_bits(
    machine: Machine, writer: SpteWriter
) -> None:
    assert not writer.has_volatile_bits(machine.kvm.layout.table(0x5000) | MMU_WRITABLE, 2)
    assert not writer.has_volatile_bits(MMU_WRITABLE, 1)


# Illegal changes.


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("leaf 9", "leaf 8"),
        ("frozen", "leaf 9"),
        ("frozen", "zero"),
        ("zero", "junk"),
        ("zero", "unbacked leaf"),
    ],
)
def test_illegal_changes_are_reported(
    machine: Machine, root: RootPage, writer: SpteWriter, old: str, new: str
) -> None:
    layout = machine.kvm.layout
    values = {
        "zero": 0,
        "frozen": REMOVED_SPTE,
        "junk": 0x40,
        "leaf 8": layout.leaf(8, 1, writable=True, host_writable=True),
        "leaf 9": layout.leaf(9, 1, writable=True, host_writable=True),
        "unbacked leaf": layout.leaf(9, 1, writable=False, host_writable=False) | SPTE_W,
    }
    sp, index = machine.entry(root, 6)
    sp.spt.store(index, values[old])
    with reading(machine.mmu_lock):
        assert writer.set_spte_atomic(sp, index, 6, values[old], values[new])
    machine.expect("O7 spte-transition")
    machine.abandon()


def test_an_entry_that_changes_under_its_table_is_reported(
    machine: Machine, root: RootPage, writer: SpteWriter
) -> None:
    sp, index = machine.entry(root, 5, level=2)
    table = sp.spt[index]
    with reading(machine.mmu_lock):
        assert writer.set_spte_atomic(sp, index, sp.gfn + index * 4, table, table & ~SPTE_W)
    machine.expect("O7 spte-transition")
    machine.abandon()


@pytest.mark.parametrize(("old", "new"), [(REMOVED_SPTE, 0), (0, REMOVED_SPTE)])
def test_a_writer_neither_meets_nor_makes_frozen_entries(
    machine: Machine, root: RootPage, writer: SpteWriter, old: int, new: int
) -> None:
    sp, index = machine.entry(root, 6)
    sp.spt.store(index, old)
    with writing(machine.mmu_lock):
        writer.set_spte(sp, index, 6, old, new)
    machine.expect("O7 spte-transition")


def test_a_gfn_that_is_not_aligned_to_its_level_is_reported(
    machine: Machine, root: RootPage, writer: SpteWriter
) -> None:
    sp, index = machine.entry(root, 5, level=2)
    with rcu_section(machine.kvm.rcu), reading(machine.mmu_lock):
        assert writer.set_spte_atomic(sp, index, 5, sp.spt[index], 0)
    machine.expect("O7 spte-transition")


def test_a_change_to_the_same_value_is_no_change(
    machine: Machine, root: RootPage, writer: SpteWriter
) -> None:
    changes = machine.record("spte_changed", "spte_zapped")
    sp, index = machine.entry(root, 5)
    with writing(machine.mmu_lock):
        writer.set_spte(sp, index, 5, sp.spt[index], sp.spt[index])
    assert changes.events == []
    assert machine.kvm.stat.pages_4k.value == 1


# What a change carries with it.


def test_each_change_is_an_event_and_each_removal_a_second_one(
    machine: Machine, root: RootPage, writer: SpteWriter, leaf: int
) -> None:
    events = machine.record("spte_changed", "spte_zapped")
    sp, index = machine.entry(root, 6)
    with reading(machine.mmu_lock):
        writer.set_spte_atomic(sp, index, 6, 0, leaf)
    with writing(machine.mmu_lock):
        writer.set_spte(sp, index, 6, leaf, 0)
    assert events.events == [
        ("spte_changed", (sp, 6, 1, 0, leaf, True)),
        ("spte_changed", (sp, 6, 1, leaf, 0, False)),
        ("spte_zapped", (sp, 6, 1, leaf, 0, False)),
    ]


def test_leaves_are_counted_by_their_size(
    machine: Machine, root: RootPage, writer: SpteWriter, leaf: int
) -> None:
    stat = machine.kvm.stat
    large = machine.kvm.layout.leaf(16, 2, writable=True, host_writable=True)
    sp, index = machine.entry(root, 8, level=2)
    with reading(machine.mmu_lock):
        writer.set_spte_atomic(sp, index, 8, 0, large)
    assert (stat.pages_4k.value, stat.pages_2m.value) == (1, 1)
    with writing(machine.mmu_lock):
        writer.set_spte(sp, index, 8, large, 0)
    assert (stat.pages_4k.value, stat.pages_2m.value) == (1, 0)


def test_a_linked_table_is_counted_when_it_is_visible(
    machine: Machine, root: RootPage, writer: SpteWriter
) -> None:
    child = machine.kvm.tables.allocate()
    child.place(root, root, 3, 48, 2)
    counted_when_visible = []
    machine.at(
        "P5",
        lambda: counted_when_visible.append(
            (root.spt[3] != 0, machine.kvm.stat.tdp_mmu_pages.value)
        ),
    )
    with reading(machine.mmu_lock):
        assert writer.link_sp(root, 3, 48, 0, child)
        assert not writer.link_sp(root, 3, 48, 0, child), "there is a table already"
    assert counted_when_visible == [(True, 2)]
    assert machine.kvm.stat.tdp_mmu_pages.value == 3
    assert child.root is root


# Removing a table.


def unlink(machine: Machine, root: RootPage, gfn: int, *, shared: bool) -> Any:
    """Clear the root's entry for `gfn`, and with it everything below; returns the level-2 table
    that stood there."""
    geometry = machine.kvm.geometry
    index, first = geometry.index(gfn, 3), round_down(geometry, gfn, 3)
    table, _ = machine.entry(root, gfn, level=2)
    args: tuple[Any, ...] = (root, index, first, root.spt[index], 0)
    machine.mmu_lock.lock(shared)
    machine.vm.writer.set_spte_atomic(*args) if shared else machine.vm.writer.set_spte(*args)
    machine.mmu_lock.unlock(shared)
    return table


@pytest.mark.parametrize("shared", [True, False])
def test_a_removed_table_takes_everything_below_with_it(
    machine: Machine, root: RootPage, shared: bool
) -> None:
    machine.plant(root, 4, 10, 40)
    events = machine.record("prepare_zap_page")
    unlink(machine, root, 5, shared=shared)
    assert machine.leaves(root) == {40: 41}
    assert machine.kvm.stat.pages_4k.value == 1
    assert machine.kvm.stat.tdp_mmu_pages.value == 2
    assert [sp_shared for _, sp_shared in events.args("prepare_zap_page")] == [shared] * 3
    machine.kvm.rcu.barrier()
    assert machine.kvm.tables.live() == 3 + len(machine.spare_tables()), (
        "the root and the two tables of gfn 40"
    )


def test_under_the_read_lock_every_entry_is_frozen(machine: Machine, root: RootPage) -> None:
    """So that a fault which still walks there cannot install anything."""
    with rcu_section(machine.kvm.rcu):
        table = unlink(machine, root, 5, shared=True)
        assert list(table.spt) == [REMOVED_SPTE] * 4
    machine.expect()


def test_under_the_write_lock_only_present_entries_are_touched(
    machine: Machine, root: RootPage
) -> None:
    with rcu_section(machine.kvm.rcu):
        table = unlink(machine, root, 5, shared=False)
        assert list(table.spt) == [0, REMOVED_SPTE, 0, 0]
    machine.expect()


def test_a_table_does_not_just_become_another_table(
    machine: Machine, root: RootPage, writer: SpteWriter
) -> None:
    """Nobody would ever free the first one, nor what it maps."""
    other = machine.kvm.tables.allocate()
    other.place(root, root, 0, 0, 2)
    with machine.zapping():
        writer.set_spte(root, 0, 0, root.spt[0], machine.kvm.layout.table(other.address))
    machine.expect("O7 spte-transition")
    machine.abandon()


@pytest.mark.parametrize("shared", [True, False])
def test_a_removed_table_lives_until_its_readers_have_left(
    machine: Machine, root: RootPage, shared: bool
) -> None:
    with elsewhere(machine.runtime, rcu_section(machine.kvm.rcu)):
        table = unlink(machine, root, 5, shared=shared)
        assert machine.kvm.rcu.pending() == 2, "it and the table below it"
        assert not is_poisoned(table)
    machine.kvm.rcu.barrier()
    assert is_poisoned(table)


def test_removal_waits_for_whoever_has_an_entry_frozen(machine: Machine, root: RootPage) -> None:
    """Another task froze a leaf and will store something else in a moment: the remover must get the
    last word."""
    sp, index = machine.entry(root, 5)
    frozen = sp.spt.xchg(index, REMOVED_SPTE)
    with rcu_section(machine.kvm.rcu):
        remover = blocked(
            machine.runtime,
            lambda: unlink(machine, root, 5, shared=True),
            lambda task: task.waiting_for == "frozen SPTE",
        )
        sp.spt.store(index, frozen)
        finish(machine.runtime, remover)
        assert sp.spt[index] == REMOVED_SPTE
    assert machine.kvm.stat.pages_4k.value == 0


def test_the_frame_of_a_removed_leaf_can_be_read_from_the_event(
    machine: Machine, root: RootPage
) -> None:
    zapped = machine.record("spte_zapped")
    unlink(machine, root, 5, shared=True)
    assert [
        (gfn, pfn_of(old)) for _, gfn, level, old, _, _ in zapped.args("spte_zapped") if level == 1
    ] == [(5, 6)]
