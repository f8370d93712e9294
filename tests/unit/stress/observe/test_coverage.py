"""Coverage of SPTEs: which operation made which change, and which came after which, on a real
machine."""

from __future__ import annotations

import threading

import pytest

from mmu.memory.memslots import Change
from mmu.paging.spte import PRESENT_HIGH, REMOVED_SPTE, SpteLayout
from mmu.runtime import Runtime
from stress.observe.coverage import (
    PASSED_OVER,
    STATES,
    SpteChangeCount,
    SpteCoverage,
    SpteOrderCount,
    operation_of,
)
from tests.model import Machine
from tests.patience import PATIENCE

LEAF = PRESENT_HIGH.leaf(5, 1, writable=True, host_writable=True)


def in_thread(name: str, *steps: tuple[SpteCoverage, int, int, int]) -> None:
    """Changes of SPTEs, (coverage, gfn, old, new), by a task of this name."""

    def change() -> None:
        for coverage, gfn, old, new in steps:
            coverage.spte_changed(None, gfn, 1, old, new, True)  # type: ignore[arg-type]

    thread = threading.Thread(target=change, name=name)
    thread.start()
    thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("task", "operation"),
    [
        ("vcpu12", "vCPU fault"),
        ("iopf0", "IO page fault"),
        ("host1", "host (MMU notifier)"),
        ("mine", "mine"),
    ],
)
def test_an_operation_is_known_by_its_task(task: str, operation: str) -> None:
    assert operation_of(task) == operation


def test_the_states_of_an_entry() -> None:
    coverage = SpteCoverage(Runtime(), PRESENT_HIGH)
    layout: SpteLayout = PRESENT_HIGH
    read_only = layout.leaf(5, 1, writable=False, host_writable=True)
    table, huge, mmio = (
        layout.table(0x5000),
        layout.leaf(512, 2, writable=True, host_writable=True),
        layout.mmio(5, 3),
    )
    steps = [
        (0, LEAF),
        (LEAF, read_only),
        (read_only, REMOVED_SPTE),
        (REMOVED_SPTE, mmio),
        (mmio, 0),
    ]
    for old, new in steps:
        coverage.spte_changed(None, 8, 1, old, new, True)  # type: ignore[arg-type]
    coverage.spte_changed(None, 512, 2, huge, table, False)  # type: ignore[arg-type]
    found = {(cell.old, cell.new) for cell in coverage.coverage().cells}
    assert found == {
        ("empty", "leaf"),
        ("leaf", "read-only leaf"),
        ("read-only leaf", "frozen"),
        ("frozen", "MMIO"),
        ("MMIO", "empty"),
        ("huge leaf", "table"),
    }
    assert {state for pair in found for state in pair} <= set(STATES)


def test_the_freezing_of_what_was_empty_is_not_counted_and_mappings_on_every_eighth_page_are() -> (
    None
):
    coverage = SpteCoverage(Runtime(), PRESENT_HIGH)
    in_thread("vcpu0", *((coverage, gfn, 0, REMOVED_SPTE) for gfn in range(16)))
    assert coverage.coverage().cells == ()
    in_thread("vcpu0", *((coverage, gfn, 0, LEAF) for gfn in range(16)))
    assert coverage.coverage().cells == (
        SpteChangeCount("vCPU fault", 1, "empty", "leaf", True, 16 // (PASSED_OVER + 1)),
    )


def test_what_came_after_what_on_another_thread() -> None:
    coverage = SpteCoverage(Runtime(), PRESENT_HIGH)
    in_thread("vcpu0", (coverage, 0, 0, LEAF), (coverage, 0, LEAF, 0))
    assert coverage.coverage().orders == (), "a thread does not race with itself"
    in_thread("host0", (coverage, 0, LEAF, 0))
    in_thread("vcpu1", (coverage, 0, 0, LEAF), (coverage, 8, 0, LEAF))
    assert coverage.coverage().orders == (
        SpteOrderCount("host (MMU notifier)", "vCPU fault", 1),
        SpteOrderCount("vCPU fault", "host (MMU notifier)", 1),
    )


def test_another_page_at_the_same_place_is_not_taken_for_it() -> None:
    coverage = SpteCoverage(Runtime(), PRESENT_HIGH)
    in_thread("vcpu0", (coverage, 0, 0, LEAF))
    in_thread("host0", (coverage, 1 << 15, LEAF, 0))
    assert coverage.coverage().orders == ()


def test_a_memslot_call_is_told_apart_by_its_change(machine: Machine) -> None:
    coverage = SpteCoverage(machine.kvm.runtime, machine.kvm.layout)
    machine.probe.attach(coverage)
    coverage.memslot_begin(Change.DELETE, None)
    coverage.spte_changed(None, 0, 1, LEAF, 0, False)  # type: ignore[arg-type]
    coverage.memslot_end(Change.DELETE, None, {})
    coverage.spte_changed(None, 0, 1, LEAF, 0, False)  # type: ignore[arg-type]
    counted = {cell.operation: cell.count for cell in coverage.coverage().cells}
    assert counted["memslot delete"] == 1
    assert len(counted) == 2
