"""Histograms: buckets are exact for small values, within their width for large ones, and percentiles follow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mmu.memory.memslots import Change
from mmu.runtime import Runtime
from stress.observe.histograms import SUB_BITS, Histograms, bucket_of, middle_of


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
    assert {row.operation: row.max for row in histograms.latencies()} == {"memslot": 30, "memslot_srcu": 10, "memslot_flush_shadow": 5}


def test_threads_record_apart_and_are_merged() -> None:
    runtime = Runtime()
    histograms = Histograms(runtime)
    tasks = [runtime.spawn(f"t{number}", lambda: [histograms.record("flush", 100) for _ in range(50)] and None) for number in range(4)]
    assert all(runtime.join(task, 10) for task in tasks)
    assert [row.count for row in histograms.latencies()] == [200]
