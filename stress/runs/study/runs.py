"""The runs of a study: each in a process of its own, kept in its own directory, and never made
twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import evolve, frozen

from stress.results.run_record import RunRecord
from stress.results.store import RUN_JSON, RunDirectory
from stress.runs.fanout.single_run import FetchedRun, run_task
from stress.runs.fanout.spread import Workers, absolute, spread
from stress.runs.fanout.task import FanoutTask, Trouble
from stress.runs.study.plan import PlannedRun, Study, planned, scenario_of
from stress.scenario.errors import ResultError


@frozen
class StudyProgress:
    """How far a study is: runs done, runs in all, seconds that are left as far as one can tell, and
    what was just done."""

    done: int
    total: int
    left_s: float
    run: PlannedRun
    trouble: str = ""


def finished(directory: Path, run: PlannedRun) -> RunRecord | None:
    """The record of a run that was made already."""
    folder = directory / "runs" / run.folder
    if not (folder / RUN_JSON).is_file():
        return None
    try:
        record = RunDirectory(folder).read()
    except ResultError:
        return None  # written by another version, or damaged: it is made again
    return record if record.status == "finished" else None


def records(study: Study, directory: Path) -> Iterator[tuple[PlannedRun, RunRecord]]:
    """Every finished run."""
    for run in planned(study):
        record = finished(directory, run)
        if record is not None:
            yield run, record


def make(
    study: Study, directory: Path, where: Workers, on_progress: Callable[[StudyProgress], None]
) -> tuple[int, str]:
    """Make every run that is not there yet; returns how many could not be made, and why it ended
    before all were tried, if it did. May be called again then."""
    every = list(planned(study))
    missing = [run for run in every if finished(directory, run) is None]
    start = time.monotonic()
    made = failed = 0

    def done(number: int, result: FetchedRun | Trouble) -> None:
        nonlocal made, failed
        made += 1
        run = missing[number]
        trouble = ""
        if isinstance(result, Trouble):
            failed += 1
            trouble = result.text
        else:
            keep(directory, run, result.record)
        left = (time.monotonic() - start) / made * (len(missing) - made)
        on_progress(StudyProgress(len(every) - len(missing) + made, len(every), left, run, trouble))

    tasks = [task_of(study, run, where) for run in missing]
    files = tuple(dict.fromkeys(file for task in tasks for file in task.args[-1]))
    why = spread(tasks, evolve(where, files=files), done)
    return failed, why


def task_of(study: Study, run: PlannedRun, where: Workers) -> FanoutTask:
    """The task that makes one run."""
    scenario = scenario_of(study, run)
    files = (
        absolute(scenario.vm.variant_files)
        if where.scheduler is not None
        else tuple(scenario.vm.variant_files)
    )
    return run_task(scenario, study.name, run.seed, files)


def keep(directory: Path, run: PlannedRun, record: RunRecord) -> None:
    """Store one run's record."""
    folder = directory / "runs" / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    RunDirectory(folder).write(record)
