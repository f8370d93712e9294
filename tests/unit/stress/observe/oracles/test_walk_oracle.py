"""O15 and O10: a zap visits what was there all the time, and does not go on for ever without
yielding."""

from __future__ import annotations

import itertools

import pytest

from mmu.export.policies import KEEP_VALID_YIELDING
from mmu.paging.table import ShadowPage
from mmu.tdp.write import SpteWriter
from mmu.variant import Variant
from stress.scenario.types import Count, Limits
from tests.conftest import evidence
from tests.model import REAL, Machine, w
from tests.unit.stress.observe.oracles.conftest import Watch, reported

FORGOTTEN = 9


class Forgets(SpteWriter):
    """The exclusive setter forgets one gfn: what stays is what a walk that passes it over leaves
    behind."""

    def set_spte(self, sp: ShadowPage, index: int, gfn: int, old: int, new: int) -> int:
        return old if gfn == FORGOTTEN and not new else super().set_spte(sp, index, gfn, old, new)


class ForgetsHuge(SpteWriter):
    """As above, for the huge leaf at 8."""

    def set_spte(self, sp: ShadowPage, index: int, gfn: int, old: int, new: int) -> int:
        return (
            old
            if gfn == 8 and sp.level == 2 and not new
            else super().set_spte(sp, index, gfn, old, new)
        )


def variant(part: type) -> Variant:
    return Variant("forgets", "leaves one leaf behind", (part,))


def used(machine: Machine, *gfns: int, max_level: int = 1) -> None:
    machine.add_slot(0, 32, max_level=max_level)
    machine.run(machine.vcpu(), *map(w, gfns))


def test_a_leaf_that_a_zap_has_passed_over_is_reported(watch: Watch) -> None:
    machine = watch(variant(Forgets))
    used(machine, 8, 9, 10)
    machine.vm.change_attributes(8, 12)
    machine.expect("O15 leaf-not-visited")
    report = reported(machine, "leaf-not-visited")
    assert report.gfn == 9
    assert report.subject == "1"
    assert "a zap of gfns 0x8..0xb" in report.headline
    assert "gfn 0x9 level 1" in report.headline
    assert "(rwx frame" in evidence(report, "SPTE")


def test_a_huge_leaf_is_found_even_if_it_begins_before_the_range(watch: Watch) -> None:
    machine = watch(variant(ForgetsHuge), huge_2m=8)
    used(machine, 8, max_level=2)
    machine.vm.change_attributes(11, 12)
    machine.expect("O15 leaf-not-visited")
    assert reported(machine, "leaf-not-visited").subject == "2"


@pytest.mark.parametrize(("first", "last"), [(4, 9), (10, 16), (0, 4), (16, 32)])
def test_a_leaf_beside_the_range_is_none_of_its_business(
    watch: Watch, first: int, last: int
) -> None:
    machine = watch(variant(Forgets))
    used(machine, 8, 9, 10)
    machine.vm.change_attributes(first, last)
    assert 9 in machine.leaves(machine.root())
    machine.assert_sound()


@pytest.mark.parametrize(("first", "last"), [(4, 8), (12, 16)])
def test_a_huge_leaf_beside_the_range_is_none_of_its_business(
    watch: Watch, first: int, last: int
) -> None:
    machine = watch(huge_2m=8)
    used(machine, 8, max_level=2)
    machine.vm.change_attributes(first, last)
    assert machine.huge_leaves() == [(8, 2)]
    machine.assert_sound()


def test_what_a_zap_leaves_behind_after_it_has_yielded_may_be_new(watch: Watch) -> None:
    """Who can tell? The leaf could have come while the lock was dropped: no false alarm, even for
    one that did not."""
    machine = watch(KEEP_VALID_YIELDING, variant(Forgets))
    used(machine, 0, 9, 20)
    machine.export()
    looks = itertools.count()
    machine.mmu_lock.needbreak = lambda: next(looks) % 2 == 1  # type: ignore[method-assign]
    done = machine.record("zap_leafs_done")
    machine.vm.set_nx_huge_pages(True)
    assert [args[3] for args in done.args("zap_leafs_done")] == [True]
    assert list(machine.leaves(machine.root())) == [9]
    machine.expect()
    machine.abandon()


# Bounds.


def longest(watch: Watch, walk_steps: int, *, yields: bool = False) -> tuple[Machine, int]:
    """One zap of an exported root with leaves in three tables; how many entries it visited at most
    without a yield."""
    machine = watch(
        *([KEEP_VALID_YIELDING] if yields else []), limits=Limits(walk_steps=Count(walk_steps))
    )
    used(machine, 0, 9, 20)
    machine.export()
    if yields:
        looks = itertools.count()
        machine.mmu_lock.needbreak = lambda: next(looks) % 2 == 1  # type: ignore[method-assign]
    sections = machine.record("walk_section")
    machine.vm.set_nx_huge_pages(True)
    return machine, max(args[0] for args in sections.args("walk_section"))


def test_a_walk_as_long_as_the_bound_is_in_order_and_one_step_more_is_reported(
    watch: Watch,
) -> None:
    _, steps = longest(watch, 0)
    longest(watch, steps)[0].expect()
    machine, _ = longest(watch, steps - 1)
    machine.expect("O10 unbounded-walk")
    assert (
        f"visited {steps:,} SPTEs without yielding" in reported(machine, "unbounded-walk").headline
    )
    assert f"the bound is {steps - 1:,}" in reported(machine, "unbounded-walk").sentence


def test_a_walk_that_yields_begins_anew(watch: Watch) -> None:
    _, steps = longest(watch, 0)
    machine, section = longest(watch, steps - 1, yields=True)
    assert section < steps
    machine.expect()


def test_no_bound_is_no_bound(watch: Watch) -> None:
    machine = watch(limits=Limits(walk_steps=Count(0)), geometry=REAL)
    used(machine, *range(32))
    machine.export()
    machine.vm.set_nx_huge_pages(True)
    machine.expect()
