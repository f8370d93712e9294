"""What a study says: the cost of one delete by policy and place, where one policy overtakes
another, and how far that rests on prices that were assumed."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from stress.results.run_record import RunRecord
from stress.runs.compare.statistics import Interval, median, ratio_of_medians, ratio_of_pairs
from stress.runs.run import GONE
from stress.runs.study.costs import PRICES, Costs, amounts_of, call_us, total_us
from stress.runs.study.plan import GridPoint, PlannedRun, Study, along, places

SEED_POLICY = "keep-valid"
"""The policy that the patch proposes: the others are held against it."""
TIMES = {
    "memslot": "M3",
    "mmu_lock_write_hold": "M1",
    "walk_section": "M2",
    "fault": "M4",
    "io_fault": "M6",
    "device_window": "M9",
}
"""Operations whose time in the model is shown beside the costs, with the reference's number."""

SAME = "same"
MARGIN = 0.05
"""A price decides nothing if it moves the ratio by less than this around 1."""

Amounts = Mapping[str, float]


@frozen
class StudyCell:
    """All runs of one policy at one place: what one delete took in each run in which there was one,
    by price, and the seeds of those; the longest times in the model by operation (median over the
    runs of their p99, us); how much happened in all."""

    place: GridPoint
    policy: str
    runs: int
    amounts: tuple[Amounts, ...]
    seeds: tuple[int, ...]
    times_us: dict[str, float]
    deletes: int
    device_accesses: int
    guest_accesses: int
    findings: int
    bad_accesses: int

    def median_amounts(self) -> dict[str, float]:
        """The median over the runs of each amount."""
        return {name: statistics.median(each[name] for each in self.amounts) for name in PRICES}

    def cost(self, costs: Costs, key: str = "") -> Interval:
        """What one delete costs, in us, with its interval over the runs."""
        return median(
            [total_us(each, costs) for each in self.amounts],
            f"{self.policy}/{self.place.name}/{key}",
        )

    def call(self, costs: Costs) -> Interval:
        """What the memslot call itself takes of that."""
        return median(
            [call_us(each, costs) for each in self.amounts], f"call/{self.policy}/{self.place.name}"
        )


@frozen
class Crossover:
    """Where `policy` stops, or begins, to cost less than the seed's along an axis. `cheaper` says
    who is at each place, "same" where the runs do not tell them apart; `at` is interpolated between
    the two places where it changes, None where it does not."""

    axis: str
    policy: str
    at: float | None
    cheaper: tuple[str, ...]


@frozen
class Sensitivity:
    """How the comparison with one policy at the point moves with one price: the ratio of the costs
    (policy over seed's) at the price's low end, its default, its high end; `flips` whether another
    policy is cheaper at one end than at the other."""

    price: str
    policy: str
    ratios: tuple[float, float, float]

    @property
    def flips(self) -> bool:
        """Whether the price decides who is cheaper."""
        return min(self.ratios) < 1 - MARGIN and max(self.ratios) > 1 + MARGIN


