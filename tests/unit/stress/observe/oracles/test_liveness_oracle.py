"""O10 by bounds: a walk moves between two yields, and no single removal is larger than 1 GiB."""

from __future__ import annotations

import itertools

import pytest

from mmu.kernels import SERIES
from mmu.paging.geometry import Geometry
from stress.mutants import MUTANTS
from tests.model import Machine, w
from tests.unit.stress.observe.oracles.conftest import Watch, reported

WIDE = Geometry(levels=4, entries=4)
"""Four levels of four: a top-level entry maps 64 frames, more than 1 GiB would be."""


def deleted(machine: Machine) -> Machine:
    """A slot whose pages are mapped is deleted, with mmu_lock contended whenever a walk looks."""
    machine.add_slot(0, 48)
    machine.run(machine.vcpu(), w(0), w(9), w(20), w(40))
    looks = itertools.count()
    machine.mmu_lock.needbreak = lambda: next(looks) < 100  # type: ignore[method-assign]
    machine.delete_slot()
    return machine


def test_a_walk_that_yields_where_it_has_yielded_before_is_reported(watch: Watch) -> None:
    machine = deleted(watch(MUTANTS["yield-without-progress"]))
    machine.expect("O10 yield-without-progress")
    assert (
        "yielded at gfn 0x0 without having moved"
        in reported(machine, "yield-without-progress").headline
    )


def test_endless_contention_is_no_reason_to_report(watch: Watch) -> None:
    machine = watch()
    yields = machine.record("zap_yielded")
    deleted(machine).expect()
    assert len(yields.events) > 1, "or nothing was judged"
    assert all(goal > since for _, since, goal in yields.args("zap_yielded"))


@pytest.mark.parametrize("kernel", ["6.6", "6.12"])
def test_what_hangs_below_a_top_level_entry_goes_in_pieces(watch: Watch, kernel: str) -> None:
    machine = watch(*SERIES[kernel], geometry=WIDE)
    levels: list[int] = []
    machine.on(prepare_zap_page=lambda sp, _: levels.append(sp.level))
    deleted(machine).expect()
    assert 3 in levels, "or nothing was judged"


def test_a_removal_of_more_than_1_gib_is_reported(watch: Watch) -> None:
    machine = deleted(watch(MUTANTS["root-zapped-in-one-pass"], geometry=WIDE))
    machine.expect("O10 unbounded-removal")
    report = reported(machine, "unbounded-removal")
    assert "(level 3, gfn 0x0) is removed with 1 GiB entries (3 of them)" in report.headline
    assert report.gfn == 0
