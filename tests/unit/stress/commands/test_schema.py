"""The published JSON Schemas: valid, up to date, and strict about everything that is written."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from attrs import evolve

from stress.commands import schema
from stress.results import schedule_file
from stress.results.exploration_record import EXPLORATION_FORMAT
from stress.results.figures import MeasuredFigure
from stress.results.inputs import VariantFile
from stress.results.known_kills import Kill, KnownKills
from stress.results.listing import LISTING_FORMAT, Listing, entry_of
from stress.results.run_record import RUN_FORMAT
from stress.runs import campaign_summary
from stress.scenario.load import load, unstructure
from stress.search.exploration import Failure
from stress.search.schedule import Schedule
from stress.selftest import stored as selftests
from tests.records import finding, record
from tests.stored import CONFIGS, SCENARIO, SCENARIOS, campaign, exploration, keep_run, selftest
from tests.unit.stress.search.programs import broken

Data = dict[str, Any]


@functools.cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(schema.as_text(name)))


def full_run() -> Data:
    """A run with something in every list."""
    whole = evolve(
        record(findings=2),
        findings=(evolve(finding(0), suspects=("R5",)),),
        variant_files=(VariantFile("idea.py", "0" * 64),),
        figures=(MeasuredFigure("M1", "write hold", 2.5, "us"),),
        harness_errors=("oops",),
        judged={"O1": 3},
        points=("P1",),
        selftest=KnownKills(
            "2026-11-20",
            "0.1.0",
            "there",
            "threads",
            2,
            1,
            0.5,
            1,
            (Kill("x", "threads", "quick", 1, 2, None),),
        ),
    )
    return json.loads(RUN_FORMAT.text(whole))


def a_schedule() -> Data:
    failure = Failure(
        broken("O12", "stale"),
        (),
        Schedule(3, (1, 2), 0),
        (("vcpu0", "start"), ("vcpu0", "end")),
        5,
        0.25,
        "pct:2",
    )
    return json.loads(
        schedule_file.stored("fault-vs-delete", SCENARIO, ("idea.py",), failure).text()
    )


EXAMPLES: dict[str, Data] = {
    "run": full_run(),
    "exploration": json.loads(EXPLORATION_FORMAT.text(exploration(failures=2))),
    "schedule": a_schedule(),
    "campaign": json.loads(campaign_summary.CAMPAIGN_FORMAT.text(campaign())),
    "selftest": json.loads(selftests.SELFTEST_FORMAT.text(selftest())),
}


@pytest.mark.parametrize("name", schema.NAMES)
def test_a_schema_is_valid(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(schema.as_text(name)))


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_written_fits(name: str) -> None:
    validator(name).validate(EXAMPLES[name])


def test_a_listing_fits(tmp_path: Any) -> None:
    path = keep_run(tmp_path)
    entry = entry_of(path, "run", (path / "run.json").read_text(), 0.0)
    validator("listing").validate(json.loads(LISTING_FORMAT.text(Listing("results", (entry,)))))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_shipped_scenario_fits(path: Any) -> None:
    data = copy.deepcopy(EXAMPLES["run"])
    data["scenario"] = unstructure(load(path))
    validator("run").validate(data)


def objects(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all objects in a document, but for the second and later elements of lists."""
    if isinstance(data, dict):
        yield path
        for key, value in data.items():
            yield from objects(value, (*path, key))
    elif isinstance(data, list):
        yield from objects(data[0] if data else None, (*path, 0))


def at(data: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        data = data[step]
    return data


@pytest.mark.parametrize("name", EXAMPLES)
def test_whatever_is_missing_or_too_much_or_of_another_type_is_noticed(name: str) -> None:
    """No part of a document is unchecked: every key of every object is taken away, renamed, and
    given a wrong value in turn."""
    check = validator(name)
    broken_in = 0
    for path in objects(EXAMPLES[name]):
        for key in at(EXAMPLES[name], path):
            for change in ("wrong", "gone"):
                data = copy.deepcopy(EXAMPLES[name])
                target = at(data, path)
                if change == "wrong":
                    target[key] = {"no": {"such": ["value"]}}
                else:
                    del target[key]
                free = path and path[-1] in FREE and path != ("scenario", "actors")
                assert check.is_valid(data) == bool(free and change == "gone"), (path, key, change)
                broken_in += 1
    assert broken_in > 20


FREE = {
    "counters",
    "actors",
    "packages",
    "script",
    "obligations",
    "members",
    "fired",
    "found_by",
    "limits_s",
    "threads_cannot",
    "judged",
} | {
    *record().actors,
    "pct:3",
}
"""Objects whose keys are names from elsewhere: any of them may be missing."""


def test_a_name_without_a_schema_is_refused() -> None:
    with pytest.raises(TypeError, match="no JSON Schema"):
        schema._Maker().schema(set[int])
