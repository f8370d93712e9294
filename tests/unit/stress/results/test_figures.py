"""Figures: the measurements of the reference's 5.3, from small numbers that can be worked out by
hand."""

from __future__ import annotations

import json

import pytest

from mmu.runtime import Runtime
from stress.engines.session import Session
from stress.observe.gauges import GAUGES
from stress.observe.histograms import OPERATIONS, Latency
from stress.results.figures import _TIMED, MeasuredFigure, figures_of
from stress.scenario.counters import COUNTERS
from tests.engine import run_scenario, small

NOTHING = dict.fromkeys(COUNTERS, 0)
NO_GAUGES = dict.fromkeys(GAUGES, 0)
PER_DELETE = "per delete or move"


def latency(operation: str, p99: int, longest: int) -> Latency:
    return Latency(operation, 10, 1, 2, p99, longest, longest, ((p99, 10),))


def named(figures: tuple[MeasuredFigure, ...]) -> dict[tuple[str, str], tuple[float, str]]:
    found = {(figure.number, figure.name): (figure.value, figure.unit) for figure in figures}
    assert len(found) == len(figures), "two figures of one name"
    return found


def test_a_small_example_worked_out_by_hand() -> None:
    counters = NOTHING | {
        "memslot_deletes": 3,
        "memslot_moves": 1,
        "vcpu_faults_fixed": 10,
        "vcpu_faults_spurious": 2,
        "io_faults": 8,
        "io_faults_failed": 3,
        "io_faults_retried": 4,
        "device_walks": 14,
        "remote_flushes": 6,
        "flushes_range": 5,
        "importer_notifications": 7,
    }
    peak = {
        "table_pages": 40,
        "empty_tables": 9,
        "roots": 3,
        "mapped_leaves": 500,
        "rcu_backlog": 12,
        "nx_lpage_splits": 1,
    }
    latencies = {
        "fault": latency("fault", 8000, 9500),
        "walk_steps": latency("walk_steps", 64, 100),
    }
    assert named(figures_of(counters, latencies, peak, NO_GAUGES | {"table_pages": 17}, 2)) == {
        ("M1", "SPTEs visited without yielding, p99"): (64, ""),
        ("M1", "SPTEs visited without yielding, longest"): (100, ""),
        ("M4", "vCPU fault, p99"): (8.0, "us"),
        ("M4", "vCPU fault, longest"): (9.5, "us"),
        ("M5", f"vcpu_faults_fixed, {PER_DELETE}"): (2.5, ""),
        ("M5", f"vcpu_faults_spurious, {PER_DELETE}"): (0.5, ""),
        ("M5", f"io_faults, {PER_DELETE}"): (2.0, ""),
        ("M5", f"device walks that found a mapping, {PER_DELETE}"): (1.5, ""),
        ("M6", "io_faults_failed"): (3, ""),
        ("M6", "attempts per IO page fault"): (1.5, ""),
        ("M7", f"remote_flushes, {PER_DELETE}"): (1.5, ""),
        ("M7", "remote_flushes"): (6, ""),
        ("M7", "flushes_range"): (5, ""),
        ("M7", "importer_notifications"): (7, ""),
        ("M8", "table_pages at most"): (40, ""),
        ("M8", "empty_tables at most"): (9, ""),
        ("M8", "roots at most"): (3, ""),
        ("M8", "mapped_leaves at most"): (500, ""),
        ("M8", "table_pages at the end"): (17, ""),
        ("M9", "accesses to memory that was gone"): (2, ""),
        ("M12", "RCU callbacks waiting at most"): (12, ""),
    }


def test_what_did_not_happen_has_no_figure() -> None:
    figures = named(figures_of(NOTHING, {}, NO_GAUGES, NO_GAUGES, 0))
    assert {number for number, _ in figures} == {"M7", "M8", "M9", "M12"}
    assert figures["M9", "accesses to memory that was gone"] == (0, "")


@pytest.mark.parametrize("counter", ["memslot_deletes", "memslot_moves"])
def test_a_delete_and_a_move_count_alike(counter: str) -> None:
    figures = named(figures_of(NOTHING | {counter: 2, "io_faults": 3}, {}, NO_GAUGES, NO_GAUGES, 0))
    assert figures["M5", f"io_faults, {PER_DELETE}"] == (1.5, "")


def test_every_timed_operation_exists_and_numbers_are_those_of_the_reference() -> None:
    assert {operation for _, operation, _ in _TIMED} <= set(OPERATIONS)
    everything = {operation: latency(operation, 5, 6) for operation in OPERATIONS}
    counters = dict.fromkeys(COUNTERS, 1)
    figures = figures_of(counters, everything, NO_GAUGES, NO_GAUGES, 1)
    numbers = [int(figure.number.removeprefix("M")) for figure in figures]
    assert numbers == sorted(numbers), "in the order of the reference"
    assert set(numbers) <= set(range(1, 13))
    assert {"us", ""} == {figure.unit for figure in figures}


def test_a_short_run_has_its_figures() -> None:
    wanted = {"M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M9", "M12"}
    positive = {
        ("M1", "mmu_lock held for write, longest"),
        ("M1", "SPTEs visited without yielding, longest"),
        ("M3", "memslot call, p99"),
        ("M8", "table_pages at most"),
        ("M8", "mapped_leaves at most"),
        ("M9", "window in which a device could reach a deleted slot, longest"),
    }

    def measured(session: Session) -> tuple[MeasuredFigure, ...]:
        timed = {row.operation: row for row in session.histograms.latencies()}
        return figures_of(session.totals(), timed, session.gauges.peak, session.gauges.last, 0)

    def missing(figures: tuple[MeasuredFigure, ...]) -> set[object]:
        found = {place for place, (value, _) in named(figures).items() if value > 0}
        return (wanted - {figure.number for figure in figures}) | (positive - found)

    session, outcome = run_scenario(small(), until=lambda session: not missing(measured(session)))
    assert outcome.clean_end
    figures = measured(session)
    assert missing(figures) == set()
    assert all(figure.value >= 0 for figure in figures)
    json.dumps([figure.value for figure in figures], allow_nan=False)


def test_a_session_that_has_not_begun_has_figures_too() -> None:
    session = Session(small(), 1, Runtime())
    figures = figures_of(session.totals(), {}, session.gauges.peak, session.gauges.last, 0)
    assert all(figure.value == 0 for figure in figures)
    session.vm.kvm.rcu.shutdown()
