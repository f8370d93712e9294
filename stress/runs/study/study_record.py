"""The stored form of a study's answer (study.json)."""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen

from stress.results.serialise import Format
from stress.results.store import owner
from stress.runs.study.answer import Answer, Crossover, StudyCell
from stress.runs.study.costs import PRICES, Costs
from stress.runs.study.render import efficient, safe

STUDY_JSON: Final = "study.json"


@frozen
class StoredPrice:
    """What a price is for, where its default comes from, and between which values it is moved, in
    microseconds."""

    low: float
    high: float
    what: str
    source: str


@frozen
class StoredCell:
    """All runs of one policy at one place. Costs are (median, low end, high end) in
    microseconds."""

    policy: str
    place: dict[str, Any]
    runs: int
    deletes: int
    device_accesses: int
    guest_accesses: int
    findings: int
    bad_accesses: int
    cost_us: tuple[float, float, float]
    call_us: tuple[float, float, float]
    amounts_a_delete: dict[str, float]
    model_p99_us: dict[str, float]


@frozen
class StoredIdle:
    """The runs of a policy at a place in which nothing was deleted, of how many, and what all of
    them found."""

    policy: str
    place: dict[str, Any]
    idle_runs: int
    runs: int
    findings: int


@frozen
class StoredSensitivity:
    """The ratio of the costs (policy over seed's) at the price's low end, its default, its high
    end; whether that decides."""

    price: str
    policy: str
    ratios: tuple[float, float, float]
    flips: bool


@frozen
class StoredClaims:
    """A paragraph for each claim of the patch."""

    safe: str
    efficient: str


@frozen
class StudyRecord:
    """A study's answer: what was asked for, what each delete took and costs at each place, and what
    follows from it."""

    name: str
    title: str
    planned: int
    made: int
    policies: tuple[str, ...]
    point: dict[str, Any]
    axes: dict[str, tuple[Any, ...]]
    costs_us: Costs
    prices: dict[str, StoredPrice]
    cells: tuple[StoredCell, ...]
    idle: tuple[StoredIdle, ...]
    crossovers: tuple[Crossover, ...]
    sensitivities: tuple[StoredSensitivity, ...]
    claims: StoredClaims
    pid: int = 0
    pid_started: float = 0.0


STUDY_FORMAT: Final = Format(StudyRecord, 1, "stress-study")


def record_of(answer: Answer) -> StudyRecord:
    """The answer as it is stored."""
    study = answer.study
    pid, pid_started = owner()
    return StudyRecord(
        pid=pid,
        pid_started=pid_started,
        name=study.name,
        title=study.title,
        planned=answer.planned,
        made=answer.made,
        policies=study.policies,
        point=study.point,
        axes=study.axes,
        costs_us=study.costs,
        prices={name: StoredPrice(**facts) for name, facts in PRICES.items()},
        cells=tuple(_cell(answer, cell) for cell in answer.priced()),
        idle=tuple(_idle(answer.cells[key], count) for key, count in answer.idle().items()),
        crossovers=answer.crossovers,
        sensitivities=tuple(
            StoredSensitivity(each.price, each.policy, each.ratios, each.flips)
            for each in answer.sensitivities
        ),
        claims=StoredClaims(safe=" ".join(safe(answer)), efficient=" ".join(efficient(answer))),
    )


def _cell(answer: Answer, cell: StudyCell) -> StoredCell:
    cost, call = cell.cost(answer.study.costs), cell.call(answer.study.costs)
    return StoredCell(
        policy=cell.policy,
        place=dict(cell.place.values),
        runs=cell.runs,
        deletes=cell.deletes,
        device_accesses=cell.device_accesses,
        guest_accesses=cell.guest_accesses,
        findings=cell.findings,
        bad_accesses=cell.bad_accesses,
        cost_us=(cost.value, cost.low, cost.high),
        call_us=(call.value, call.low, call.high),
        amounts_a_delete=cell.median_amounts(),
        model_p99_us=cell.times_us,
    )


def _idle(cell: StudyCell, count: int) -> StoredIdle:
    place = dict(cell.place.values)
    return StoredIdle(cell.policy, place, count, cell.runs, cell.findings)
