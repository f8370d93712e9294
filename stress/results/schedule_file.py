"""A failing schedule as a file, with everything that a replay needs and the name of every step; and
the file with the explanation of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from mmu.report import Report
from stress.engines.program import Program
from stress.engines.scenario_program import ScenarioProgram
from stress.results.serialise import Format
from stress.scenario.errors import ResultError
from stress.scenario.load import structure, unstructure
from stress.scenario.types import Scenario
from stress.scenario.variant_files import variants_from
from stress.search.explain_data import Explanation
from stress.search.exploration import Failure
from stress.search.schedule import Schedule

SCHEDULE_JSON: Final = "schedule-{}.json"
EXPLANATION_JSON: Final = "explanation-{}.json"
"""Names of the files of an exploration's failures, which are numbered from 1."""


@frozen
class ScheduleFile:
    """A schedule file as JSON: the whole scenario, the schedule as `stress replay` takes it, the
    signatures of what it found, and the name of every step; `predicted` is a race that did no
    harm."""

    name: str
    headline: str
    signatures: tuple[str, ...]
    predicted: bool
    schedule: str
    variant_files: tuple[str, ...]
    scenario: dict[str, Any]
    steps: tuple[str, ...]


SCHEDULE_FORMAT: Final = Format(
    ScheduleFile,
    1,
    "stress-schedule",
    "a schedule file, such as schedule-1.json, or a schedule string together with --config",
)
EXPLANATION_FORMAT: Final = Format(Explanation, 1, "stress-explanation")


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

    def text(self) -> str:
        """The text of the file."""
        return SCHEDULE_FORMAT.text(
            ScheduleFile(
                name=self.name,
                headline=self.headline,
                signatures=self.signatures,
                predicted=self.predicted,
                schedule=self.schedule.encode(),
                variant_files=self.variant_files,
                scenario=unstructure(self.scenario),
                steps=tuple(f"{task}: {operation}" for task, operation in self.steps),
            )
        )


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
    """The schedule in a file; raises `ResultError` if there is none that this version can replay,
    and `ScheduleError` if its string is damaged."""
    file = SCHEDULE_FORMAT.load(path)
    plain = {key: value for key, value in file.scenario.items() if value is not None}
    scenario, problems = structure(plain, {}, str(path))
    if scenario is None or problems:
        raise ResultError(
            f"{path} holds a scenario that this version cannot run: {'; '.join(map(str, problems))}"
        )
    schedule = Schedule.decode(file.schedule)
    if file.steps and len(file.steps) != len(schedule.choices):
        raise ResultError(
            f"{path} is damaged: it names {len(file.steps)} steps of a schedule of "
            f"{len(schedule.choices)}"
        )
    parts = (line.partition(": ") for line in file.steps)
    return StoredSchedule(
        file.name,
        scenario,
        file.variant_files,
        schedule,
        file.signatures,
        file.headline,
        tuple((task, operation) for task, _, operation in parts),
        file.predicted,
    )


def program_of(recorded: StoredSchedule) -> Program:
    """The program that a stored schedule belongs to."""
    return ScenarioProgram(recorded.name, recorded.scenario, variants_from(recorded.variant_files))
