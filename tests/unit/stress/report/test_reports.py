"""Reports: pure functions of a stored run, readable in a narrow terminal and offline in a
browser."""

from __future__ import annotations

from attrs import evolve

from mmu.posted import POSTED
from stress.commands import catalogue
from stress.report import run_console, run_page
from stress.results.figures import MeasuredFigure
from stress.results.run_record import RunRecord
from stress.scenario.counters import COUNTERS
from stress.scenario.load import unstructure
from stress.scenario.types import PolicyName, Scenario, VmSettings
from tests.records import finding, record
from tests.unit.stress.report.pagetext import Page


def test_the_console_summary_of_a_pass() -> None:
    text = run_console.summary(record())
    assert "vCPUs: vcpu_faults 12,345" in text
    assert (
        "\nPASS  quick, seed 7, 10.0 s: all 1 obligations met, no finding\nwhat this PASS rests "
        "on\n" in text
    )
    assert "memory 44.0 MiB, +1.0 MiB from second to last quarter" in text


def test_the_console_summary_shows_findings_before_the_verdict() -> None:
    text = run_console.summary(record(findings=2))
    assert text.index("stale translation number 1") < text.index("FAIL  quick")
    assert "expected O1: seen O1" in text


def test_an_expected_rule_that_did_not_fire_is_said() -> None:
    assert "expected O12: NOT seen" in run_console.verdict_line(
        evolve(record(findings=1), expected_rules=("O12",))
    )


def test_unmet_obligations_and_harness_errors_are_shown() -> None:
    short = evolve(
        record(),
        obligations=(evolve(record().obligations[0], reached=3),),
        harness_errors=("observer died",),
    )
    text = run_console.summary(short)
    assert "obligation not met: vcpu_faults 3, needed 1,000" in text
    assert "harness error: observer died" in text


def test_the_html_page_is_whole_offline_and_escapes_what_it_shows() -> None:
    page = run_page.render(record(findings=5))
    assert Page(page).outside == []
    assert "A &lt;made-up&gt; scenario" in page
    assert "12,345" in page
    assert page.count("<details open>") == 3
    assert "locks held by device0/7" in page


def test_a_killed_run_is_shown_as_such() -> None:
    page = run_page.render(
        evolve(record(), status="running", verdict="INCONCLUSIVE", pid=1, pid_started=1.0)
    )
    assert "(killed)" in page


# Suspects and measurements.


def with_suspects(*titles: str) -> RunRecord:
    return evolve(record(findings=1), findings=(evolve(finding(0), suspects=titles),))


def test_the_known_defects_that_may_be_behind_a_finding_stand_below_it() -> None:
    lines = run_console.summary(
        with_suspects("R5 no flush at un-export", "R12 nor at exit")
    ).splitlines()
    at = lines.index("known defects of this build that break rule O1:")
    assert lines[at + 1 : at + 3] == ["  R5 no flush at un-export", "  R12 nor at exit"]
    assert any("stale translation number 0" in line for line in lines[:at])


def test_without_suspects_nothing_is_said_of_them() -> None:
    assert "known defects" not in run_console.summary(record(findings=2))
    assert "known defects" not in run_page.render(record(findings=2)).lower()


def test_suspects_are_left_out_with_the_splats() -> None:
    assert "known defects" not in run_console.summary(with_suspects("R5"), splats=False)


def test_the_page_shows_suspects_and_escapes_them() -> None:
    page = run_page.render(with_suspects("R5 <no flush> & more"))
    assert "R5 &lt;no flush&gt; &amp; more" in page
    assert Page(page).outside == []


FIGURES = (
    MeasuredFigure("M1", "mmu_lock held for write, longest", 2345.67, "us", timed=True),
    MeasuredFigure("M5", "io_faults, per delete or move", 1234.5, ""),
)


def test_measurements_are_shown_each_in_its_place() -> None:
    text = run_console.summary(evolve(record(), figures=FIGURES))
    assert any(
        line.split() == ["M5", "io_faults,", "per", "delete", "or", "move", "1,234.5"]
        for line in text.splitlines()
    )
    assert "held for write, longest" not in text, "timed ones are in the table of latencies"
    page = run_page.render(evolve(record(), figures=FIGURES))
    assert "<td>M1</td><td>mmu_lock held for write, longest</td>" in page
    assert "2,345.7 us" in page
    assert "1,234.5" in page


def test_without_measurements_there_is_no_heading_for_them() -> None:
    assert "measurements" not in run_console.summary(record())


def test_what_was_run_is_said_at_the_top() -> None:
    scenario = unstructure(
        Scenario(vm=VmSettings(profile="rfc-v1", kernel="6.12", policy=PolicyName("republish")))
    )
    text = run_console.summary(evolve(record(), scenario=scenario, variants=("mine",)))
    assert "policy republish, profile rfc-v1, kernel 6.12, variants mine" in text.splitlines()


def test_every_counter_that_a_report_shows_is_counted() -> None:
    shown = [name for _, names in run_console.GROUPS for name in names]
    assert set(shown) <= set(COUNTERS)
    assert len(shown) == len(set(shown))


# Lists.


def listed(kind: str) -> dict[str, str]:
    """The entries of one kind: name and text."""
    entries: dict[str, str] = {}
    for line in catalogue.listing(kind).splitlines()[1:]:
        name, _, text = line.strip().partition(" ")
        if line.startswith("   "):
            entries[list(entries)[-1]] += " " + line.strip()
        elif name:
            entries[name] = text.strip()
    return entries


def test_the_profile_as_posted_names_its_defects() -> None:
    numbers = ", ".join(name.split("-")[0].upper() for name in POSTED)
    assert listed("profiles")["rfc-v1"].endswith(numbers)


def test_every_entry_of_every_list_says_something() -> None:
    for kind in catalogue.KINDS:
        if kind != "scenarios":
            entries = listed(kind)
            assert entries, kind
            assert all(entries.values()), kind
