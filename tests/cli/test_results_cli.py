"""`stress results`, `report`, `rerun` and `schema` as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from attrs import evolve

from stress.commands import schema
from tests.command import Stress, until
from tests.junit_schema import junit_schema
from tests.records import record
from tests.stored import CONFIGS, exploration, keep_exploration, keep_run, keep_selftest, selftest

FAULT = CONFIGS / "explore" / "fault-vs-delete.toml"
QUICK = CONFIGS / "quick.toml"
REPORTS = {
    "run": {"console.txt", "report.html", "summary.md", "junit.xml", "latency.hlog"},
    "exploration": {"console.txt", "report.html", "summary.md", "junit.xml"},
    "selftest": {"console.txt", "report.html", "selftest.md", "junit.xml"},
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A passed run of the days before, and of one day a failed one, an exploration and a selftest,
    an hour apart."""
    keep_run(tmp_path, evolve(record(), started="2026-11-20T12:00:00Z"))
    keep_run(tmp_path, evolve(record(findings=2), started="2026-11-22T11:00:00Z"))
    keep_exploration(tmp_path, exploration(failures=1))
    keep_selftest(tmp_path)
    return tmp_path


def valid(name: str, text: str) -> Any:
    data = json.loads(text)
    jsonschema.Draft202012Validator(json.loads(schema.as_text(name))).validate(data)
    return data


# List and show.


def test_a_list_shows_each_result_in_a_line(stress: Stress, results: Path) -> None:
    done = stress("results", "list", "--results", results)
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["PASS", "run"],
        ["FAIL", "run"],
        ["FAIL", "exploration"],
        ["PASS", "selftest"],
    ]
    assert lines[-1] == "4 results"


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--kind", "run"], 2),
        (["--kind", "run", "--kind", "selftest"], 3),
        (["--verdict", "fail"], 2),
        (["--name", "fault-*"], 1),
        (["--since", "2026-11-22"], 3),
        (["--last", "2"], 2),
        (["--last", "2", "--kind", "selftest"], 1),
        (["--verdict", "damaged"], 0),
    ],
)
def test_a_list_can_be_narrowed(
    stress: Stress, results: Path, options: list[str], count: int
) -> None:
    data = valid("listing", stress("results", "list", "--json", "--results", results, *options).out)
    assert len(data["entries"]) == count


def test_a_long_list_says_how_many_older_ones_there_are(stress: Stress, results: Path) -> None:
    assert stress("results", "list", "-n", 1, "--results", results).out.endswith(
        "\n4 results, 3 older ones not shown (-n 0 shows all)\n"
    )


def test_a_result_is_shown_by_name_or_as_the_latest(stress: Stress, results: Path) -> None:
    assert "PASS  selftest" in stress("results", "show", "latest", "--results", results).out
    (explored,) = results.glob("*-explore-*")
    done = stress("results", "show", explored.name[:-3], "--results", results)
    assert "FAIL  fault-vs-delete, portfolio" in done.out
    assert done.out.endswith(f"exploration {explored.name}: explore.json\n")
    valid("exploration", stress("results", "show", explored, "--json").out)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["results", "show", "20"], "beginning of 4 results"),
        (["results", "show", "nothing"], "stress results list"),
        (["results", "list", "--since", "yesterday"], "an age such as 7d"),
        (["results", "prune"], "nothing says what to delete"),
        (["rerun", "nothing"], "stress results list"),
        (["report", "nothing"], "stress results list"),
        (["schema", "nothing"], "'nothing' is not one of"),
    ],
)
def test_mistakes_exit_4_and_say_what_is_right(
    stress: Stress, results: Path, arguments: list[str], part: str
) -> None:
    where = [] if arguments[0] == "schema" else ["--results", results]
    done = stress(*arguments, *where)
    assert done.code == 4
    assert part in done.err


# Prune.


def test_prune_says_what_it_deletes_and_deletes_nothing_else(stress: Stress, results: Path) -> None:
    listed = stress(
        "results", "prune", "--kind", "run", "--passed", "--dry-run", "--results", results
    )
    assert listed.code == 0
    assert "would be deleted" in listed.out
    assert len([*results.glob("*-quick-*")]) == 2
    refused = stress("results", "prune", "--kind", "run", "--passed", "--results", results)
    assert refused.code == 4
    assert "--yes" in refused.err
    assert len([*results.glob("*-quick-*")]) == 2
    done = stress("results", "prune", "--kind", "run", "--passed", "--yes", "--results", results)
    (name,) = [line.split()[0] for line in done.out.splitlines() if "-quick-" in line]
    assert not (results / name).exists()
    assert {path.name for path in results.iterdir() if path.is_dir() and not path.is_symlink()} == {
        entry["directory"]
        for entry in json.loads(stress("results", "list", "--json", "--results", results).out)[
            "entries"
        ]
    }
    assert len([*results.glob("*-s?-*")]) == 3


