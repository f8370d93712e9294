"""One run of a scenario as a task: what it leaves behind comes back, and whoever asked for it
stores it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from attrs import evolve, field, frozen

from stress.results.run_record import RunRecord
from stress.results.store import RUN_JSON
from stress.runs.fanout.task import FanoutTask
from stress.runs.run import RunRequest, execute
from stress.scenario.types import Scenario, Seed
from stress.scenario.variant_files import variants_from


@frozen
class FetchedRun:
    """A run that was made elsewhere: its record, and by name the other files that were in its
    directory."""

    record: RunRecord
    files: dict[str, bytes] = field(factory=dict)


def run_task(
    scenario: Scenario, name: str, seed: int, variant_files: tuple[str, ...] = ()
) -> FanoutTask:
    """The task that runs the scenario with this seed and the variants in these files; its result is
    `FetchedRun`."""
    return FanoutTask(run_here, (scenario, name, seed, variant_files), scenario.budget.longest_s)


def run_here(
    scenario: Scenario, name: str, seed: int, variant_files: tuple[str, ...]
) -> FetchedRun:
    """In a process of its own: run the scenario."""
    with tempfile.TemporaryDirectory() as scratch:
        variants = variants_from(variant_files)
        request = RunRequest(
            evolve(scenario, seed=Seed(seed)), name, seed, variants, Path(scratch), variant_files
        )
        record, directory = execute(request, lambda _: None)
        return FetchedRun(
            record,
            {
                path.name: path.read_bytes()
                for path in directory.path.iterdir()
                if path.name != RUN_JSON
            },
        )
