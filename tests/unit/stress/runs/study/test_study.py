"""Studies: what a file may say, which runs follow, what their counts cost, and what may be
concluded."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from attrs import evolve

from stress.commands import schema
from stress.commands.command_line import invoke
from stress.commands.study import verdict_of
from stress.observe.histograms import Latency
from stress.results.inputs import VariantFile
from stress.results.run_record import RUN_FORMAT, RunRecord
from stress.results.store import RUN_JSON
from stress.results.verdict import Verdict
from stress.runs.compare.statistics import ratio_of_medians
from stress.runs.study.answer import Answer, answer, ratio_to
from stress.runs.study.costs import PRICES, Costs, amounts_of, call_us, total_us
from stress.runs.study.plan import GridPoint, Study, along, places, planned, read_study, scenario_of
from stress.runs.study.render import crossovers, markdown
from stress.runs.study.runs import finished, folder_of
from stress.runs.study.study_record import STUDY_FORMAT, record_of
from stress.scenario.errors import ConfigError, ResultError
from stress.scenario.load import unstructure
from stress.scenario.types import Seed
from tests.records import finding, record

SHIPPED = Path(__file__).parents[5] / "configs" / "studies" / "keep-valid.toml"
SMALL = """
title = "A small study"
scenario = "{scenario}"
policies = ["keep-valid", "slot-leaves"]
seeds = {seeds}
duration_s = 0.3
[settings]
"disturbances.delay_share" = 0.0
"budget.until_met" = true
[point]
"vm.vcpus" = 1
"memory.fixed_pages" = 64
[axes]
"memory.fixed_pages" = [64, 256, 1024]
[costs]
io_fault_us = 40
"""


def study_at(tmp_path: Path, text: str = SMALL, seeds: int = 3) -> Study:
    path = tmp_path / "small.toml"
    path.write_text(text.format(scenario=SHIPPED.parent.parent / "quick.toml", seeds=seeds))
    return read_study(path)


def counted(faults: int, io_faults: int = 10, noise: float = 1.0, findings: int = 0) -> RunRecord:
    """A run of 10 deletes."""
    made = record(findings=findings)
    counters = {
        "memslot_deletes": 10,
        "vcpu_faults_fixed": int(faults * 10 * noise),
        "io_faults": int(io_faults * 10 * noise),
        "device_accesses": 100,
        "vcpu_accesses": 1000,
        "remote_flushes": 20,
    }
    steps = Latency("walk_steps", 10, 5, 5, 5, 5, 50, ((5, 8), (50, 2)))
    return evolve(made, counters=counters, latencies=(steps, *made.latencies))


def answered(study: Study, faults: Any) -> Answer:
    """The answer where `faults(policy, pages)` says what a delete costs, with a little noise."""
    dice = random.Random(1)
    runs = []
    for run in planned(study):
        pages = dict(run.place.values)["memory.fixed_pages"]
        runs.append(
            (run, counted(faults(run.policy, pages), 0, noise=dice.lognormvariate(0, 0.01)))
        )
    return answer(study, runs, len(runs))


def test_the_shipped_study_can_be_read_and_fits_twenty_minutes() -> None:
    study = read_study(SHIPPED)
    runs = list(planned(study))
    assert len(runs) == len(places(study)) * len(study.policies) * study.seeds
    assert len({run.folder for run in runs}) == len(runs)
    assert len(runs) * (study.duration_s + 1.0) < 20 * 60
    assert [run.policy for run in runs[: len(study.policies)]] == list(study.policies), (
        "policies next to each other"
    )
    assert runs[-1].seed == study.seeds, "seeds outermost"


def test_the_axes_cross_at_the_point_which_is_one_place(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    assert [place.name for place in places(study)] == [
        "vcpus1-fixed_pages64",
        "vcpus1-fixed_pages256",
        "vcpus1-fixed_pages1024",
    ]
    assert [value for value, _ in along(study, "memory.fixed_pages")] == [64, 256, 1024]


def test_everything_wrong_with_a_study_comes_at_once(tmp_path: Path) -> None:
    text = SMALL.replace('"slot-leaves"]', '"slot-leafs"]').replace(
        "duration_s = 0.3", "duration_s = 0\nseedz = 4"
    )
    text = text.replace("[64, 256, 1024]", "[64]").replace("io_fault_us = 40", "io_fault = 40")
    with pytest.raises(ConfigError) as error:
        study_at(tmp_path, text)
    told = str(error.value)
    for wanted in (
        "seedz",
        "slot-leafs",
        "did you mean slot-leaves?",
        "duration_s",
        "two or more different values",
        "did you mean io_fault_us?",
    ):
        assert wanted in told
    assert "small.toml:6: duration_s: found 0" in told


def test_a_key_that_scenarios_do_not_have_is_found_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        study_at(tmp_path, SMALL.replace('"vm.vcpus" = 1', '"vm.vcpu" = 1'))


def test_amounts_are_per_delete_and_cost_what_the_prices_say() -> None:
    amounts = amounts_of(counted(200))
    assert amounts is not None
    assert set(amounts) == set(PRICES)
    assert (amounts["fault_us"], amounts["io_fault_us"], amounts["flush_us"]) == (200, 10, 2)
    assert amounts["spte_visit_us"] == (5 * 8 + 50 * 2) / 10
    costs = Costs(spte_visit_us=1, fault_us=2, io_fault_us=25, flush_us=5)
    assert call_us(amounts, costs) == 14 + 10
    assert total_us(amounts, costs) == 14 + 10 + 400 + 250
    assert amounts_of(evolve(counted(1), counters={})) is None, (
        "without a delete there is nothing to say"
    )


def test_a_crossover_is_found_where_it_was_put(tmp_path: Path) -> None:
    """keep-valid refaults as many pages as are mapped, the other a fixed 256: they meet at 256."""
    study = study_at(tmp_path, SMALL.replace("[64, 256, 1024]", "[64, 1024]"))
    found = answered(study, lambda policy, pages: pages if policy == "keep-valid" else 256)
    (each,) = found.crossovers
    assert each.cheaper == ("keep-valid", "slot-leaves")
    assert each.at is not None
    assert 200 < each.at < 320
    (line,) = crossovers(found)
    assert line.startswith(
        "`memory.fixed_pages`, keep-valid against slot-leaves: keep-valid is cheaper below about 2"
    )


def test_the_answer_fits_its_schema(tmp_path: Path) -> None:
    found = answered(
        study_at(tmp_path, seeds=5), lambda policy, pages: pages if policy == "keep-valid" else 256
    )
    data = json.loads(STUDY_FORMAT.text(record_of(found)))
    assert data["crossovers"]
    assert data["sensitivities"]
    jsonschema.Draft202012Validator(json.loads(schema.as_text("study"))).validate(data)


def test_no_crossover_is_made_out_of_noise(tmp_path: Path) -> None:
    found = answered(study_at(tmp_path, seeds=5), lambda *_: 100)
    (each,) = found.crossovers
    assert (set(each.cheaper), each.at) == ({"same"}, None)
    assert "no difference that chance does not explain, from 64 to 1024" in next(crossovers(found))


def test_a_price_that_decides_is_named(tmp_path: Path) -> None:
    """The other policy saves vCPU faults and pays with IO faults: these two prices decide, and no
    other."""
    study = study_at(tmp_path)
    runs = [
        (run, counted(300, 0) if run.policy == "keep-valid" else counted(100, 5))
        for run in planned(study)
    ]
    found = answer(study, runs, len(runs))
    assert {each.price for each in found.sensitivities if each.flips} == {"fault_us", "io_fault_us"}
    text = markdown(found)
    assert (
        "Who is cheaper at this point depends on the price of: one vCPU fault that installs a "
        "leaf, one IO page fault." in text
    )


def test_a_finding_takes_the_safety_away(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    runs = [(run, counted(100, findings=int(run.policy == "keep-valid"))) for run in planned(study)]
    text = markdown(answer(study, runs, len(runs)))
    assert (
        "**Safe.** NOT shown: 9 findings and 9 accesses to memory that was gone, over 90 deletes."
        in text
    )
    silent = markdown(answer(study, [(run, counted(100)) for run in planned(study)], len(runs)))
    assert "no access reached memory that was gone" in silent
    assert "fewer than one in 30 goes wrong (95 %)" in silent


def test_an_unfinished_study_says_so(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    runs = [(run, counted(100)) for run in planned(study)][:4]
    found = answer(study, runs, 18)
    assert "**Unfinished**: 4 of 18 runs" in markdown(found)
    assert record_of(found).made == 4
    nothing = markdown(answer(study, [], 18))
    assert "There is no run of the seed's policy yet in which anything was deleted." in nothing


def test_runs_without_a_delete_are_told_and_leave_it_open(tmp_path: Path) -> None:
    """They have no price, but what they have found counts."""
    study = study_at(tmp_path)
    every = list(planned(study))
    lazy, other = (
        run
        for run in every
        if run.policy == "keep-valid" and run.place.name == every[0].place.name and run.seed != 1
    )
    nothing = {
        run: evolve(counted(100, findings=int(run is other)), counters={}) for run in (lazy, other)
    }
    found = answer(study, [(run, nothing.get(run, counted(100))) for run in every], len(every))
    assert found.idle() == {("keep-valid", lazy.place.name): 2}
    assert "**Too short**: 2 runs came to no delete" in markdown(found)
    assert "**Safe.** NOT shown: 1 findings" in markdown(found)
    assert verdict_of(found, 0) is Verdict.FAIL
    data = json.loads(STUDY_FORMAT.text(record_of(found)))
    assert [
        (each["policy"], each["idle_runs"], each["runs"], each["findings"]) for each in data["idle"]
    ] == [("keep-valid", 2, 3, 1)]
    jsonschema.Draft202012Validator(json.loads(schema.as_text("study"))).validate(data)
    quiet = [
        (run, evolve(counted(100), counters={}) if run is lazy else counted(100)) for run in every
    ]
    assert verdict_of(answer(study, quiet, len(every)), 0) is Verdict.INCONCLUSIVE
    whole = answer(study, [(run, counted(100)) for run in every], len(every))
    assert verdict_of(whole, 0) is Verdict.PASS
    assert verdict_of(whole, 1) is Verdict.HARNESS_ERROR


def test_only_runs_of_the_same_seeds_are_pairs(tmp_path: Path) -> None:
    """With a run missing on either side, for another seed each, the ratio is one of medians."""
    study = study_at(tmp_path)
    point = places(study)[0]
    gone = {("keep-valid", 1), ("slot-leaves", 2)}
    runs = [
        (run, counted(100 * run.seed))
        for run in planned(study)
        if (run.policy, run.seed) not in gone
    ]
    found = answer(study, runs, len(runs))
    ours, theirs = (found.cell(policy, point) for policy in ("keep-valid", "slot-leaves"))
    assert ours is not None
    assert theirs is not None
    assert (ours.seeds, theirs.seeds) == ((2, 3), (1, 3))
    assert ratio_to(theirs, ours, study.costs) == ratio_of_medians(
        [total_us(each, study.costs) for each in theirs.amounts],
        [total_us(each, study.costs) for each in ours.amounts],
        f"slot-leaves/{point.name}",
    )


def test_a_study_runs_stops_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For real, at two places; what is there is not made again, what is damaged is."""
    assert finding(0).code == "stale-tlb"
    text = SMALL.replace("[64, 256, 1024]", "[64, 256]").format(
        scenario=SHIPPED.parent.parent / "quick.toml", seeds=1
    )
    path = tmp_path / "tiny.toml"
    path.write_text(text)
    assert invoke(["study", "-c", str(path), "--results", str(tmp_path / "results"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["made"], data["planned"]) == (4, 4)
    assert all(cell["deletes"] > 0 for cell in data["cells"])
    (directory,) = (each for each in (tmp_path / "results").iterdir() if not each.is_symlink())
    stored = {each.parent: each.stat().st_mtime_ns for each in directory.rglob(RUN_JSON)}
    assert len(stored) == 4
    damaged, killed = sorted(stored)[:2]
    (damaged / RUN_JSON).write_text("{")
    half = RUN_FORMAT.read((killed / RUN_JSON).read_text(), "x")
    (killed / RUN_JSON).write_text(RUN_FORMAT.text(evolve(half, status="running")))
    assert invoke(["study", "-c", str(path), "--resume", str(directory), "-q"]) == 0
    assert "Efficient. At the default prices a delete costs" in capsys.readouterr().out
    resumed = {each.parent: each.stat().st_mtime_ns for each in directory.rglob(RUN_JSON)}
    assert {folder for folder in stored if stored[folder] != resumed[folder]} == {damaged, killed}
    assert (directory / "study.md").read_text().startswith("# A small study\n")


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        ('"vm.vcpus" = 1', '"vm.vcpus" = [1]', "point.vm.vcpus: found [1]; expected a number"),
        ("io_fault_us = 40", "io_fault_us = 1" + "0" * 400, "expected microseconds, from 0 to"),
        ("io_fault_us = 40", "io_fault_us = nan", "expected microseconds, from 0 to"),
        ("duration_s = 0.3", "duration_s = inf", "up to 100,000,000"),
        ("[64, 256, 1024]", "[[64], [256]]", "a list of two or more different values"),
        ("seeds = {seeds}", "seeds = 1000000000000", "a whole number from 1 to 100,000"),
        ('title = "A small study"', "title = 7", "title: found 7; expected a text"),
    ],
)
def test_what_a_study_cannot_mean_is_refused(
    tmp_path: Path, was: str, now: str, expected: str
) -> None:
    assert was in SMALL
    with pytest.raises(ConfigError, match=re.escape(expected)):
        study_at(tmp_path, SMALL.replace(was, now))


