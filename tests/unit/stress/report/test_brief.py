"""What a command prints when it ends: a screen, no wider than the terminal, whose last lines are
the verdict, what was found, and the next command."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from stress.report import brief
from stress.report.units import time_text
from tests.records import record
from tests.stored import exploration

PLACE = Path("results/one")


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("findings", [0, 1, 9])
def test_a_run_fits_a_screen(width: int, findings: int) -> None:
    lines = brief.of_run(record(findings=findings), PLACE, width).splitlines()
    assert len(lines) <= 24 or width < 80
    assert [line for line in lines if len(line) > width] == []


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("failures", [0, 1, 9])
def test_an_exploration_fits_a_screen(width: int, failures: int) -> None:
    lines = brief.of_exploration(exploration(failures=failures), PLACE, width).splitlines()
    assert len(lines) <= 24 or width < 80
    assert [line for line in lines if len(line) > width] == []


def test_the_last_lines_are_the_verdict_what_was_found_and_the_next_command() -> None:
    lines = brief.of_run(record(findings=7), PLACE, None).splitlines()
    verdict = next(number for number, line in enumerate(lines) if line.startswith("FAIL  quick"))
    assert lines[verdict + 1].startswith("  O1  ")
    assert lines[verdict + 6] == "  and 2 more"
    assert lines[-2:] == [
        "results: results/one",
        "next:    stress results show results/one",
    ]


def test_a_failed_exploration_says_how_to_replay_it() -> None:
    lines = brief.of_exploration(exploration(failures=1), PLACE, None).splitlines()
    assert lines[-2:] == [
        "replay:  stress replay results/one/schedule-1.json",
        "next:    stress minimise results/one/schedule-1.json",
    ]


def test_a_finding_in_a_file_is_one_line_however_long() -> None:
    found = record(findings=1)
    long = evolve(found, findings=(evolve(found.findings[0], headline="BUG: " + "x " * 200),))
    assert "  O1  BUG: " + "x " * 150 in brief.of_run(long, PLACE, None)


def test_a_harness_error_is_said_in_its_first_line() -> None:
    failed = evolve(record(), harness_errors=("vcpu0 raised\nTraceback ...",))
    text = brief.of_run(failed, PLACE, 80)
    assert "harness error: vcpu0 raised\n" in text
    assert "Traceback" not in text


def test_the_latest_result_has_a_short_name(tmp_path: Path) -> None:
    place = tmp_path / "2026-12-01T07-43-26Z-quick-s4-36ece6"
    place.mkdir()
    (tmp_path / "latest").symlink_to(place.name)
    text = brief.of_exploration(exploration(failures=1), place, None)
    assert f"stress replay {tmp_path}/latest/schedule-1.json" in text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (14, "14.0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 us"),
        (17_320_300, "17.3 ms"),
        (1.5e9, "1.50 s"),
        (6e12, "6,000 s"),
    ],
)
def test_times_are_said_in_a_unit_that_fits(ns: float, text: str) -> None:
    assert time_text(ns) == text
