"""Attempts in processes of their own: a mutant may leave threads behind that never end, and must
not disturb the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import frozen

from stress.engines.carrier import pinned
from stress.mutants.case import Case
from stress.runs.fanout.spread import Workers, spread
from stress.runs.fanout.task import FanoutTask, Trouble, current_slot
from stress.scenario.types import Scenario
from stress.selftest.attempt import Attempt, Engine, on_threads, under_control


@frozen
class Job:
    """One attempt to make: a variant's name (empty: the correct model), its case and the scenario
    that this makes, the engine, the seed, and the limit in seconds."""

    name: str
    case: Case
    scenario: Scenario
    engine: Engine
    seed: int
    limit_s: float


def run_jobs(
    jobs: Iterable[Job],
    where: Workers,
    on_done: Callable[[Job, Attempt], None],
    until: float | None = None,
) -> tuple[int, str]:
    """Make every attempt; returns how many were not made, and why it ended before `until`
    (time.monotonic), if it did."""
    wanted = list(jobs)
    left = len(wanted)

    def done(number: int, result: Attempt | Trouble) -> None:
        nonlocal left
        left -= 1
        job = wanted[number]
        if isinstance(result, Trouble):
            result = Attempt(job.name, job.engine, job.seed, False, errors=(result.text,))
        on_done(job, result)

    why = spread([FanoutTask(attempt, (job,), job.limit_s) for job in wanted], where, done, until)
    return left, why


def attempt(job: Job) -> Attempt:
    """Make the attempt in this process."""
    if job.engine == "threads":
        return on_threads(job.name, job.scenario, job.seed, job.limit_s)
    with pinned(current_slot()):
        return under_control(job.name, job.case, job.scenario, job.seed, job.limit_s)
