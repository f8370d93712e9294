"""Campaigns: every run is stored like any other, and all of them together are judged honestly."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from rich.console import Console

from stress.results.run_record import RunRecord, Uncertified
from stress.results.store import RunDirectory
from stress.runs import campaign as runs
from stress.runs.campaign import CampaignRequest, SeedOutcome, run_campaign
from stress.runs.campaign_summary import CampaignRecord, lines, print_campaign, record_of
from stress.runs.fanout.single_run import FetchedRun, Place
from stress.runs.fanout.spread import INTERRUPTED, Workers
from stress.runs.fanout.task import FanoutTask, Trouble
from tests.records import record
from tests.stored import SCENARIO, campaign, keep_selftest


def asked(results: Path, seeds: tuple[int, ...] = (4, 5, 6), **changes: Any) -> CampaignRequest:
    return evolve(CampaignRequest(SCENARIO, "quick", seeds, Workers(2), results), **changes)


def ran(seed: int, **changes: Any) -> FetchedRun:
    name = f"2026-11-22T12-00-00Z-quick-s{seed}-abcdef"
    return FetchedRun(
        evolve(
            record(), id=name, seed=seed, command="python -m stress.runs.fanout.agent", **changes
        ),
        {"timeline.json.gz": b"zipped"},
    )


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What becomes of the tasks, by seed, in the order in which they end; what was asked for; why
    it ended early."""
    made: dict[str, Any] = {"by seed": {}, "why": ""}

    def spread(tasks: list[FanoutTask], where: Workers, on_done: Any) -> str:
        made["tasks"], made["where"] = list(tasks), where
        numbers = {task.args[-2]: number for number, task in enumerate(made["tasks"])}
        for seed, result in made["by seed"].items():
            on_done(numbers[seed], result)
        return str(made["why"])

    monkeypatch.setattr(runs, "spread", spread)
    return made


def test_every_run_is_stored_like_any_other_as_soon_as_it_ends(
    tmp_path: Path, answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["stress", "campaign", "-c", "quick.toml"])
    keep_selftest(tmp_path)
    answers["by seed"] = {6: ran(6), 4: ran(4), 5: Trouble("the process ended with exit code 9")}
    stored_then: list[bool] = []

    def on_outcome(each: SeedOutcome) -> None:
        stored_then.append(each.record is None or (Path(each.directory) / "run.json").is_file())

    made, why = run_campaign(asked(tmp_path), on_outcome)
    assert why == ""
    assert stored_then == [True, True, True]
    assert [each.seed for each in made] == [4, 5, 6]
    assert made[1] == SeedOutcome(5, trouble="the process ended with exit code 9")
    directory = Path(made[0].directory)
    assert {"run.json", "report.html", "junit.xml", "console.txt", "timeline.json.gz"} <= {
        path.name for path in directory.iterdir()
    }
    assert (directory / "timeline.json.gz").read_bytes() == b"zipped"
    kept = RunDirectory(directory).read()
    assert kept == made[0].record
    assert kept.id == directory.name
    assert kept.command == "stress campaign -c quick.toml"
    assert kept.selftest is not None
    assert kept.certificate


def test_a_result_that_cannot_be_stored_is_trouble_and_the_next_is_tried(
    tmp_path: Path, answers: dict[str, Any]
) -> None:
    (tmp_path / ran(4).record.id).write_text("in the way")
    answers["by seed"] = {4: ran(4), 5: ran(5)}
    made, _ = run_campaign(asked(tmp_path, (4, 5)))
    assert made[0].trouble.startswith("the results could not all be kept: cannot write")
    assert made[1].trouble == ""
    summary = record_of("quick", (4, 5), made, "")
    assert [run.verdict for run in summary.runs] == ["HARNESS_ERROR", "PASS"]


