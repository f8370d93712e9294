"""The command with the posted series: fails with a defect's name, passes once mended, and lists what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmu.export.policies import POLICIES
from mmu.kernels import KERNELS
from mmu.posted import POSTED
from stress.mutants import MUTANTS
from stress.observe.counters import COUNTERS
from stress.report.catalogue import KINDS
from tests.cli.test_cli import FORGETFUL, ROOT, stress

POSTED_CONFIGS = ROOT / "configs" / "rfc-v1"
R5 = POSTED_CONFIGS / "R05-unexport-without-flush.toml"
ENOUGH = ["--set", "obligations={vcpu_faults=10}"]


def test_the_posted_series_fails_with_the_defects_that_may_have_done_it(tmp_path: Path) -> None:
    done = stress("run", "-c", R5, "--seed", "1", "--results", tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "profile rfc-v1, kernel 6.6" in done.stdout
    assert "known defects of this build that break rule O1:" in done.stdout
    assert f"  {POSTED['r5-unexport-without-flush'].title}" in done.stdout.splitlines()
    assert "expected missing-flush or use-after-free or stale-tlb: seen" in done.stdout
    page = (tmp_path / "latest" / "report.html").read_text()
    assert "R5 un-export zaps a live root without flushing" in page
    assert "profile rfc-v1" in page
    assert "Measurements" in page


def test_json_has_figures_and_suspects(tmp_path: Path) -> None:
    done = stress("run", "-c", R5, "--seed", "1", "--results", tmp_path, "--json")
    assert done.returncode == 1
    data = json.loads(done.stdout)
    assert {figure["number"] for figure in data["figures"]} >= {"M1", "M7", "M8", "M9", "M12"}
    assert all(set(figure) >= {"number", "name", "value", "unit"} for figure in data["figures"])
    suspected = {title.split()[0] for finding in data["findings"] for title in finding["suspects"] if finding["rule"] == "O1"}
    assert suspected == {"R5", "R12"}
    again = stress("report", tmp_path / "latest", "--json")
    assert json.loads(again.stdout) == data


@pytest.mark.parametrize("name", ["R05-unexport-without-flush", "R18-mmio-spte-walked"])
def test_once_mended_the_same_scenario_passes(tmp_path: Path, name: str) -> None:
    config = POSTED_CONFIGS / f"{name}.toml"
    done = stress("run", "-c", config, "--mended", "--duration", "1.5", "--seed", "1", "--results", tmp_path, *ENOUGH)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"PASS  {name}, seed 1" in done.stdout
    assert "expected" not in done.stdout
    assert "profile hardened" in done.stdout
    stored = json.loads((tmp_path / "latest" / "run.json").read_text())
    assert stored["scenario"]["vm"]["profile"] == "hardened"
    assert stored["expected_rules"] == stored["variants"] == []
    assert stored["scenario"]["expect"] == {"rules": [], "codes": []}


def test_mended_takes_mutants_and_their_rules_out_as_well(tmp_path: Path) -> None:
    config = ROOT / "configs" / "BUSTED" / "no-flush-after-exported-zap.toml"
    done = stress("run", "-c", config, "--mended", "--duration", "1", "--seed", "1", "--results", tmp_path, "-q", *ENOUGH)
    assert done.returncode == 0, done.stdout


def test_mended_wins_over_what_was_set(tmp_path: Path) -> None:
    overrides = ["--set", "vm.profile=rfc-v1", "--set", 'vm.variants=["put-before-zap"]', "--set", 'expect.codes=["stale-tlb"]']
    done = stress("run", "-c", R5, *overrides, "--mended", "--duration", "1", "--seed", "1", "--results", tmp_path, "-q", *ENOUGH)
    assert done.returncode == 0, done.stdout


def test_mended_takes_variants_of_ones_own_out_as_well(tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text(FORGETFUL)
    config = tmp_path / "mine.toml"
    config.write_text("[vm]\nvariant_files = ['idea.py']\n[obligations]\nvcpu_faults = 1\n[expect]\nrules = ['O1']\n")
    done = stress("run", "-c", config, "--mended", "--duration", "2", "--seed", "1", "--results", tmp_path / "results", "-q")
    assert done.returncode == 0, done.stdout


def test_one_defect_in_the_mended_design_is_named_alone(tmp_path: Path) -> None:
    one = ["--set", "vm.profile=hardened", "--set", 'vm.variants=["r5-unexport-without-flush"]']
    done = stress("run", "-c", R5, "--seed", "1", "--results", tmp_path, "--json", *one)
    assert done.returncode == 1
    data = json.loads(done.stdout)
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
        ("counters", COUNTERS),
        ("oracles", ["O1", "O8", "O13", "O14", "O15", "O16", "INV"]),
        ("scenarios", ["configs/full.toml", *(f"configs/rfc-v1/{path.name}" for path in POSTED_CONFIGS.glob("*.toml"))]),
    ],
)
def test_list_has_every_name_of_a_kind(kind: str, names: list[str]) -> None:
    done = stress("list", kind)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"{kind}:"
    listed = {line.split()[0] for line in lines[1:] if line.startswith("  ") and not line.startswith("   ")}
    assert listed == set(names) if kind not in ("oracles", "scenarios") else listed >= set(names)


def test_list_of_defects_says_what_they_are_and_which_rules_they_break() -> None:
    text = " ".join(stress("list", "defects").stdout.split())
    for defect in POSTED.values():
        assert f"{defect.name} {defect.title} [{', '.join(defect.expects)}]" in text


def test_the_oracles_say_what_they_watch() -> None:
    text = " ".join(stress("list", "oracles").stdout.split())
    assert "every page written between two reads of the dirty log" in text
    assert "enforced by the model itself" in text


def test_list_of_everything_has_every_kind() -> None:
    done = stress("list")
    assert [line[:-1] for line in done.stdout.splitlines() if line and not line.startswith(" ")] == list(KINDS)


@pytest.mark.parametrize("arguments", [["list", "defect"], ["run", "--mended"], ["run", "-c", str(R5), "--mended=yes"]])
def test_what_is_misspelt_is_a_usage_error(tmp_path: Path, arguments: list[str]) -> None:
    assert stress(*arguments, cwd=tmp_path).returncode == 4
