"""The runs of a study: each in a process of its own, kept in its own directory, and never made twice."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import evolve, frozen

from stress.errors import ResultError
from stress.fanout.local import Task, Trouble, run_local
from stress.results.record import RunRecord, from_json, to_json
from stress.results.store import RUN_JSON, RunDirectory
from stress.run import RunRequest, execute
from stress.scenario.types import Scenario, Seed
from stress.study.plan import Planned, Study, planned, scenario_of


@frozen
class Progress:
    """How far a study is: runs done, runs in all, seconds that are left as far as one can tell, and what was just done."""

    done: int
    total: int
    left_s: float
    run: Planned
    trouble: str = ""


def finished(directory: Path, run: Planned) -> RunRecord | None:
    """The record of a run that was made already."""
    path = directory / "runs" / run.folder / RUN_JSON
    if not path.is_file():
        return None
    try:
        record = from_json(path.read_text(encoding="utf-8"), str(path))
    except ResultError:
        return None  # written by another version, or damaged: it is made again
    return record if record.status == "finished" else None


def records(study: Study, directory: Path) -> Iterator[tuple[Planned, RunRecord]]:
    """Every finished run."""
    for run in planned(study):
        record = finished(directory, run)
        if record is not None:
            yield run, record


def make(study: Study, directory: Path, processes: int, on_progress: Callable[[Progress], None]) -> int:
    """Make every run that is not there yet; returns how many could not be made. May be interrupted and called again."""
    every = list(planned(study))
    missing = [run for run in every if finished(directory, run) is None]
    start = time.monotonic()
    made = failed = 0

    def done(number: int, result: str | Trouble) -> None:
        nonlocal made, failed
        made += 1
        run = missing[number]
        trouble = ""
        if isinstance(result, Trouble):
            failed += 1
            trouble = result.text
        else:
            keep(directory, run, result)
        left = (time.monotonic() - start) / made * (len(missing) - made)
        on_progress(Progress(len(every) - len(missing) + made, len(every), left, run, trouble))

    tasks = [Task(run_text, (scenario_of(study, run), study.name, run.seed), study.duration_s) for run in missing]
    run_local(tasks, processes, done)
    return failed


def keep(directory: Path, run: Planned, text: str) -> None:
    """Store one run's record."""
    folder = directory / "runs" / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    RunDirectory(folder).write_text(RUN_JSON, text)


def run_text(scenario: Scenario, name: str, seed: int) -> str:
    """In a process of its own: run the scenario; its record as JSON text."""
    with tempfile.TemporaryDirectory() as scratch:
        record, _ = execute(RunRequest(evolve(scenario, seed=Seed(seed)), name, seed, (), Path(scratch)), lambda _: None)
    return to_json(evolve(record, id=f"{name}-s{seed}"))
