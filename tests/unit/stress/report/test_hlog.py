"""The HdrHistogram log: what that library reads back is what was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from mmu.runtime import Runtime
from stress.observe.histograms import Histograms, Latency
from stress.report import hlog
from tests.records import record

histogram = pytest.importorskip(
    "hdrh.histogram", reason="hdrhistogram has no build for this interpreter"
)


def recorded(values: list[int], operation: str = "fault") -> Latency:
    histograms = Histograms(Runtime())
    for value in values:
        histograms.record(operation, value)
    (latency,) = histograms.latencies()
    return latency


VALUES = st.lists(st.one_of(st.integers(0, 100), st.integers(0, 1 << 40)), min_size=1, max_size=60)


@settings(max_examples=30)
@given(VALUES)
def test_the_encoded_form_is_read_back_with_every_count(values: list[int]) -> None:
    read = histogram.HdrHistogram.decode(hlog.encode(recorded(values)))
    theirs = histogram.HdrHistogram(1, hlog.HIGHEST, hlog.DIGITS)
    for value in values:
        theirs.record_value(value)
    assert list(read.counts) == list(theirs.counts)
    assert read.get_total_count() == len(values)
    assert read.get_max_value() == theirs.get_max_value()


def test_the_log_is_read_by_the_library(tmp_path: Path) -> None:
    log = pytest.importorskip("hdrh.log")
    run = evolve(record(), latencies=(recorded([1000, 2000]), recorded([3, 4, 5], "walk_steps")))
    path = tmp_path / "latency.hlog"
    path.write_text(hlog.log(run))
    reader = log.HistogramLogReader(str(path), histogram.HdrHistogram(1, hlog.HIGHEST, hlog.DIGITS))
    read = []
    while (each := reader.get_next_interval_histogram()) is not None:
        read.append((each.get_tag(), each.get_total_count(), each.get_end_time_stamp()))
    reader.input_file.close()
    assert read == [("fault", 2, 10_000.0), ("walk_steps", 3, 10_000.0)]


def test_maxima_are_microseconds_but_for_counts() -> None:
    run = evolve(record(), latencies=(recorded([25_000]), recorded([25], "walk_steps")))
    maxima = [line.split(",")[3] for line in hlog.log(run).splitlines()[3:]]
    assert maxima == ["25.599", "25.000"]
