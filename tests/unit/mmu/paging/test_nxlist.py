"""possible_nx_huge_pages: a page is on it once, while it is linked and flagged, and misuse is
reported (DEBUG_LIST)."""

from __future__ import annotations

from typing import Any

import pytest

from mmu.paging.nxlist import PossibleNxHugePages
from tests.model import Machine


@pytest.fixture
def nx(machine: Machine) -> PossibleNxHugePages:
    """What is tested."""
    return machine.kvm.possible_nx_huge_pages


def page(machine: Machine, *, disallowed: bool = True) -> Any:
    """A table page that stands for a huge page because of the mitigation, or not."""
    sp = machine.kvm.tables.allocate()
    if disallowed:
        sp.nx_disallowed = machine.runtime.cell("nx_huge_page_disallowed", True)
    return sp


def release(machine: Machine, *pages: Any) -> None:
    """The test is done with them."""
    for sp in pages:
        machine.kvm.tables.discard(sp)


def splits(machine: Machine) -> int:
    """The statistic that user space sees."""
    return machine.kvm.stat.nx_lpage_splits.value


def test_pages_are_kept_in_the_order_in_which_they_came_and_counted(
    machine: Machine, nx: PossibleNxHugePages
) -> None:
    pages = [page(machine) for _ in range(3)]
    for sp in pages:
        nx.track(sp)
    assert nx.pages() == tuple(pages)
    assert splits(machine) == 3
    nx.untrack(pages[1])
    assert nx.pages() == (pages[0], pages[2])
    assert splits(machine) == 2
    nx.untrack(pages[0])
    nx.untrack(pages[2])
    assert (nx.pages(), splits(machine)) == ((), 0)
    release(machine, *pages)


def test_untracking_clears_the_flag(machine: Machine, nx: PossibleNxHugePages) -> None:
    sp = page(machine)
    nx.track(sp)
    nx.untrack(sp)
    assert not sp.nx_disallowed.value
    release(machine, sp)


def test_a_page_that_was_zapped_before_it_could_be_tracked_stays_off(
    machine: Machine, nx: PossibleNxHugePages
) -> None:
    """B46: the fault links first and tracks later, a zap may come in between."""
    sp = page(machine)
    nx.untrack(sp)
    nx.track(sp)
    assert (nx.pages(), splits(machine)) == ((), 0)
    release(machine, sp)


def test_a_flagged_page_that_was_never_tracked_loses_its_flag_and_nothing_else(
    machine: Machine, nx: PossibleNxHugePages
) -> None:
    sp, other = page(machine), page(machine)
    nx.track(other)
    nx.untrack(sp)
    assert not sp.nx_disallowed.value
    assert (nx.pages(), splits(machine)) == ((other,), 1)
    nx.untrack(other)
    release(machine, sp, other)


def test_an_ordinary_page_is_left_alone(machine: Machine, nx: PossibleNxHugePages) -> None:
    sp = page(machine, disallowed=False)
    nx.track(sp)
    nx.untrack(sp)
    assert (nx.pages(), splits(machine), sp.nx_disallowed) == ((), 0, None)
    release(machine, sp)


def test_removing_takes_off_what_is_on(machine: Machine, nx: PossibleNxHugePages) -> None:
    sp = page(machine)
    nx.track(sp)
    nx.remove(sp)
    assert (nx.pages(), splits(machine), sp.nx_disallowed.value) == ((), 0, False)
    release(machine, sp)


def test_a_page_that_is_added_twice_is_reported_and_counted_once(
    machine: Machine, nx: PossibleNxHugePages
) -> None:
    sp = page(machine)
    nx.track(sp)
    nx.track(sp)
    machine.expect("O17 list-corruption")
    assert (nx.pages(), splits(machine)) == ((sp,), 1)
    nx.untrack(sp)
    release(machine, sp)


def test_a_stranger_that_is_removed_is_reported(machine: Machine, nx: PossibleNxHugePages) -> None:
    sp, stranger = page(machine), page(machine)
    nx.track(sp)
    nx.remove(stranger)
    machine.expect("O17 list-corruption")
    assert (nx.pages(), splits(machine)) == ((sp,), 1)
    nx.untrack(sp)
    release(machine, sp, stranger)


def test_a_freed_page_that_is_added_is_reported(machine: Machine, nx: PossibleNxHugePages) -> None:
    sp = page(machine)
    machine.kvm.tables.retire(sp)
    machine.kvm.rcu.barrier()
    nx.track(sp)
    machine.expect("O17 list-corruption")
    assert (nx.pages(), splits(machine)) == ((), 0)
