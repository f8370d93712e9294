"""A failing schedule as a file: everything that a replay needs, and the name of every step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypedDict

from attrs import frozen

from mmu.report import Report
from stress.engines.program import Program
from stress.engines.scenario_program import ScenarioProgram
from stress.scenario.load import structure, unstructure
from stress.scenario.types import Scenario
from stress.scenario.variant_files import variants_from
from stress.search.exploration import Failure
from stress.search.schedule import Schedule, ScheduleError

SCHEMA: Final = 1
KIND: Final = "stress-schedule"


class ScheduleFile(TypedDict):
    """A schedule file as JSON: the whole scenario, the schedule as `stress replay` takes it, the
    signatures of what it found, and the name of every step; `predicted` is a race that did no
    harm."""

    schema: int
    kind: str
    name: str
    headline: str
    signatures: list[str]
    predicted: bool
    schedule: str
    variant_files: list[str]
    scenario: dict[str, Any]
    steps: list[str]


@frozen
class StoredSchedule:
    """What a schedule file holds. `variant_files` are variants from outside, `steps` (task,
    operation) of every step."""

    name: str
    scenario: Scenario
    variant_files: tuple[str, ...]
    schedule: Schedule
    signatures: tuple[str, ...]
    headline: str
    steps: tuple[tuple[str, str], ...]
    predicted: bool = False

    def to_json(self) -> str:
        """The file's text."""
        data: ScheduleFile = {
            "schema": SCHEMA,
            "kind": KIND,
            "name": self.name,
            "headline": self.headline,
            "signatures": list(self.signatures),
            "predicted": self.predicted,
            "schedule": self.schedule.encode(),
            "variant_files": list(self.variant_files),
            "scenario": unstructure(self.scenario),
            "steps": [f"{task}: {operation}" for task, operation in self.steps],
        }
        return json.dumps(data, indent=1)


def stored(
    name: str, scenario: Scenario, variant_files: Sequence[str], failure: Failure
) -> StoredSchedule:
    """The file form of a failure."""
    return StoredSchedule(
        name,
        scenario,
        tuple(variant_files),
        failure.schedule,
        signatures(failure.report, failure.others),
        failure.report.headline,
        failure.steps,
        failure.predicted,
    )


def of_string(
    config: Path, scenario: Scenario, variant_files: tuple[str, ...], text: str
) -> StoredSchedule:
    """A schedule given as a string, for the scenario in `config`."""
    return StoredSchedule(
        config.stem,
        scenario,
        (*scenario.vm.variant_files, *variant_files),
        Schedule.decode(text),
        (),
        "",
        (),
    )


def signatures(first: Report, others: Sequence[Report]) -> tuple[str, ...]:
    """What a schedule found, in order."""
    return tuple(report.signature for report in (first, *others))


def read(path: Path) -> StoredSchedule:
    """The schedule in a file; raises `ScheduleError` when there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ScheduleError(
            f"{path}: {reason}; give a schedule file, or a schedule string together with --config"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ScheduleError(f"{path} is no JSON: {error}; the file is damaged") from None
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise ScheduleError(
            f"{path} is no schedule file: `stress explore` writes one for every failure, as "
            "schedule-1.json"
        )
    if data.get("schema") != SCHEMA:
        raise ScheduleError(
            f"{path} has schema {data.get('schema')!r}, this version reads {SCHEMA}"
        )
    try:
        return _parse(data, path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ScheduleError(f"{path} is damaged: {error!r}") from None


def _parse(data: dict[str, Any], path: Path) -> StoredSchedule:
    plain = {key: value for key, value in data["scenario"].items() if value is not None}
    scenario, problems = structure(plain, {}, str(path))
    if scenario is None or problems:
        raise ScheduleError(
            f"{path} holds a scenario that this version cannot run: {'; '.join(map(str, problems))}"
        )
    steps = tuple(
        (task, operation) for task, _, operation in (line.partition(": ") for line in data["steps"])
    )
    schedule = Schedule.decode(data["schedule"])
    if steps and len(steps) != len(schedule.choices):
        raise ScheduleError(
            f"{path} is damaged: it names {len(steps)} steps of a schedule of "
            f"{len(schedule.choices)}"
        )
    return StoredSchedule(
        str(data["name"]),
        scenario,
        tuple(map(str, data["variant_files"])),
        schedule,
        tuple(map(str, data["signatures"])),
        str(data["headline"]),
        steps,
        bool(data["predicted"]),
    )


def program_of(recorded: StoredSchedule) -> Program:
    """The program that a stored schedule belongs to."""
    return ScenarioProgram(recorded.name, recorded.scenario, variants_from(recorded.variant_files))
