"""Page-table memory: pages are found by address, freed only through RCU and once, and every later
touch is reported."""

from __future__ import annotations

import pytest

from mmu.paging.geometry import PG_LEVEL_4K
from mmu.paging.table import PageTableMemory, RootRole, ShadowPage
from mmu.sync.poison import is_poisoned
from mmu.variant import Variant
from tests.conftest import elsewhere, rcu_section
from tests.model import Machine
from tests.unit.conftest import MakeMachine


def free_through_rcu(machine: Machine, page: ShadowPage) -> None:
    """The right way to free a page that was visible."""
    page.retire(page.describe(), machine.reporter)
    machine.kvm.rcu.call(lambda: machine.kvm.tables.free(page))
    machine.kvm.rcu.barrier()


def test_a_new_page_is_empty_and_found_by_its_address(machine: Machine) -> None:
    tables = machine.kvm.tables
    first, second = tables.allocate(), tables.allocate()
    assert list(first.spt) == [0] * machine.kvm.geometry.entries
    assert first.address != second.address
    assert first.address % 4096 == 0
    assert tables.at(first.address) is first
    assert tables.at(second.address) is second
    assert tables.live() == 2
    tables.discard(first)
    tables.discard(second)
    assert tables.live() == 0


def test_a_new_root_belongs_to_its_caller_and_to_the_tdp_mmu(machine: Machine) -> None:
    root = machine.kvm.tables.allocate_root(RootRole(0), level=3)
    assert root.refcount.read() == 2
    assert root.root is root
    assert root.level == 3
    assert [flag.value for flag in (root.invalid, root.exported, root.scheduled, root.zapped)] == [
        False
    ] * 4
    root.exported.value = root.invalid.value = True
    assert root.describe() == f"root {root.address:#x} (as0 exported invalid, refcount 2)"
    machine.kvm.tables.discard(root)


def test_placing_a_page_says_where_it_will_stand(machine: Machine) -> None:
    tables = machine.kvm.tables
    root, child = tables.allocate_root(RootRole(0), level=3), tables.allocate()
    child.place(root, root, index=2, gfn=32, level=2)
    assert (child.root, child.parent, child.parent_index, child.gfn, child.level) == (
        root,
        root,
        2,
        32,
        2,
    )
    assert child.describe() == f"page-table page {child.address:#x} (level 2, gfn 0x20)"
    tables.discard(child)
    tables.discard(root)


def test_roles_are_equal_when_every_field_is() -> None:
    assert RootRole(0) == RootRole(0)
    assert hash(RootRole(1, True)) == hash(RootRole(1, True))
    assert len({RootRole(0), RootRole(1), RootRole(0, True), RootRole(1, True), RootRole(0)}) == 4
    assert RootRole(0) != (0, False)
    assert (str(RootRole(1)), str(RootRole(0, True))) == ("as1", "as0 nested")


def test_an_address_without_a_page_is_a_wild_pointer(machine: Machine) -> None:
    stranger = machine.kvm.tables.at(0xDEAD000)
    assert list(stranger.spt) == [0] * machine.kvm.geometry.entries, (
        "what is there reads as non-present"
    )
    assert stranger.level == PG_LEVEL_4K, "nothing is looked for below it"
    machine.expect("O2 wild-pointer")


def test_a_discarded_page_is_gone(machine: Machine) -> None:
    page = machine.kvm.tables.allocate()
    machine.kvm.tables.discard(page)
    machine.kvm.tables.at(page.address)
    machine.expect("O2 wild-pointer")


def test_a_page_freed_through_rcu_is_freed_in_silence(machine: Machine) -> None:
    page = machine.kvm.tables.allocate()
    free_through_rcu(machine, page)
    assert machine.kvm.tables.live() == 0
    assert is_poisoned(page)
    machine.expect()


def test_a_page_is_not_freed_while_a_reader_is_inside(machine: Machine) -> None:
    page = machine.kvm.tables.allocate()
    with elsewhere(machine.runtime, rcu_section(machine.kvm.rcu)):
        machine.kvm.rcu.call(lambda: machine.kvm.tables.free(page))
        assert machine.kvm.rcu.pending() == 1
        assert not is_poisoned(page)
    machine.kvm.rcu.barrier()
    assert is_poisoned(page)


def test_freeing_without_a_grace_period_is_reported(machine: Machine) -> None:
    machine.kvm.tables.free(machine.kvm.tables.allocate())
    machine.expect("O3 free-without-rcu")


def test_freeing_twice_is_reported_and_counted_once(machine: Machine) -> None:
    page = machine.kvm.tables.allocate()
    free_through_rcu(machine, page)
    machine.kvm.rcu.call(lambda: machine.kvm.tables.free(page))
    machine.kvm.rcu.barrier()
    machine.expect("O2 double-free")
    assert machine.kvm.tables.live() == 0


@pytest.mark.parametrize("touch", ["level", "gfn", "parent", "spt"])
def test_a_freed_page_reports_whoever_looks_at_it(machine: Machine, touch: str) -> None:
    page = machine.kvm.tables.allocate()
    free_through_rcu(machine, page)
    getattr(page, touch)
    machine.expect("O2 use-after-free")
    (report,) = machine.reporter.reports
    assert f"attribute {touch} touched" in report.sentence
    assert [part.title.split(" by ")[0] for part in report.sections] == [
        "touched",
        "freed",
        "retired",
    ]


def test_a_walker_that_still_has_the_words_is_reported_and_finds_nothing(machine: Machine) -> None:
    page = machine.kvm.tables.allocate()
    words = page.spt
    words.store(1, 0xFFF)
    free_through_rcu(machine, page)
    assert words[1] == 0
    machine.expect("O2 use-after-free")
    assert words.cmpxchg(1, 0, 5) != 0, "no compare-exchange succeeds on freed memory"
    assert words.xchg(1, 5) == 0
    words.store(1, 5)
    assert words[1] == 0


def test_a_freed_page_is_still_found_by_address_so_that_a_late_walk_is_seen(
    machine: Machine,
) -> None:
    page = machine.kvm.tables.allocate()
    address = page.address
    free_through_rcu(machine, page)
    assert machine.kvm.tables.at(address) is page
    machine.expect()


class _ShortMemory(PageTableMemory):
    QUARANTINE = 2


def test_the_quarantine_forgets_the_oldest(make_machine: MakeMachine) -> None:
    machine = make_machine(variants=[Variant("short", "a quarantine of two", (_ShortMemory,))])
    pages = [machine.kvm.tables.allocate() for _ in range(3)]
    addresses = [page.address for page in pages]
    for page in pages:
        free_through_rcu(machine, page)
    assert [machine.kvm.tables.at(address) for address in addresses[1:]] == pages[1:]
    machine.expect()
    machine.kvm.tables.at(addresses[0])
    machine.expect("O2 wild-pointer")
