"""Schedule files: everything comes back, and what is no schedule file is refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from stress.results.schedule_file import (
    StoredSchedule,
    of_string,
    read,
    signatures,
    stored,
)
from stress.scenario.errors import ResultError, StressError
from stress.scenario.load import load
from stress.search.exploration import Failure
from stress.search.schedule import Schedule, ScheduleError
from tests.unit.stress.search.programs import broken

EXPLORE = Path(__file__).parents[4] / "configs" / "explore"
SCENARIOS = sorted(EXPLORE.glob("*.toml"))


def example(**changes: Any) -> StoredSchedule:
    scenario = load(EXPLORE / "fault-vs-delete.toml", ['vm.variants=["stale-check-skipped"]'])
    failure = Failure(
        broken("O12", "stale"),
        (broken("O4", "else"),),
        Schedule(3, (1, 2, 2, 1), 77),
        (
            ("vcpu0", "start"),
            ("memslot-worker", "store a: b"),
            ("memslot-worker", "end"),
            ("vcpu0", "load SPTE#2[3]"),
        ),
        5,
        0.25,
        "pct:2",
    )
    return evolve(stored("fault-vs-delete", scenario, ("idea.py",), failure), **changes)


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "schedule-1.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_everything_comes_back(tmp_path: Path) -> None:
    for whole in (example(), example(predicted=True), example(variant_files=(), signatures=())):
        assert read(written(tmp_path, whole.text())) == whole


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_comes_back(tmp_path: Path, path: Path) -> None:
    whole = example(scenario=load(path))
    assert read(written(tmp_path, whole.text())).scenario == whole.scenario


@settings(max_examples=15)
@given(
    st.text(), st.lists(st.integers(1, 9), min_size=1, max_size=20), st.lists(st.text(), max_size=3)
)
def test_any_words_come_back(
    tmp_path_factory: pytest.TempPathFactory, headline: str, choices: list[int], found: list[str]
) -> None:
    steps = (("vcpu0", headline.replace(": ", "")),) * len(choices)
    whole = example(
        headline=headline,
        schedule=Schedule(1, tuple(choices), 2),
        signatures=tuple(found),
        steps=steps,
    )
    assert read(written(tmp_path_factory.mktemp("any"), whole.text())) == whole


def test_a_failure_is_stored_with_all_that_was_found() -> None:
    whole = example()
    assert whole.signatures == signatures(broken("O12", "stale"), [broken("O4", "else")])
    assert whole.signatures == ("O12/stale/", "O4/else/")
    assert whole.headline == "BUG: stale"
    data = json.loads(whole.text())
    assert (data["kind"], data["schema"]) == ("stress-schedule", 1)
    assert data["steps"][1] == "memslot-worker: store a: b"
    assert data["schedule"].startswith("tdp1-")
    assert data["scenario"]["script"]["memslot-worker"] == ["delete 0"]


def test_a_string_belongs_to_a_config() -> None:
    config = EXPLORE / "delete-vs-dma.toml"
    whole = of_string(config, load(config), ("idea.py",), Schedule(3, (1, 2), 4).encode())
    assert (whole.name, whole.variant_files, whole.schedule) == (
        "delete-vs-dma",
        ("idea.py",),
        Schedule(3, (1, 2), 4),
    )
    assert (whole.signatures, whole.steps) == ((), ())
    with pytest.raises(ScheduleError):
        of_string(config, load(config), (), "nonsense")


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.pop(key)


def with_(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update({key: value})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_("schema", 2), "has schema 2, kind 'stress-schedule'; this version reads schema 1"),
        (with_("schema", None), "has schema None"),
        (with_("kind", "stress-exploration"), "give a schedule file"),
        (without("kind"), "give a schedule file"),
        (without("schema"), "has schema None"),
        (without("schedule"), "does not fit"),
        (without("scenario"), "does not fit"),
        (without("steps"), "does not fit"),
        (without("predicted"), "does not fit"),
        (with_("schedule", "tdp1-"), "damaged"),
        (with_("schedule", 7), "is no schedule"),
        (with_("schedule", "nonsense"), "is no schedule"),
        (with_("steps", None), "does not fit"),
        (with_("steps", [1, 2]), "is damaged: it names 2 steps"),
        (with_("signatures", 3), "does not fit"),
        (with_("variant_files", None), "does not fit"),
        (with_("scenario", []), "does not fit"),
        (with_("scenario", {"vm": {"vcpus": "two"}}), "this version cannot run"),
        (with_("scenario", {"vm": {"quantum": 1}}), "vm.quantum"),
        (with_("scenario", {"script": {"vcpu0": ["fly 0x0"]}}), "cannot run"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    data = json.loads(example().text())
    change(data)
    path = written(tmp_path, json.dumps(data))
    with pytest.raises(StressError) as caught:
        read(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not valid JSON"),
        ("{", "the file is damaged"),
        ("[]", "give a schedule file"),
        ("null", "give a schedule file"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        ("[" * 100_000, "is not valid JSON"),
    ],
    ids=["empty", "half", "a list", "null", "bytes", "deep"],
)
def test_what_is_no_schedule_file(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(ResultError, match=reason):
        read(written(tmp_path, text))


def test_half_a_file_is_damaged_wherever_it_ends(tmp_path: Path) -> None:
    text = example().text()
    for kept in range(0, len(text) - 1, 97):
        with pytest.raises(StressError):
            read(written(tmp_path, text[:kept]))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="No such file"):
        read(tmp_path / "none.json")
    with pytest.raises(ResultError, match="directory"):
        read(tmp_path)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_file_with_another_number_of_names_than_steps_is_damaged(
    tmp_path: Path, count: int
) -> None:
    data = json.loads(example().text())
    data["steps"] = (data["steps"] * 2)[:count]
    with pytest.raises(StressError):
        read(written(tmp_path, json.dumps(data)))
