"""The runs of a campaign: each in a process of its own, and stored as soon as it has ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import evolve, frozen

from stress.report.publish import publish_run
from stress.results.known_kills import known_kills
from stress.results.run_record import RunRecord
from stress.results.store import RunDirectory, command_line
from stress.runs.fanout.single_run import FetchedRun, run_task
from stress.runs.fanout.spread import Workers, absolute, spread
from stress.runs.fanout.task import Trouble
from stress.scenario.errors import ResultError
from stress.scenario.types import Scenario


@frozen
class CampaignRequest:
    """What to repeat: the scenario and its short name, with these seeds and the variants in these
    files; where it is run, and where the results go."""

    scenario: Scenario
    name: str
    seeds: tuple[int, ...]
    where: Workers
    results: Path
    variant_files: tuple[str, ...] = ()


@frozen
class SeedOutcome:
    """What became of one run: its record and directory; or, where there is none, what went
    wrong."""

    seed: int
    record: RunRecord | None = None
    directory: str = ""
    trouble: str = ""


def run_campaign(
    request: CampaignRequest, on_outcome: Callable[[SeedOutcome], None] = lambda _: None
) -> tuple[tuple[SeedOutcome, ...], str]:
    """Make every run. Returns those that came to an end, by seed, and why it ended before all had,
    if it did."""
    made: list[SeedOutcome] = []

    def done(number: int, result: FetchedRun | Trouble) -> None:
        seed = request.seeds[number]
        made.append(
            SeedOutcome(seed, trouble=result.text)
            if isinstance(result, Trouble)
            else keep(request, seed, result)
        )
        on_outcome(made[-1])

    where = request.where
    files = (
        absolute(request.variant_files) if where.scheduler is not None else request.variant_files
    )
    tasks = [run_task(request.scenario, request.name, seed, files) for seed in request.seeds]
    why = spread(tasks, evolve(where, files=files), done)
    return tuple(sorted(made, key=lambda each: each.seed)), why


def keep(request: CampaignRequest, seed: int, ran: FetchedRun) -> SeedOutcome:
    """Store a run as `stress run` does, with what only we know: what the user has typed, and the
    last selftest."""
    kills = known_kills(
        request.results, "threads", request.name, request.scenario.budget.duration_s
    )
    record = evolve(
        ran.record,
        command=command_line(),
        selftest=kills,
        certificate=evolve(ran.record.certified, selftest=kills),
    )
    try:
        directory = RunDirectory.named(request.results, record.id)
        for name, content in ran.files.items():
            directory.write_bytes(name, content)
        directory.write(record)
        publish_run(directory, record)
    except ResultError as error:
        return SeedOutcome(seed, trouble=f"the result could not be kept: {error}")
    return SeedOutcome(seed, record, str(directory.path))
