"""Counts: every hook that is counted has a counter, and every reason of a flush too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmu.memory.tlb import WHOLE
from mmu.runtime import Runtime
from stress.observe.counts import Counts
from stress.scenario.counters import COUNTERS

MMU = Path(__file__).parents[4] / "mmu"
REASONS = sorted(
    {
        reason
        for path in MMU.rglob("*.py")
        for reason in re.findall(
            r"(?:tlb|self)\.flush(?:_range)?\(\"([a-z-]+)\"", path.read_text(encoding="utf-8")
        )
    }
)
"""Every reason that the model gives for a flush."""


def changed(counts: Counts) -> dict[str, int]:
    return {name: value for name, value in counts.values().items() if value}


@pytest.mark.parametrize("reason", REASONS)
def test_a_flush_is_counted_with_its_reason(reason: str) -> None:
    counts = Counts(Runtime())
    counts.flush_end(reason, 0, WHOLE, 5)
    name = {"huge-over-tables": "flushes_huge"}.get(reason, f"flushes_{reason.replace('-', '_')}")
    assert changed(counts) == {"remote_flushes": 1, name: 1}


def test_the_reasons_are_all_that_are_counted() -> None:
    assert len(REASONS) >= 12
    named = {name for name in COUNTERS if name.startswith("flushes_")} - {
        "flushes_range",
        "flushes_mid_dma",
        "flushes_in_guest",
    }
    assert named == {
        "flushes_" + {"huge-over-tables": "huge"}.get(reason, reason.replace("-", "_"))
        for reason in REASONS
    }


def test_a_flush_of_a_range_is_one_of_both() -> None:
    counts = Counts(Runtime())
    counts.flush_end("notifier", 8, 4, 5)
    assert changed(counts) == {"remote_flushes": 1, "flushes_range": 1, "flushes_notifier": 1}


@pytest.mark.parametrize(
    ("hook", "arguments", "counter"),
    [
        ("fast_page_fault", (1, 2, 3), "fast_faults"),
        ("huge_mapped", (None, 4, 2, 0), "huge_leaves"),
        ("huge_page_split", (4, 2), "huge_splits"),
        ("mmio_wrapped", (8,), "mmio_wraps"),
        ("nx_toggle_end", (True,), "nx_toggles"),
        ("range_started", (None, 0, 1, 5), "host_ranges"),
        ("io_fault_retried", (4,), "io_faults_retried"),
        ("importer_switched", (None, True, 5), "importer_switches"),
        ("importer_switched", (None, False, 5), "importer_switches_failed"),
        ("cmpxchg_lost", (4,), "cmpxchgs_lost"),
        ("mmu_write_locked", (), "mmu_write_locks"),
        ("fault_stale", ("vcpu0", 4, "root"), "stale_faults"),
    ],
)
def test_an_event_is_counted_once(hook: str, arguments: tuple[object, ...], counter: str) -> None:
    counts = Counts(Runtime())
    getattr(counts, hook)(*arguments)
    assert changed(counts) == {counter: 1}


def test_every_counter_says_what_it_counts() -> None:
    assert all(COUNTERS.values())
    assert set(Counts(Runtime()).values()) == set(COUNTERS)


def test_a_stale_fault_of_a_device_is_one_of_both() -> None:
    counts = Counts(Runtime())
    counts.fault_stale(None, 4, "notifier")
    assert changed(counts) == {"stale_faults": 1, "stale_io_faults": 1}