@frozen
class Answer:
    """Everything that a study found out."""

    study: Study
    cells: dict[tuple[str, str], StudyCell]
    """By policy and the name of the place."""
    crossovers: tuple[Crossover, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()
    planned: int = 0
    made: int = 0

    def cell(self, policy: str, place: GridPoint) -> StudyCell | None:
        """The runs of a policy at a place, if anything was deleted in any."""
        found = self.cells.get((policy, place.name))
        return found if found is not None and found.amounts else None

    def priced(self) -> list[StudyCell]:
        """Every cell in which something was deleted."""
        return [cell for cell in self.cells.values() if cell.amounts]

    def idle(self) -> dict[tuple[str, str], int]:
        """How many runs came to no delete, by policy and the name of the place, where there are
        any."""
        runs = {key: cell.runs - len(cell.amounts) for key, cell in self.cells.items()}
        return {key: count for key, count in runs.items() if count}

    def point(self) -> GridPoint:
        """Where the axes cross."""
        return places(self.study)[0]

    def policies(self) -> list[str]:
        """Those that have runs at the point, the seed's first."""
        there = [policy for policy in self.study.policies if self.cell(policy, self.point())]
        return sorted(there, key=lambda policy: policy != SEED_POLICY)


def answer(study: Study, found: Iterable[tuple[PlannedRun, RunRecord]], total: int) -> Answer:
    """What the finished runs say."""
    groups: dict[tuple[str, str], list[tuple[PlannedRun, RunRecord]]] = {}
    for run, record in found:
        groups.setdefault((run.policy, run.place.name), []).append((run, record))
    cells = {key: _cell(runs) for key, runs in groups.items()}
    first = Answer(study, cells, planned=total, made=sum(len(runs) for runs in groups.values()))
    return evolve(
        first, crossovers=tuple(_crossovers(first)), sensitivities=tuple(_sensitivities(first))
    )


def can_be_counted(record: RunRecord) -> bool:
    """Whether the figures of a run make sense."""
    try:
        amounts_of(record)
        _times([record])
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return False
    return True


def _cell(runs: Sequence[tuple[PlannedRun, RunRecord]]) -> StudyCell:
    """The runs of one policy at one place."""
    records = [record for _, record in runs]
    amounts = {run.seed: each for run, record in runs if (each := amounts_of(record)) is not None}

    def counted(*names: str) -> int:
        return sum(record.counters.get(name, 0) for record in records for name in names)

    return StudyCell(
        place=runs[0][0].place,
        policy=runs[0][0].policy,
        runs=len(runs),
        amounts=tuple(amounts.values()),
        seeds=tuple(amounts),
        times_us=_times(records),
        deletes=counted("memslot_deletes", "memslot_moves"),
        device_accesses=counted("device_accesses"),
        guest_accesses=counted("vcpu_accesses"),
        findings=sum(len(record.findings) for record in records),
        bad_accesses=sum(
            finding.count
            for record in records
            for finding in record.findings
            if finding.code in GONE
        ),
    )


def _times(records: Sequence[RunRecord]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for record in records:
        for latency in record.latencies:
            if latency.operation in TIMES and latency.count:
                found.setdefault(latency.operation, []).append(latency.p99 / 1e3)
    return {operation: statistics.median(values) for operation, values in found.items()}


def _crossovers(found: Answer) -> Iterator[Crossover]:
    """For each axis and each policy but the seed's."""
    for axis in found.study.axes:
        for policy in found.policies():
            if policy != SEED_POLICY:
                signs = list(_signs(found, axis, policy))
                if signs:
                    yield _crossover(axis, policy, signs)


def _signs(found: Answer, axis: str, policy: str) -> Iterator[tuple[Any, float, str]]:
    """Along an axis: the value, the policy's cost over the seed's, and who is cheaper beyond what
    chance explains, or "same"."""
    for value, place in along(found.study, axis):
        ours, theirs = found.cell(SEED_POLICY, place), found.cell(policy, place)
        if ours is not None and theirs is not None:
            ratio = ratio_to(theirs, ours, found.study.costs)
            who = SAME if ratio.contains(1.0) else policy if ratio.value < 1 else SEED_POLICY
            yield value, ratio.value, who


def ratio_to(theirs: StudyCell, ours: StudyCell, costs: Costs) -> Interval:
    """One policy's cost of a delete over another's at the same place; pair by pair where both have
    runs of the same seeds."""
    a = [total_us(each, costs) for each in theirs.amounts]
    b = [total_us(each, costs) for each in ours.amounts]
    seed = f"{theirs.policy}/{theirs.place.name}"
    return (
        ratio_of_pairs(a, b, seed) if theirs.seeds == ours.seeds else ratio_of_medians(a, b, seed)
    )


def _crossover(axis: str, policy: str, signs: Sequence[tuple[Any, float, str]]) -> Crossover:
    """Between the last place where one is cheaper and the first where the other is; places without
    a difference lie between."""
    sure = [sign for sign in signs if sign[2] != SAME]
    at = None
    for (x0, r0, first), (x1, r1, then) in itertools.pairwise(sure):
        if first != then and isinstance(x0, (int, float)) and x0 > 0:
            share = math.log(r0) / (math.log(r0) - math.log(r1))
            at = math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0)))
            break
    return Crossover(axis, policy, at, tuple(who for _, _, who in signs))


def _sensitivities(found: Answer) -> Iterator[Sensitivity]:
    """For each price and each policy but the seed's, at the point."""
    ours = found.cell(SEED_POLICY, found.point())
    if ours is None:
        return
    for policy in found.policies():
        theirs = found.cell(policy, found.point())
        if policy == SEED_POLICY or theirs is None:
            continue
        for price, facts in PRICES.items():
            default = getattr(found.study.costs, price)
            ends = (facts["low"], default, facts["high"])
            ratios = [
                _ratio(theirs, ours, evolve(found.study.costs, **{price: value})) for value in ends
            ]
            yield Sensitivity(price, policy, (ratios[0], ratios[1], ratios[2]))


def _ratio(theirs: StudyCell, ours: StudyCell, costs: Costs) -> float:
    return total_us(theirs.median_amounts(), costs) / max(
        total_us(ours.median_amounts(), costs), 1e-9
    )
