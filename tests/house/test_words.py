"""Every name that a result prints is found in the source: counters stand beside their values, and
rule codes, verdicts and the names of kinds can be searched for as they are printed."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve
from rich.console import Console

from stress.commands.command_line import invoke
from stress.commands.live import run_line
from stress.observe import series
from stress.results import certificate
from stress.runs.campaign_summary import print_campaign
from stress.runs.run import RunProgress
from stress.scenario.counters import COUNTERS
from stress.scenario.types import Budget
from stress.selftest.registry import all_mutants
from tests.command import ROOT
from tests.records import certified, record
from tests.stored import campaign, exploration, keep_exploration, keep_run, keep_selftest, selftest

SOURCE = "\n".join(
    path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("mmu/**/*"), *ROOT.glob("stress/**/*")])
    if path.suffix in {".py", ".html"} and not {"mutants", "posted"} & {*path.parts}
)
"""Of what prints and judges; mutants only say what has to be printed about them."""
WORDS = {*re.findall(r"\w+", SOURCE), *re.findall(r"[\w-]+", SOURCE)}
NAMES = (
    r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+",  # counters, operations
    r"[A-Z]{3,}(?:_[A-Z]+)*",  # verdicts, marks
    r"[OIRBMP]\d{1,2}",  # rules, invariants, measurements, points
    r"(?<=\()[a-z]+(?:-[a-z]+)+(?=\):)",  # codes of checks, as in `rule O1 (stale-tlb):`
)
VALUES = {name: 1_000_003 + 7_919 * number for number, name in enumerate(COUNTERS)}
"""A value for each counter that nothing else in a report has."""
FILES = ("console.txt", "summary.md", "report.html", "junit.xml", "selftest.md")
EXPLORE = ROOT / "configs" / "explore"
REAL = {
    "run": ("run", "-c", str(ROOT / "configs" / "quick.toml"), "--duration", "0.3", "--seed", "1"),
    "exploration": (
        *("explore", "-c", str(EXPLORE / "obsolete-root.toml"), "--strategy", "random"),
        *("--set", 'vm.variants=["stale-check-skipped"]', "--schedules", "300", "--seed", "1"),
    ),
    "selftest": (
        *("selftest", "stale-check-skipped", "--engine", "controlled", "--seeds", "1"),
        *("--correct", "0", "--no-detectors"),
    ),
}
"""Commands, each with a little of everything in its output."""


def reports(directory: Path) -> dict[str, str]:
    """What a result's directory holds for people, by file."""
    found = {name: directory / name for name in FILES if (directory / name).exists()}
    assert len(found) >= 4
    return {name: path.read_text(encoding="utf-8") for name, path in found.items()}


def words(text: str) -> str:
    """The text without markup, styles, scripts and drawings."""
    for element in ("style", "script", "svg"):
        text = re.sub(rf"<{element}\b.*?</{element}>", " ", text, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", " ", text))


def unknown(text: str) -> set[str]:
    """The names in a text that are not found in the source."""
    found = re.findall("|".join(rf"(?<![\w-]){name}(?![\w-])" for name in NAMES), words(text))
    assert found
    return {*found} - WORDS


def unnamed(text: str) -> dict[str, str]:
    """Counters whose value stands in a text without the counter's name beside it, and where. In a
    table the name is in the same row."""
    wrong = {}
    for name, value in VALUES.items():
        for row in re.split(r"<tr>|\n\|", text):
            for found in re.finditer(rf"\b{value:,}\b", row):
                near = row if "<td" in row else row[max(0, found.start() - 60) : found.end() + 60]
                beside = re.search(rf"{name}\W+{value:,}|\b{value:,}\W+{name}\b", near)
                if not (beside or (("<td" in row or row.count("|") > 2) and f"{name}" in row)):
                    wrong[name] = near
    return wrong


def kept_run(folder: Path) -> Path:
    """A run with findings, in which every counter has moved."""
    return keep_run(folder, certified(evolve(record(findings=2), counters=VALUES)), reports=True)


def passed_run(folder: Path) -> Path:
    """A run without findings, so that its certificate is whole."""
    return keep_run(folder, certified(evolve(record(), counters=VALUES)), reports=True)


def kept_exploration(folder: Path) -> Path:
    """An exploration with failures."""
    return keep_exploration(folder, exploration(failures=2), reports=True)


def kept_selftest(folder: Path) -> Path:
    """A selftest with a mutant that lives."""
    return keep_selftest(folder, selftest(alive=True), reports=True)


@pytest.mark.parametrize(
    "made",
    [kept_run, passed_run, kept_exploration, kept_selftest],
    ids=lambda made: made.__name__,
)
def test_every_name_in_a_report_is_in_the_source(
    made: Callable[[Path], Path], tmp_path: Path
) -> None:
    for name, text in reports(made(tmp_path)).items():
        assert not unknown(text.replace(str(tmp_path), "").replace(str(ROOT), "")), name


def test_every_name_of_a_campaign_is_in_the_source() -> None:
    out = io.StringIO()
    print_campaign(campaign(), Console(file=out, width=200))
    assert not unknown(out.getvalue())


@pytest.mark.parametrize("made", [kept_run, passed_run], ids=lambda made: made.__name__)
def test_a_counter_s_value_stands_beside_its_name(
    made: Callable[[Path], Path], tmp_path: Path
) -> None:
    for name, text in reports(made(tmp_path)).items():
        assert not unnamed(text), name


@pytest.mark.parametrize("asked", REAL.values(), ids=REAL)
def test_every_name_that_a_command_prints_is_in_the_source(
    asked: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["stress", *asked])
    invoke([*asked, "--results", str(tmp_path)])
    out, err = capsys.readouterr()
    assert not unknown((out + err).replace(str(tmp_path), "").replace(str(ROOT), ""))
    for name, text in reports((tmp_path / "latest").resolve()).items():
        assert not unknown(text.replace(str(tmp_path), "").replace(str(ROOT), "")), name


def test_the_progress_line_has_the_counters_by_their_names() -> None:
    line = run_line(RunProgress(1.0, Budget(), VALUES, 0)).text
    assert len(re.findall(r"\d,\d{3},\d{3}", line)) > 4
    assert not unnamed(line)


def test_the_page_of_a_run_has_every_counter(tmp_path: Path) -> None:
    page = reports(kept_run(tmp_path))["report.html"]
    assert not [name for name, value in VALUES.items() if f"{name}</td>" not in page]
    assert not [name for name, value in VALUES.items() if f">{value:,}<" not in page]


@pytest.mark.parametrize("kinds", [certificate.OPERATIONS, series.RATES])
def test_a_kind_that_is_one_counter_has_its_name(kinds: dict[str, tuple[str, ...]]) -> None:
    for kind, counters in kinds.items():
        assert len(counters) > 1 or counters == (kind,)


def test_what_must_report_a_mutant_is_in_the_source() -> None:
    """Rules, and codes of checks."""
    expected = {name for mutant in all_mutants().values() for name in mutant.expects}
    assert expected
    assert not {name for name in expected if f'"{name}"' not in SOURCE}


def test_a_renamed_counter_would_be_noticed() -> None:
    value = VALUES["vcpu_faults"]
    assert not unnamed(f"vCPUs: vcpu_faults {value:,}, fast_faults 3")
    assert unnamed(f"vCPUs: faults {value:,}, fast_faults 3")
    assert unnamed(f"<tr><td>faults</td><td>{value:,}</td></tr>")
    assert unknown("rule O1 (made-up-code): VERDICT, no_such_counter O99") == {
        *("made-up-code", "VERDICT", "no_such_counter", "O99")
    }
