"""Latencies in HdrHistogram's forms: what that library reads back is what was recorded."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from mmu.runtime import Runtime
from stress.observe.histograms import Histograms, Latency
from stress.report import hgrm
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
    read = histogram.HdrHistogram.decode(hgrm.encode(recorded(values)))
    theirs = histogram.HdrHistogram(1, hgrm.HIGHEST, hgrm.DIGITS)
    for value in values:
        theirs.record_value(value)
    assert list(read.counts) == list(theirs.counts)
    assert read.get_total_count() == len(values)
    assert read.get_max_value() == theirs.get_max_value()
    assert (read.bucket_count, read.sub_bucket_count) == (hgrm.BUCKETS, hgrm.SUB_BUCKETS)


@settings(max_examples=30)
@given(VALUES)
def test_every_line_of_the_table_is_the_first_bucket_that_reaches_its_level(
    values: list[int],
) -> None:
    theirs = histogram.HdrHistogram(1, hgrm.HIGHEST, hgrm.DIGITS)
    for value in values:
        theirs.record_value(value)
    reached = [
        (each.value_iterated_to, each.total_count_to_this_value)
        for each in theirs.get_recorded_iterator()
    ]
    rows = [
        line.split()
        for line in hgrm.percentiles(recorded(values)).splitlines()[2:]
        if not line.startswith("#")
    ]
    assert [float(rows[0][1]), float(rows[-1][1])] == [0, 1]
    for value, level, count, *_ in rows:
        first = next(each for each in reached if each[1] >= float(level) * len(values) - 1e-9)
        assert (float(value), int(count)) == (pytest.approx(first[0] / 1000, abs=0.06), first[1])
    levels = [float(row[1]) for row in rows]
    assert levels == sorted(levels)
    assert all(later - level <= 0.1 + 1e-9 for level, later in pairwise(levels[:-1]))


def test_the_levels_are_those_of_the_library_until_they_get_denser() -> None:
    theirs = histogram.HdrHistogram(1, hgrm.HIGHEST, hgrm.DIGITS)
    for value in range(1, 1001):
        theirs.record_value(value)
    out = io.BytesIO()
    theirs.output_percentile_distribution(out, 1000.0)
    mine = hgrm.percentiles(recorded(list(range(1, 1001)))).splitlines()
    assert mine[:3] == out.getvalue().decode().splitlines()[:3]
    levels = [line.split()[1] for line in mine[2:] if not line.startswith("#")]
    assert levels[:12] == [
        f"{level:.12f}" for level in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.775)
    ]


def test_the_footer_agrees_with_the_library() -> None:
    values = [10_000, 20_000, 30_000, 5_000_000]
    theirs = histogram.HdrHistogram(1, hgrm.HIGHEST, hgrm.DIGITS)
    for value in values:
        theirs.record_value(value)
    footer = hgrm.percentiles(recorded(values)).splitlines()[-3:]
    mean, deviation, most, count, buckets, sub_buckets = (
        float(each) for line in footer for each in re.findall(r"= +([\d.]+)", line)
    )
    assert mean == pytest.approx(theirs.get_mean_value() / 1000, abs=0.06)
    assert deviation == pytest.approx(theirs.get_stddev() / 1000, abs=0.06)
    assert most == pytest.approx(theirs.get_max_value() / 1000, abs=0.06)
    assert (count, buckets, sub_buckets) == (4, theirs.bucket_count, theirs.sub_bucket_count)


def test_a_number_is_not_made_a_time() -> None:
    assert "        40.0" not in hgrm.percentiles(recorded([40_000]))
    assert hgrm.percentiles(recorded([25], "zap_steps")).splitlines()[2].split()[0] == "25.0"


def test_the_log_is_read_by_the_library(tmp_path: Path) -> None:
    log = pytest.importorskip("hdrh.log")
    run = evolve(record(), latencies=(recorded([1000, 2000]), recorded([3, 4, 5], "zap_steps")))
    path = tmp_path / "latency.hlog"
    path.write_text(hgrm.log(run))
    reader = log.HistogramLogReader(str(path), histogram.HdrHistogram(1, hgrm.HIGHEST, hgrm.DIGITS))
    read = []
    while (each := reader.get_next_interval_histogram()) is not None:
        read.append((each.get_tag(), each.get_total_count(), each.get_end_time_stamp()))
    reader.input_file.close()
    assert read == [("fault", 2, 10_000.0), ("zap_steps", 3, 10_000.0)]
