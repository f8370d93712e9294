"""The runs of a study: each in a process of its own, kept in its own directory, and never made
twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from stress.results.inputs import fingerprints
from stress.results.known import KNOWN
from stress.results.run_record import RunRecord
from stress.results.store import RUN_JSON, RunDirectory, command_line
from stress.results.verdict import Verdict
from stress.runs import ends
from stress.runs.fanout.single_run import FetchedRun, KeptRun, Place, run_task
from stress.runs.fanout.spread import Workers, absolute, spread
from stress.runs.fanout.task import FanoutTask, Trouble
from stress.runs.study.answer import can_be_counted
from stress.runs.study.plan import PlannedRun, Study, planned, scenario_of
from stress.scenario.errors import ResultError
from stress.scenario.load import structure, unstructure
from stress.scenario.types import Scenario, Seed


@frozen
class StudyProgress:
    """How far a study is: runs done, runs in all, seconds that are left as far as one can tell, and
    what was just done."""

    done: int
    total: int
    left_s: float
    run: PlannedRun
    trouble: str = ""


def finished(study: Study, directory: Path, run: PlannedRun) -> RunRecord | None:
    """The record of a run that was made already; raises `ResultError` if it is one of another
    study."""
    folder = folder_of(directory, run)
    if not (folder / RUN_JSON).is_file():
        return None
    try:
        record = RunDirectory(folder).read()
    except ResultError:
        return None  # written by another version, or damaged: it is made again
    if record.status != "finished" or not can_be_counted(record):
        return None
    _check_same(folder, record, evolve(scenario_of(study, run), seed=Seed(run.seed)))
    return record


def _check_same(folder: Path, record: RunRecord, wanted: Scenario) -> None:
    """Raise `ResultError` if the record is one of another scenario."""
    plain = {key: value for key, value in record.scenario.items() if value is not None}
    stored, _ = structure(plain, {}, str(folder))
    if stored != wanted:
        was = "no scenario of this version" if stored is None else _difference(stored, wanted)
        raise ResultError(
            f"{folder} holds a run of another study: {was}; give --resume its directory, or none"
        )
    if record.variant_files != fingerprints(wanted.vm.variant_files):
        raise ResultError(f"{folder} holds a run with another variant file")


def _difference(stored: Scenario, wanted: Scenario) -> str:
    """The first key that is not the same."""
    then, now = (flat(unstructure(each)) for each in (stored, wanted))
    keys = (key for key in {**then, **now} if then.get(key) != now.get(key))
    key = next(keys, "")
    return f"{key} is {then.get(key)!r} there, {now.get(key)!r} here"


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted keys."""
    values: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        values.update(flat(value, f"{key}.") if isinstance(value, dict) else {key: value})
    return values


def records(study: Study, directory: Path) -> Iterator[tuple[PlannedRun, RunRecord]]:
    """Every finished run."""
    for run in planned(study):
        record = finished(study, directory, run)
        if record is not None:
            yield run, record


def make(
    study: Study, directory: Path, where: Workers, on_progress: Callable[[StudyProgress], None]
) -> tuple[int, str]:
    """Make every run that is not there yet; returns how many could not be made, and why it ended
    before all were tried, if it did. May be called again then."""
    every = list(planned(study))
    missing = [run for run in every if finished(study, directory, run) is None]
    start = time.monotonic()
    made = failed = 0

    def done(number: int, result: KeptRun | FetchedRun | Trouble) -> None:
        nonlocal made, failed
        made += 1
        run = missing[number]
        trouble = keep(folder_of(directory, run), result)
        failed += bool(trouble)
        left = (time.monotonic() - start) / made * (len(missing) - made)
        on_progress(StudyProgress(len(every) - len(missing) + made, len(every), left, run, trouble))

    tasks = [task_of(study, run, where, directory) for run in missing]
    files = tuple(dict.fromkeys(file for task in tasks for file in task.args[-1]))
    why = spread(tasks, evolve(where, files=files), done)
    return failed, why


def task_of(study: Study, run: PlannedRun, where: Workers, directory: Path) -> FanoutTask:
    """The task that makes one run; on this machine it keeps it, too."""
    scenario = scenario_of(study, run)
    if where.scheduler is not None:
        return run_task(scenario, study.name, run.seed, absolute(scenario.vm.variant_files))
    folder = folder_of(directory, run).absolute()
    place = Place(folder, command_line(), linked=False, reports=False)
    return run_task(scenario, study.name, run.seed, tuple(scenario.vm.variant_files), place)


def folder_of(directory: Path, run: PlannedRun) -> Path:
    """Where a run is kept, below the study's directory."""
    return directory / "runs" / run.folder


def keep(folder: Path, result: KeptRun | FetchedRun | Trouble) -> str:
    """Store one run's record, where it is not stored yet; returns what went wrong."""
    if isinstance(result, KeptRun):
        record, trouble = result.record, result.trouble
    elif isinstance(result, FetchedRun):
        record, trouble = result.record, _stored(folder, result.record)
    else:
        return _ended(folder, result)
    KNOWN.judged(Verdict[record.verdict])
    return trouble


def _stored(folder: Path, record: RunRecord) -> str:
    try:
        RunDirectory(folder, new=not folder.exists(), linked=False).write(record)
    except ResultError as error:
        return str(error)
    return ""


def _ended(folder: Path, result: Trouble) -> str:
    """What a run that ended without a result has left is brought to an end."""
    directory = RunDirectory(folder)
    try:
        if (folder / RUN_JSON).is_file():
            record = ends.ended_run(directory.read(), ends.crashed(result.text))
            directory.write(record)
            KNOWN.judged(Verdict[record.verdict])
    except ResultError as error:
        return f"{result.text}; {error}"
    return result.text
