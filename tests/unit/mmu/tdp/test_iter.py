"""The iterator: pre-order, bounded, and after a yield back at the goal instead of past it
(reference 2.4, 2.5)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmu.paging.spte import REMOVED_SPTE
from mmu.paging.table import RootPage
from mmu.tdp.iter import TdpIter
from tests.conftest import rcu_section, together
from tests.model import REAL, Machine
from tests.unit.conftest import MakeMachine

ALL = 64
"""One past the last gfn of the small geometry: three levels of four entries."""


@pytest.fixture
def root(machine: Machine) -> RootPage:
    """A root with leaves at gfns 1, 2, 21 and 63."""
    root = machine.root()
    machine.plant(root, 1, 2, 21, 63)
    return root


@pytest.fixture(autouse=True)
def _inside_rcu(machine: Machine, root: RootPage) -> Iterator[None]:
    """SPTEs are looked at inside an RCU section only, so every test here is."""
    with rcu_section(machine.kvm.rcu):
        yield


def visited(it: TdpIter, *, only_present: bool = True) -> list[tuple[int, int]]:
    """Walk to the end: (gfn, level) of what was visited."""
    seen = []
    while it.valid:
        if it.old_spte or not only_present:
            seen.append((it.gfn, it.level))
        it.next()
    return seen


def walk(
    machine: Machine, root: RootPage, min_level: int = 1, start: int = 0, end: int = ALL
) -> TdpIter:
    """A new iterator."""
    return TdpIter(machine.kvm, root, min_level, start, end)


def test_entries_come_before_the_tables_below_them_and_in_order(
    machine: Machine, root: RootPage
) -> None:
    assert visited(walk(machine, root)) == [
        (0, 3),
        (0, 2),
        (1, 1),
        (2, 1),
        (16, 3),
        (20, 2),
        (21, 1),
        (48, 3),
        (60, 2),
        (63, 1),
    ]


def test_next_visits_non_present_entries_too(machine: Machine, root: RootPage) -> None:
    everything = visited(walk(machine, root, end=16), only_present=False)
    assert everything == [(0, 3), (0, 2), (0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (8, 2), (12, 2)]


def test_the_walk_stays_at_or_above_the_lowest_level_asked_for(
    machine: Machine, root: RootPage
) -> None:
    assert visited(walk(machine, root, min_level=2)) == [
        (0, 3),
        (0, 2),
        (16, 3),
        (20, 2),
        (48, 3),
        (60, 2),
    ]
    assert visited(walk(machine, root, min_level=3)) == [(0, 3), (16, 3), (48, 3)]


@pytest.mark.parametrize(
    ("start", "end", "leaves"),
    [
        (2, 22, [2, 21]),
        (2, 21, [2]),
        (3, 21, []),
        (1, 2, [1]),
        (22, 63, []),
        (63, 64, [63]),
        (0, 0, []),
        (1, 1, []),
        (2, 1, []),
    ],
)
def test_only_leaves_inside_the_range_are_visited(
    machine: Machine, root: RootPage, start: int, end: int, leaves: list[int]
) -> None:
    assert [
        gfn for gfn, level in visited(walk(machine, root, start=start, end=end)) if level == 1
    ] == leaves


def test_the_ancestors_of_the_start_are_visited_although_they_begin_before_it(
    machine: Machine, root: RootPage
) -> None:
    assert visited(walk(machine, root, start=21, end=22)) == [(16, 3), (20, 2), (21, 1)]


def test_an_empty_root_is_walked_once_around(machine: Machine) -> None:
    empty = machine.root(as_id=1)
    assert visited(walk(machine, empty), only_present=False) == [(0, 3), (16, 3), (32, 3), (48, 3)]


def test_the_last_frame_of_a_real_root_is_reached(make_machine: MakeMachine) -> None:
    machine = make_machine(REAL)
    root = machine.root()
    last = REAL.max_gfn
    machine.plant(root, 0, last, pfn=5)
    with rcu_section(machine.kvm.rcu):
        it = walk(machine, root, end=last + 1)
        leaves = []
        while it.valid:
            if it.level == 1 and it.old_spte:
                leaves.append(it.gfn)
            it.next_present()
    assert leaves == [0, last]


def test_next_present_visits_every_present_entry_and_fewer_others(
    machine: Machine, root: RootPage
) -> None:
    complete = visited(walk(machine, root))
    it = walk(machine, root)
    present, others = [], 0
    while it.valid:
        if it.old_spte:
            present.append((it.gfn, it.level))
        else:
            others += 1
        it.next_present()
    assert present == complete
    assert others < len(visited(walk(machine, root), only_present=False)) - len(complete)


@pytest.mark.parametrize("step", ["next", "next_present"])
def test_after_a_yield_the_entry_at_the_goal_is_still_to_come(
    machine: Machine, root: RootPage, step: str
) -> None:
    it = walk(machine, root)
    while (it.gfn, it.level) != (21, 1):
        it.next()
    it.yielded = True
    getattr(it, step)()
    assert (it.gfn, it.level, it.yielded) == (16, 3, False), "back at the root, aimed at the goal"
    assert it.yielded_gfn == it.next_last_level_gfn == 21
    assert visited(it) == [(16, 3), (20, 2), (21, 1), (48, 3), (60, 2), (63, 1)]


def test_a_yield_at_a_table_walks_that_table(machine: Machine, root: RootPage) -> None:
    it = walk(machine, root)
    while (it.gfn, it.level) != (16, 3):
        it.next()
    it.yielded = True
    it.next()
    assert visited(it) == [(16, 3), (20, 2), (21, 1), (48, 3), (60, 2), (63, 1)]


@pytest.mark.parametrize("gone", [0, REMOVED_SPTE])
@pytest.mark.parametrize("step", ["next", "next_present"])
def test_a_table_that_vanished_under_the_walker_is_passed_by(
    machine: Machine, root: RootPage, gone: int, step: str
) -> None:
    it = walk(machine, root)
    while (it.gfn, it.level) != (16, 3):
        it.next()
    before = root.spt.xchg(1, gone)
    getattr(it, step)()
    assert (it.level, it.gfn >= 32) == (3, True), "to the side, not down"
    root.spt.store(1, before)


def test_a_table_that_came_after_the_snapshot_is_descended_into(
    machine: Machine, root: RootPage
) -> None:
    it = walk(machine, root)
    while (it.gfn, it.level) != (32, 3):
        it.next()
    assert not it.old_spte
    together(machine.runtime, lambda: machine.plant(root, 35))
    it.next()
    assert (it.gfn, it.level) == (32, 2), "stepping down reads the entry again"


def test_what_was_unlinked_during_a_yield_is_not_visited_again(
    machine: Machine, root: RootPage
) -> None:
    it = walk(machine, root)
    while (it.gfn, it.level) != (2, 1):
        it.next()
    words, index = machine.entry(root, 0, level=2)[0].spt, 0
    before = words.xchg(index, 0)
    it.yielded = True
    it.next()
    assert visited(it) == [(0, 3), (16, 3), (20, 2), (21, 1), (48, 3), (60, 2), (63, 1)]
    words.store(index, before)


def test_the_snapshot_does_not_follow_the_entry(machine: Machine, root: RootPage) -> None:
    it = walk(machine, root, start=1, end=2)
    while it.level > 1:
        it.next()
    seen = it.old_spte
    sp, index = machine.entry(root, 1)
    sp.spt.store(index, 0)
    assert it.old_spte == seen != 0
    sp.spt.store(index, seen)


class TestWithoutRcu:
    """Outside of the section."""

    @pytest.fixture(autouse=True)
    def _inside_rcu(self) -> None:
        """Not here."""

    def test_walking_is_suspicious(self, machine: Machine, root: RootPage) -> None:
        walk(machine, root)
        machine.expect("O3 suspicious-rcu-usage")
