"""Histograms: buckets are exact for small values, within their width for large ones, and
percentiles follow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmu.memory.memslots import Change
from mmu.runtime import Runtime
from stress.observe.histograms import SUB_BITS, Histograms, bucket_of, middle_of
from tests.patience import PATIENCE


@given(st.integers(0, 1 << 50))
def test_a_bucket_lies_around_its_values(value: int) -> None:
    middle = middle_of(bucket_of(value))
    assert abs(middle - value) <= max(0, value >> SUB_BITS)


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_buckets_keep_the_order(one: int, two: int) -> None:
    assert (bucket_of(one) <= bucket_of(two)) == (bucket_of(min(one, two)) == bucket_of(one))


def test_percentiles_and_maximum() -> None:
    histograms = Histograms(Runtime())
    for value in range(1, 1001):
        histograms.record("fault", value * 1000)
    (latency,) = histograms.latencies()
    assert latency.operation == "fault"
    assert latency.count == 1000
    assert latency.max == 1_000_000
    assert abs(latency.p50 - 500_000) < 40_000
    assert abs(latency.p99 - 990_000) < 70_000
    assert sum(count for _, count in latency.buckets) == 1000


def test_a_memslot_call_is_recorded_with_its_parts() -> None:
    histograms = Histograms(Runtime())
    histograms.memslot_end(Change.DELETE, None, {"total": 30, "srcu": 10, "flush_shadow": 5})
    assert {row.operation: row.max for row in histograms.latencies()} == {
        "memslot": 30,
        "memslot_srcu": 10,
        "memslot_flush_shadow": 5,
    }


def test_threads_record_apart_and_are_merged() -> None:
    runtime = Runtime()
    histograms = Histograms(runtime)
    tasks = [
        runtime.spawn(
            f"t{number}", lambda: [histograms.record("flush", 100) for _ in range(50)] and None
        )
        for number in range(4)
    ]
    assert all(runtime.join(task, PATIENCE) for task in tasks)
    assert [row.count for row in histograms.latencies()] == [200]


def timed(histograms: Histograms) -> dict[str, int]:
    return {row.operation: row.count for row in histograms.latencies()}


def test_the_parts_of_a_fast_zap_are_timed() -> None:
    histograms = Histograms(Runtime())
    histograms.memslot_begin(Change.DELETE, None)
    histograms.mmu_write_locked()
    histograms.zap_all_fast(0)
    histograms.roots_kicked([])
    histograms.exported_zapped(None, 3)
    histograms.mmu_write_unlocking()
    histograms.memslot_end(Change.DELETE, None, {"total": 30, "flush_shadow": 5})
    counts = timed(histograms)
    assert [
        counts[part]
        for part in (
            "zap_invalidate",
            "zap_exported",
            "zap_invalidated_roots",
            "mmu_lock_write_hold",
        )
    ] == [1] * 4


def test_what_is_zapped_without_a_fast_zap_is_no_part_of_one() -> None:
    """Policies D and E zap the exported root's leaves apart from kvm_mmu_zap_all_fast()."""
    histograms = Histograms(Runtime())
    histograms.mmu_write_locked()
    histograms.zap_all_fast(0)
    histograms.roots_kicked([])
    histograms.mmu_write_unlocking()
    histograms.mmu_write_locked()
    histograms.exported_zapped(None, 3)
    histograms.mmu_write_unlocking()
    assert "zap_exported" not in timed(histograms)


def test_a_number_is_no_time() -> None:
    histograms = Histograms(Runtime())
    histograms.walk_section(512, 7_000, False)
    assert {row.operation: row.max for row in histograms.latencies()} == {
        "walk_steps": 512,
        "walk_section": 7_000,
    }


@pytest.mark.parametrize("change", [Change.DELETE, Change.MOVE, Change.CREATE, Change.FLAGS_ONLY])
def test_the_window_of_a_device_is_that_of_a_slot_that_goes(change: Change) -> None:
    histograms = Histograms(Runtime())
    histograms.memslot_begin(change, None)
    histograms.importers_notified(None, 0, 1, 5)
    histograms.memslot_end(change, None, {"total": 30})
    assert ("device_window" in timed(histograms)) == (change in (Change.DELETE, Change.MOVE))


def test_a_flush_of_another_call_closes_no_window() -> None:
    histograms = Histograms(Runtime())
    histograms.importers_notified(None, 0, 1, 5)
    histograms.memslot_begin(Change.DELETE, None)
    histograms.memslot_end(Change.DELETE, None, {"total": 30})
    assert "device_window" not in timed(histograms)
