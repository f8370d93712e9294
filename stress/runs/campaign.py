"""The runs of a campaign: each in a process of its own, and kept there while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import define, evolve, field, frozen

from stress.results.known import KNOWN
from stress.results.known_kills import known_kills
from stress.results.run_record import RunRecord
from stress.results.store import RunDirectory, command_line
from stress.results.verdict import Verdict
from stress.runs import ends
from stress.runs.fanout.single_run import FetchedRun, KeptRun, Place, keep_run, run_task
from stress.runs.fanout.spread import Workers, absolute, spread
from stress.runs.fanout.task import FanoutTask, Trouble
from stress.runs.run import FinishedRun
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
    """What became of one run: its record and directory, where there are any; and what went wrong
    with it, or with keeping it."""

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
    runs = _Runs(request)

    def done(number: int, result: KeptRun | FetchedRun | Trouble) -> None:
        made.append(runs.ended(number, result))
        on_outcome(made[-1])

    where = evolve(request.where, files=runs.files)
    why = spread(runs.tasks(), where, done)
    runs.give_up(why)
    return tuple(sorted(made, key=lambda each: each.seed)), why


@define
class _Runs:
    """The runs, and the directories of those that are going on in processes of this machine."""

    request: CampaignRequest
    going_on: dict[int, Path] = field(factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """The variant files, as whoever runs them has to name them."""
        files = self.request.variant_files
        return absolute(files) if self.request.where.scheduler is not None else files

    def tasks(self) -> Iterator[FanoutTask]:
        """A task a seed."""
        request = self.request
        for number, seed in enumerate(request.seeds):
            place = None
            if request.where.scheduler is None:
                directory = RunDirectory.create(request.results, request.name, seed)
                self.going_on[number] = directory.path
                place = Place(directory.path.absolute(), command_line())
            yield run_task(request.scenario, request.name, seed, self.files, place)

    def ended(self, number: int, result: KeptRun | FetchedRun | Trouble) -> SeedOutcome:
        """What became of a run."""
        seed = self.request.seeds[number]
        directory = self.going_on.pop(number, None)
        if isinstance(result, FetchedRun):
            outcome = _keep(self.request, seed, result)
        elif isinstance(result, Trouble):
            outcome = _of_trouble(seed, directory, ends.crashed(result.text))
        else:
            place = str(directory or "")
            outcome = SeedOutcome(seed, result.record, place, result.trouble)
        if outcome.record is not None:
            KNOWN.judged(Verdict[outcome.record.verdict])
        return outcome

    def give_up(self, why: str) -> None:
        """The runs that are going on are over: their processes were ended."""
        for number, directory in self.going_on.items():
            _of_trouble(self.request.seeds[number], directory, ends.interrupted(why))


def _of_trouble(seed: int, path: Path | None, end: ends.End) -> SeedOutcome:
    """A run whose process has ended without a result, with what it has kept before."""
    try:
        if path is not None and (done := ends.finish(RunDirectory(path), end)) is not None:
            return SeedOutcome(seed, RunDirectory(path).read(), str(path), done.trouble)
    except ResultError as error:
        return SeedOutcome(seed, trouble=f"{end.why}; {error}")
    return SeedOutcome(seed, trouble=end.why)


def _keep(request: CampaignRequest, seed: int, ran: FetchedRun) -> SeedOutcome:
    """Store a run as `stress run` does, with what is only known here: the command, and the last
    selftest."""
    kills = known_kills(
        request.results, "threads", request.name, request.scenario.budget.duration_s
    )
    record = evolve(
        ran.record,
        command=command_line(),
        selftest=kills,
        certificate=evolve(ran.record.certified, selftest=kills),
    )
    directory = RunDirectory.named(request.results, record.id)
    _, trouble = keep_run(FinishedRun(record, directory, ran.files))
    return SeedOutcome(seed, record, str(directory.path), trouble)