@pytest.mark.parametrize(("answer", "left"), [(True, 0), (False, 2)])
def test_prune_asks_in_a_terminal(
    stress: Stress, results: Path, monkeypatch: pytest.MonkeyPatch, answer: bool, left: int
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.confirm", lambda text: answer)
    done = stress("results", "prune", "--keep", 0, "--kind", "run", "--results", results)
    assert done.code == 0
    assert len([*results.glob("*-quick-*")]) == left
    assert ("nothing was deleted" in done.out) != answer


def test_prune_by_age_and_number(stress: Stress, results: Path) -> None:
    done = stress(
        "results", "prune", "--older-than", "2026-11-21", "--dry-run", "--results", results
    )
    assert "1 results, " in done.out
    done = stress(
        "results", "prune", "--older-than", "1d", "--keep", 1, "--dry-run", "--results", results
    )
    assert "stay: 1 the newest" in done.out


# Reports.


@pytest.mark.parametrize(
    ("keep", "kind"),
    [(keep_run, "run"), (keep_exploration, "exploration"), (keep_selftest, "selftest")],
)
def test_the_reports_of_every_kind_are_rebuilt_as_they_were(
    stress: Stress, tmp_path: Path, keep: Callable[..., Path], kind: str
) -> None:
    directory = keep(tmp_path, reports=True)
    before = {name: (directory / name).read_bytes() for name in REPORTS[kind]}
    for name in before:
        (directory / name).unlink()
    done = stress("report", directory.name, "--results", tmp_path)
    assert done.code == 0
    assert {name: (directory / name).read_bytes() for name in REPORTS[kind]} == before
    assert done.out.startswith(before["console.txt"].decode())
    valid(kind, stress("report", directory, "--json").out)


def test_junit_goes_to_a_file_or_is_printed_alone(stress: Stress, tmp_path: Path) -> None:
    directory = keep_run(tmp_path, record(findings=1))
    printed = stress("report", directory, "--junit", "-").out
    assert stress("report", directory, "--junit", tmp_path / "ci.xml").code == 0
    junit_schema().validate(printed)
    assert (tmp_path / "ci.xml").read_text() == printed == (directory / "junit.xml").read_text()
    assert ET.fromstring(printed).find("testsuite").get("failures") == "1"
    refused = stress("report", directory, "--junit", tmp_path / "no" / "ci.xml")
    assert refused.code == 4
    assert "choose another file" in refused.err


@pytest.mark.parametrize(
    ("keep", "name", "text", "part"),
    [
        (keep_exploration, "explore.json", "{", "not valid JSON"),
        (keep_exploration, "explore.json", "[]", "has schema None"),
        (
            keep_exploration,
            "explore.json",
            '{"kind": "stress-exploration", "schema": 1}',
            "use the version that wrote it",
        ),
        (
            keep_exploration,
            "explore.json",
            '{"kind": "stress-exploration", "schema": 2, "id": 3}',
            "does not fit",
        ),
        (
            keep_selftest,
            "selftest.json",
            "{}",
            "reads schema 1, kind 'stress-selftest'",
        ),
    ],
)
def test_damage_is_named(
    stress: Stress, tmp_path: Path, keep: Callable[..., Path], name: str, text: str, part: str
) -> None:
    directory = keep(tmp_path)
    (directory / name).write_text(text)
    for command in (["report"], ["results", "show"], ["rerun"]):
        if command == ["rerun"] and name == "selftest.json":
            continue
        done = stress(*command, directory)
        assert done.code == 4
        assert part in done.err
        assert str(directory / name) in done.err


def test_a_record_that_makes_no_sense_is_named(stress: Stress, tmp_path: Path) -> None:
    directory = keep_exploration(tmp_path, exploration(scenario={"title": "no machine"}))
    done = stress("report", directory)
    assert done.code == 4
    assert "cannot be shown" in done.err


def test_schemas_are_listed_and_printed(stress: Stress) -> None:
    assert {line.split()[0] for line in stress("schema").out.splitlines()} == set(schema.NAMES)
    assert stress("schema", "run").out == schema.as_text("run")


# The real thing.


def test_a_real_exploration_is_kept_with_valid_reports_and_made_again_exactly(
    stress: Stress, tmp_path: Path
) -> None:
    options = ["--set", 'vm.variants=["table-freed-at-once"]', "--seed", "1", "-n", "5"]
    assert stress("explore", "-c", FAULT, "-q", "--results", tmp_path, *options).code == 1
    first = (tmp_path / "latest").resolve()
    assert {path.name for path in first.iterdir()} == {
        "explore.json",
        "schedule-1.json",
        "explanation-1.json",
        *REPORTS["exploration"],
    }
    valid("explanation", (first / "explanation-1.json").read_text())
    assert "The interleaving" in (first / "report.html").read_text()
    before = valid("exploration", (first / "explore.json").read_text())
    valid("schedule", (first / "schedule-1.json").read_text())
    junit_schema().validate((first / "junit.xml").read_text())
    done = stress("rerun", "latest", "--results", tmp_path, "-q")
    assert done.code == 1
    assert f"rerun: {first.name}, which was FAIL" in done.err
    assert "nothing around it has changed" in done.err
    second = (tmp_path / "latest").resolve()
    assert second != first
    after = valid("exploration", (second / "explore.json").read_text())
    same = (
        "scenario",
        "seed",
        "strategy",
        "schedules",
        "steps",
        "classes",
        "verdict",
        "asked",
        "variant_files",
    )
    assert [after[key] for key in same] == [before[key] for key in same]
    assert [failure["schedule"] for failure in after["failures"]] == [
        failure["schedule"] for failure in before["failures"]
    ]


def test_a_real_run_is_kept_with_valid_reports_and_made_again(
    stress: Stress, tmp_path: Path
) -> None:
    options = [
        *until(vcpu_accesses=1, vcpu_faults=1, memslot_creates=1),
        "--set",
        "vm.vcpus=1",
        "--set",
        "actors.consumer.devices=0",
        "--duration",
        "0.3",
    ]
    assert (
        stress("run", "-c", QUICK, "-q", "--seed", "5", "--results", tmp_path, *options).code == 0
    )
    first = (tmp_path / "latest").resolve()
    assert {path.name for path in first.iterdir()} == {
        "run.json",
        "timeline.json.gz",
        *REPORTS["run"],
    }
    assert stress("report", first, "--timeline", tmp_path / "timeline.json").code == 0
    timeline = json.loads((tmp_path / "timeline.json").read_text())
    assert {"guest mode", "fault", "memslot"} <= {
        event["name"] for event in timeline["traceEvents"]
    }
    before = valid("run", (first / "run.json").read_text())
    junit_schema().validate((first / "junit.xml").read_text())
    done = stress("rerun", first, "--results", tmp_path, "--json")
    assert done.code == 0
    after = valid("run", done.out)
    assert after["id"] != before["id"]
    assert [after[key] for key in ("scenario", "seed", "name", "variants")] == [
        before[key] for key in ("scenario", "seed", "name", "variants")
    ]


def test_again_refuses_what_it_cannot_make_again(stress: Stress, tmp_path: Path) -> None:
    done = stress("rerun", keep_selftest(tmp_path, selftest()))
    assert done.code == 4
    assert "only a run or an exploration can be rerun" in done.err


def test_a_run_without_a_timeline_says_why(stress: Stress, tmp_path: Path) -> None:
    kept = keep_run(tmp_path)
    done = stress("report", kept, "--timeline", tmp_path / "t.json")
    assert done.code == 4
    assert "observe.timeline = false" in done.err
    assert not (tmp_path / "t.json").exists()


def test_a_comparison_can_be_a_page(stress: Stress, tmp_path: Path) -> None:
    kept = [str(keep_run(tmp_path, evolve(record(), seed=seed))) for seed in range(4)]
    done = stress(
        "compare", f"a={kept[0]},{kept[1]}", f"b={kept[2]},{kept[3]}", "--html", tmp_path / "c.html"
    )
    assert done.code == 0
    assert "<h1>a / b</h1>" in (tmp_path / "c.html").read_text()
    assert (
        stress("compare", f"a={kept[0]}", f"b={kept[2]}", "--html", tmp_path / "no" / "c.html").code
        == 4
    )
