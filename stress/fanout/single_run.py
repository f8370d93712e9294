"""One run of a scenario as a task: its record comes back as text, and whoever asked for it stores it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from attrs import evolve

from stress.fanout.task import Task
from stress.results.record import to_json
from stress.run import RunRequest, execute
from stress.scenario.types import Scenario, Seed
from stress.variants import variants_from


def run_task(scenario: Scenario, name: str, seed: int, files: tuple[str, ...] = ()) -> Task:
    """The task that runs the scenario with this seed and the variants in the files; its result is the record as JSON text."""
    return Task(run_text, (scenario, name, seed, files), scenario.budget.duration_s)


def run_text(scenario: Scenario, name: str, seed: int, files: tuple[str, ...]) -> str:
    """In a process of its own: run the scenario."""
    with tempfile.TemporaryDirectory() as scratch:
        request = RunRequest(evolve(scenario, seed=Seed(seed)), name, seed, variants_from(files), Path(scratch), files)
        record, _ = execute(request, lambda _: None)
    return to_json(evolve(record, id=f"{name}-s{seed}"))