def test_the_folders_of_places_stay_in_the_study() -> None:
    names = [
        GridPoint((("a.b", value),)).name
        for value in ("../../x", "..", "a/b", "a_b", "a\x1b", "", 0.5, True)
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.+~-]+", name) for name in names)
    assert names[3] == "ba_b"
    assert names[-2:] == ["b0.5", "bTrue"]


def test_runs_of_another_study_are_not_taken_for_this_one(tmp_path: Path) -> None:
    study = study_at(tmp_path, seeds=1)
    run = next(planned(study))
    scenario = evolve(scenario_of(study, run), seed=Seed(1))
    folder = folder_of(tmp_path, run)
    folder.mkdir(parents=True)
    made = evolve(record(), scenario=unstructure(scenario), seed=1)

    def stored(**changes: Any) -> RunRecord | None:
        (folder / RUN_JSON).write_text(RUN_FORMAT.text(evolve(made, **changes)))
        return finished(study, tmp_path, run)

    assert stored() == made
    assert stored(status="running") is None
    for key, value in (("profile", "rfc-v1"), ("kernel", "6.12")):
        other = evolve(scenario, vm=evolve(scenario.vm, **{key: value}))
        with pytest.raises(ResultError, match=f"another study: vm.{key} is '{value}' there"):
            stored(scenario=unstructure(other))
    with pytest.raises(ResultError, match="no scenario of this version"):
        stored(scenario={"vm": {"entries": 512}, "other": 1})
    with pytest.raises(ResultError, match="another variant file"):
        stored(variant_files=(VariantFile("x.py", "0"),))
    (folder / RUN_JSON).write_text("{")
    assert finished(study, tmp_path, run) is None
    huge = {**made.counters, "memslot_deletes": 1, "remote_flushes": 10**400}
    assert stored(counters=huge) is None, "made again"
