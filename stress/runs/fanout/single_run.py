"""One run of a scenario as a task, in a process of its own: kept there like any run, or, where the
process is on another machine, brought back to be kept by whoever asked for it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve, field, frozen

from stress.report.publish import publish_run
from stress.results.run_record import RUN_FORMAT, RunRecord
from stress.results.store import RUN_JSON, RunDirectory, keep
from stress.results.verdict import Verdict
from stress.runs.fanout.task import FanoutTask
from stress.runs.run import FinishedRun, RunRequest, execute
from stress.scenario.types import Scenario, Seed
from stress.scenario.variant_files import variants_from


@frozen
class FetchedRun:
    """A run that was made elsewhere: its record, and by name the other files that belong beside
    it."""

    record: RunRecord
    files: Mapping[str, bytes] = field(factory=dict)


@frozen
class KeptRun:
    """A run that is kept already: its record, and what of it could not be kept."""

    record: RunRecord
    trouble: str


@frozen
class Place:
    """Where a run is kept: its directory, whether the link `latest` leads there, whether reports
    and other files go with the record, and the command that asked for it."""

    directory: Path
    command: str
    linked: bool = True
    reports: bool = True


def run_task(
    scenario: Scenario,
    name: str,
    seed: int,
    variant_files: tuple[str, ...] = (),
    place: Place | None = None,
) -> FanoutTask:
    """The task that runs the scenario with this seed and the variants in these files. Its result is
    `KeptRun` with a place on this machine, else `FetchedRun`."""
    what = (scenario, name, seed, variant_files)
    limit_s = scenario.budget.longest_s
    if place is None:
        return FanoutTask(run_here, what, limit_s)
    return FanoutTask(run_and_keep, (place, *what), limit_s)


def run_and_keep(
    place: Place, scenario: Scenario, name: str, seed: int, variant_files: tuple[str, ...]
) -> KeptRun:
    """In a process of its own: run the scenario, and keep it."""
    request = _request(scenario, name, seed, variant_files, place.directory.parent, place.command)
    new = not place.directory.exists()
    directory = RunDirectory(place.directory, new=new, linked=place.linked)
    done = execute(request, lambda _: None, directory)
    if place.reports:
        return KeptRun(done.record, keep_run(done)[1])
    text = (RUN_JSON, RUN_FORMAT.text(done.record))
    return KeptRun(
        done.record, keep(directory, Verdict[done.record.verdict], text, lambda: None)[1]
    )


def keep_run(done: FinishedRun) -> tuple[Verdict, str]:
    """Store a finished run with everything that belongs to it, as `stress.results.store.keep`
    does."""
    record, directory = done.record, done.directory
    return keep(
        directory,
        Verdict[record.verdict],
        (RUN_JSON, RUN_FORMAT.text(record)),
        lambda: publish_run(directory, record),
        done.files,
    )


def run_here(
    scenario: Scenario, name: str, seed: int, variant_files: tuple[str, ...]
) -> FetchedRun:
    """In a process on another machine: run the scenario."""
    with tempfile.TemporaryDirectory() as scratch:
        request = _request(scenario, name, seed, variant_files, Path(scratch), None)
        done = execute(request, lambda _: None)
        return FetchedRun(done.record, done.files)


def _request(
    scenario: Scenario,
    name: str,
    seed: int,
    variant_files: tuple[str, ...],
    results: Path,
    command: str | None,
) -> RunRequest:
    variants = variants_from(variant_files)
    seeded = evolve(scenario, seed=Seed(seed))
    return RunRequest(seeded, name, seed, variants, results, variant_files, command)
