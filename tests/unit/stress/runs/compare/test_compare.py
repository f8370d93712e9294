"""`stress compare`: groups from directories, claims in words, regressions as an exit code."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jsonschema
import pytest
from attrs import evolve

from stress.commands import schema
from stress.commands.command_line import invoke
from stress.observe.histograms import Latency
from stress.results.run_record import RUN_FORMAT, RunRecord
from stress.results.store import RUN_JSON
from tests.records import record

DICE = random.Random(3)


def latency(operation: str, us: float) -> Latency:
    value = int(us * 1000)
    return Latency(
        operation,
        500,
        value,
        value,
        2 * value,
        2 * value,
        2 * value,
        ((value, 495), (2 * value, 5)),
    )


def runs(
    where: Path,
    count: int,
    *,
    slower: float = 1.0,
    policy: str = "keep-valid",
    first: float = 1e9,
    findings: int = 0,
    **changes: object,
) -> Path:
    """`count` runs of quick whose memslot calls take 100 us times `slower`, with a little noise in
    everything."""
    for seed in range(count):
        made = record(findings=findings)
        noise = [DICE.lognormvariate(0, 0.02) for _ in range(3)]
        scenario = {**made.scenario, "vm": {**made.scenario["vm"], "policy": policy, **changes}}
        run = evolve(
            made,
            id=f"run-{seed}",
            seed=seed,
            scenario=scenario,
            pid_started=first + 100 * seed,
            counters={
                "vcpu_accesses": int(1e6 * noise[0]),
                "memslot_deletes": 100,
                "vcpu_faults_fixed": 5000,
            },
            latencies=(
                latency("memslot", 100 * slower * noise[1]),
                latency("fault", 10 * noise[2]),
            ),
        )
        store(where / f"run-{seed}", run)
    return where


def store(folder: Path, run: RunRecord) -> None:
    folder.mkdir(parents=True)
    (folder / RUN_JSON).write_text(RUN_FORMAT.text(run))


def compared(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert invoke(["compare", *map(str, arguments)]) == code
    caught = capsys.readouterr()
    return caught.out + caught.err


def test_a_slow_path_is_named_and_nothing_else_is_claimed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (
        runs(tmp_path / "a", 6),
        runs(tmp_path / "b", 6, slower=1.2, policy="republish", first=2e9),
    )
    data = json.loads(compared(capsys, a, b, "--json"))
    jsonschema.Draft202012Validator(json.loads(schema.as_text("comparison"))).validate(data)
    claims = {figure["name"]: figure for figure in data["figures"] if figure["claimed"]}
    assert set(claims) == {"memslot.p50", "memslot.p99"}
    claim = claims["memslot.p50"]
    assert claim["worse"]
    assert 1.15 < claim["ratio"] < 1.25
    assert claim["ratio_interval"][0] <= claim["ratio"] <= claim["ratio_interval"][1]
    assert claim["sentence"].startswith("republish completes a memslot call 1.")
    assert claim["sentence"].endswith("slower than keep-valid")
    assert not data["paired"], "one group ran long after the other"


def test_two_halves_of_one_thing_differ_in_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = compared(
        capsys,
        f"first={runs(tmp_path / 'a', 8)}",
        f"second={runs(tmp_path / 'b', 8)}",
        "--baseline",
    )
    assert "no difference that chance does not explain" in text
    assert "no regression beyond 10% of first" in text
    assert "runs compared in pairs of one seed and time" in text


@pytest.mark.parametrize(("threshold", "code"), [(0.1, 5), (0.5, 0)])
def test_a_regression_beyond_the_threshold_is_exit_code_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], threshold: float, code: int
) -> None:
    a, b = runs(tmp_path / "a", 6), runs(tmp_path / "b", 6, slower=1.3)
    text = compared(capsys, a, b, "--baseline", "--threshold", threshold, code=code)
    assert ("REGRESSION beyond 10%: b completes a memslot call 1." in text) == (code == 5)


def test_an_improvement_is_no_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = compared(
        capsys, runs(tmp_path / "a", 6), runs(tmp_path / "b", 6, slower=0.5), "--baseline"
    )
    assert "faster than a" in text
    assert "no regression beyond 10% of a" in text


def test_too_few_runs_claim_nothing_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = compared(capsys, runs(tmp_path / "a", 3), runs(tmp_path / "b", 3, slower=9.0))
    assert "3 and 3 runs cannot support any claim: at least 4 a group are needed" in text


def test_runs_of_different_scenarios_are_refused_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = runs(tmp_path / "a", 4), runs(tmp_path / "b", 4, vcpus=8)
    text = compared(capsys, a, b, code=4)
    assert (
        "the runs are not of the same scenario (vm.vcpus: 3 / 8); --allow KEY compares them all "
        "the same" in text
    )
    assert "they differ in vm.vcpus: 3 / 8" in compared(capsys, a, b, "--allow", "vm.vcpus")


def test_a_group_is_of_one_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(tmp_path / "a" / "x", 2)
    runs(tmp_path / "a" / "y", 2, policy="republish")
    text = compared(
        capsys, f"mixed={tmp_path / 'a' / 'x'},{tmp_path / 'a' / 'y'}", tmp_path / "a" / "x", code=4
    )
    assert "mixed: run-0 and run-0 are not of one scenario: they differ in vm.policy" in text


def test_what_is_no_evidence_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = runs(tmp_path / "a", 4), runs(tmp_path / "b", 4)
    store(a / "killed", evolve(record(), id="killed", status="running"))
    text = compared(capsys, a, b)
    assert "a: 4 runs of quick" in text
    assert "left out: killed: running, so it is no evidence" in text


def test_what_cannot_be_read_is_a_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = runs(tmp_path / "a", 1)
    assert "neither a run's directory nor one that holds runs (run.json)" in compared(
        capsys, a, tmp_path / "nothing", code=4
    )
    assert "a comparison needs two groups of runs at least" in compared(capsys, a, code=4)
    store(tmp_path / "c" / "x", evolve(record(), status="interrupted"))
    assert "no finished run in it" in compared(capsys, a, tmp_path / "c", code=4)


def test_findings_are_a_figure_and_shown_in_the_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = compared(capsys, runs(tmp_path / "a", 4), runs(tmp_path / "b", 4, findings=2))
    assert "b: 4 runs of quick, 4 of them with findings" in text
    assert "b has findings, a has none" in text
