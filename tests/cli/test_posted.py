"""The command with the posted series: fails with a defect's name, passes once mended, and lists
what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmu.export.policies import POLICIES
from mmu.kernels import KERNELS
from mmu.machine.vm import PART_BASES
from mmu.posted import POSTED
from stress.commands.catalogue import KINDS
from stress.mutants import MUTANTS
from stress.scenario.counters import COUNTERS
from tests.cli.test_cli import FORGETFUL
from tests.command import ROOT, UNTIL_MET, Stress, until

POSTED_CONFIGS = ROOT / "configs" / "rfc-v1"
R5 = POSTED_CONFIGS / "R05-unexport-without-flush.toml"
SEEN = ("--set", 'expect.codes=["missing-flush"]', *UNTIL_MET)
"""The run goes on until that was found, which is a report of rule O1."""
ENOUGH = ("--duration", "0.5", *until(vcpu_faults=10))


def test_the_posted_series_fails_with_the_defects_that_may_have_done_it(
    stress: Stress, tmp_path: Path
) -> None:
    done = stress("run", "-c", R5, "--seed", "1", "-v", "--results", tmp_path, *SEEN)
    assert done.code == 1, done.out + done.err
    assert "profile rfc-v1, kernel 6.6" in done.out
    assert "known defects of this build that break rule O1:" in done.out
    assert f"  {POSTED['r5-unexport-without-flush'].title}" in done.out.splitlines()
    assert "expected missing-flush: seen" in done.out
    page = (tmp_path / "latest" / "report.html").read_text()
    assert "R5 un-export zaps a live root without flushing" in page
    assert "profile rfc-v1" in page
    assert "Measurements" in page


def test_json_has_figures_and_suspects(stress: Stress, tmp_path: Path) -> None:
    done = stress("run", "-c", R5, "--seed", "1", "--results", tmp_path, "--json", *SEEN)
    assert done.code == 1
    data = json.loads(done.out)
    assert {figure["number"] for figure in data["figures"]} >= {"M1", "M7", "M8", "M9", "M12"}
    assert all(set(figure) >= {"number", "name", "value", "unit"} for figure in data["figures"])
    suspected = {
        title.split()[0]
        for finding in data["findings"]
        for title in finding["suspects"]
        if finding["rule"] == "O1"
    }
    assert suspected == {"R5", "R12", "R23", "candidate:"}
    reported = stress("report", tmp_path / "latest", "--json")
    assert json.loads(reported.out) == data


def test_once_mended_the_same_scenario_passes(stress: Stress, tmp_path: Path) -> None:
    done = stress(
        "run",
        "-c",
        R5,
        "--mended",
        "--seed",
        "1",
        "--results",
        tmp_path,
        *ENOUGH,
    )
    assert done.code == 0, done.out + done.err
    assert f"PASS  {R5.stem}, seed 1" in done.out
    assert "expected" not in done.out
    assert "profile hardened" in done.out
    stored = json.loads((tmp_path / "latest" / "run.json").read_text())
    assert stored["scenario"]["vm"]["profile"] == "hardened"
    assert stored["expected_rules"] == stored["variants"] == []
    expect = stored["scenario"]["expect"]
    assert (expect["rules"], expect["codes"]) == ([], [])


def test_mended_takes_mutants_and_their_rules_out_as_well(stress: Stress, tmp_path: Path) -> None:
    config = ROOT / "configs" / "BUSTED" / "no-flush-after-exported-zap.toml"
    done = stress(
        "run",
        "-c",
        config,
        "--mended",
        "--seed",
        "1",
        "--results",
        tmp_path,
        "-q",
        *ENOUGH,
    )
    assert done.code == 0, done.out


def test_mended_wins_over_what_was_set(stress: Stress, tmp_path: Path) -> None:
    overrides = [
        "--set",
        "vm.profile=rfc-v1",
        "--set",
        'vm.variants=["put-before-zap"]',
        "--set",
        'expect.codes=["stale-tlb"]',
    ]
    done = stress(
        "run",
        "-c",
        R5,
        *overrides,
        "--mended",
        "--seed",
        "1",
        "--results",
        tmp_path,
        "-q",
        *ENOUGH,
    )
    assert done.code == 0, done.out


def test_mended_takes_variants_of_ones_own_out_as_well(stress: Stress, tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text(FORGETFUL)
    config = tmp_path / "mine.toml"
    config.write_text(
        "[vm]\nvariant_files = ['idea.py']\n[obligations]\nvcpu_faults = 1\n[expect]\nrules = "
        "['O1']\n"
    )
    done = stress(
        "run",
        "-c",
        config,
        "--mended",
        "--seed",
        "1",
        "--results",
        tmp_path / "results",
        "-q",
        *ENOUGH,
    )
    assert done.code == 0, done.out


def test_one_defect_in_the_mended_design_is_named_alone(stress: Stress, tmp_path: Path) -> None:
    one = ["--set", "vm.profile=hardened", "--set", 'vm.variants=["r5-unexport-without-flush"]']
    done = stress("run", "-c", R5, "--seed", "1", "--results", tmp_path, "--json", *one, *SEEN)
    assert done.code == 1
    data = json.loads(done.out)
    assert data["variants"] == ["r5-unexport-without-flush"]
    suspects = [finding["suspects"] for finding in data["findings"] if finding["rule"] == "O1"]
    assert suspects == [[POSTED["r5-unexport-without-flush"].title]] * len(suspects)
    assert suspects


# What there is.


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("policies", POLICIES),
        ("profiles", ["hardened", "rfc-v1"]),
        ("kernels", KERNELS),
        ("variants", MUTANTS),
        ("defects", POSTED),
        ("parts", [part.__name__ for part in PART_BASES]),
        ("counters", COUNTERS),
        ("oracles", ["O1", "O8", "O13", "O14", "O15", "O16", "INV"]),
        (
            "scenarios",
            [
                "full",
                *(f"rfc-v1/{path.stem}" for path in POSTED_CONFIGS.glob("*.toml")),
            ],
        ),
    ],
)
def test_list_has_every_name_of_a_kind(stress: Stress, kind: str, names: list[str]) -> None:
    done = stress("list", kind)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == f"{kind}:"
    listed = {
        line.split()[0]
        for line in lines[1:]
        if line.startswith("  ") and not line.startswith("   ")
    }
    assert listed == set(names) if kind not in ("oracles", "scenarios") else listed >= set(names)


def test_list_of_defects_says_what_they_are_and_which_rules_they_break(stress: Stress) -> None:
    text = " ".join(stress("list", "defects").out.split())
    for defect in POSTED.values():
        assert f"{defect.name} {defect.title} [{', '.join(defect.expects)}]" in text


def test_the_oracles_say_what_they_watch(stress: Stress) -> None:
    text = " ".join(stress("list", "oracles").out.split())
    assert "every page written between two reads of the dirty log" in text
    assert "enforced by the model itself" in text


def test_list_of_everything_has_every_kind(stress: Stress) -> None:
    done = stress("list")
    assert [
        line[:-1] for line in done.out.splitlines() if line and not line.startswith(" ")
    ] == list(KINDS)


@pytest.mark.parametrize(
    "arguments", [["list", "defect"], ["run", "--mended"], ["run", "-c", str(R5), "--mended=yes"]]
)
def test_what_is_misspelt_is_a_usage_error(stress: Stress, arguments: list[str]) -> None:
    assert stress(*arguments).code == 4