def test_a_run_whose_process_dies_is_judged_by_what_it_has_kept(
    tmp_path: Path, answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers["by seed"] = dict.fromkeys((4, 5, 6), Trouble("the process ended with exit code -9"))

    def begun(place: Place, **changes: Any) -> None:
        kept = evolve(record(**changes), status="running", certificate=Uncertified())
        RunDirectory(place.directory, new=True).write(kept)

    tasks = runs._Runs.tasks

    def started(self: runs._Runs) -> Iterator[FanoutTask]:
        every = list(tasks(self))
        begun(every[0].args[0], findings=2)
        begun(every[1].args[0])
        return iter(every)

    monkeypatch.setattr(runs._Runs, "tasks", started)
    made, _ = run_campaign(asked(tmp_path))
    first, second, third = record_of("quick", (4, 5, 6), made, "").runs
    assert (first.verdict, first.findings) == ("FAIL", 2)
    assert (second.verdict, second.findings) == ("HARNESS_ERROR", 0)
    assert "exit code -9" in second.told
    assert (third.verdict, third.directory) == ("HARNESS_ERROR", "")
    kept = RunDirectory(Path(first.directory)).read()
    assert (kept.status, kept.verdict) == ("crashed", "FAIL")
    assert (Path(first.directory) / "report.html").is_file()


def test_runs_that_an_interrupt_ends_are_kept_as_interrupted(
    tmp_path: Path, answers: dict[str, Any]
) -> None:
    answers["why"] = INTERRUPTED
    begun = evolve(record(findings=1), status="running", certificate=Uncertified())
    going_on = runs._Runs(asked(tmp_path, (4,)))
    (task,) = going_on.tasks()
    directory = RunDirectory(task.args[0].directory, new=True)
    directory.write(begun)
    going_on.give_up(INTERRUPTED)
    kept = directory.read()
    assert (kept.status, kept.verdict) == ("interrupted", "FAIL")


def test_seeds_and_variant_files_reach_every_run(
    tmp_path: Path, answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_campaign(asked(tmp_path, variant_files=("idea.py",)))
    assert [task.args[1:] for task in answers["tasks"]] == [
        (SCENARIO, "quick", seed, ("idea.py",)) for seed in (4, 5, 6)
    ]
    assert {task.limit_s for task in answers["tasks"]} == {SCENARIO.budget.duration_s}
    run_campaign(
        asked(tmp_path, (4,), variant_files=("idea.py",), where=Workers(0, "tcp://there:1"))
    )
    there = (str(tmp_path.resolve() / "idea.py"),)
    assert answers["tasks"][0].args[3] == there
    assert answers["where"] == Workers(0, "tcp://there:1", there)


# What they say together.


def judged(
    *found: tuple[int, RunRecord | None], seeds: tuple[int, ...] | None = None, stopped: str = ""
) -> CampaignRecord:
    made = [
        SeedOutcome(seed, one, f"results/{seed}")
        if one is not None
        else SeedOutcome(seed, trouble="oops")
        for seed, one in found
    ]
    return record_of("quick", seeds or tuple(seed for seed, _ in found), made, stopped)


def test_the_worst_verdict_wins() -> None:
    good, bad = record(), record(findings=1)
    open_ = evolve(good, verdict="INCONCLUSIVE", reasons=("yields: 0, at least 1 needed",))
    assert judged((1, good), (2, good)).verdict == "PASS"
    assert judged((1, good), (2, open_)).verdict == "INCONCLUSIVE"
    assert judged((1, good), (2, open_), (3, None)).verdict == "HARNESS_ERROR"
    assert judged((1, good), (2, open_), (3, None), (4, bad)).verdict == "FAIL"
    assert judged((1, good), (2, open_), (3, None), (4, bad)).reasons == (
        "of 4 runs 1 FAIL, 1 HARNESS_ERROR, 1 INCONCLUSIVE, 1 PASS",
    )


def test_runs_that_were_not_made_are_no_pass() -> None:
    some = judged((1, record()), seeds=(1, 2, 3), stopped=INTERRUPTED)
    assert (some.verdict, some.missing) == ("INCONCLUSIVE", (2, 3))
    assert some.reasons == ("of 1 run 1 PASS", "2 not made: interrupted")
    nothing = judged(seeds=(1,), stopped=INTERRUPTED)
    assert (nothing.verdict, nothing.at_most) == ("INCONCLUSIVE", None)


def test_how_rare_failures_are_is_said_only_where_none_was_seen() -> None:
    good = record()
    assert judged(*((seed, good) for seed in range(59))).at_most == pytest.approx(0.0495, abs=1e-4)
    assert judged((1, good), (2, evolve(good, verdict="INCONCLUSIVE"))).at_most == pytest.approx(
        0.95
    )
    assert judged((1, good), (2, record(findings=1))).at_most is None


def test_equal_findings_are_told_once_the_most_frequent_first() -> None:
    found = judged((1, record(findings=1)), (2, record(findings=2)), (3, record())).findings
    assert [(each.rule, each.seeds) for each in found] == [("O1", (1, 2)), ("O1", (2,))]
    first = next(lines(judged((1, record(findings=1)), (2, record(findings=2)))))
    assert first == "O1 in 2 of 2 runs (seed 1, 2): BUG: stale translation number 0"


def test_the_console_shows_every_run_and_ends_with_the_verdict() -> None:
    out = io.StringIO()
    print_campaign(campaign(), Console(file=out, width=120))
    text = out.getvalue()
    assert [line.split()[:2] for line in text.splitlines()[1:4]] == [
        ["1", "PASS"],
        ["2", "FAIL"],
        ["3", "HARNESS_ERROR"],
    ]
    assert "exit code 9" in text
    assert text.splitlines()[-2:] == [
        "not made: seed 4",
        "FAIL  quick: of 3 runs 1 FAIL, 1 HARNESS_ERROR, 1 PASS; 1 not made: interrupted",
    ]
