"""What to explore, and how the result is judged."""

from __future__ import annotations

from attrs import frozen

from stress.results.verdict import (
    Evidence,
    Judgement,
    Obligation,
    Verdict,
    accesses_in,
    judge,
    judged_rules,
)
from stress.scenario.types import Scenario
from stress.search.exploration import ExplorationTally
from stress.search.strategies import EVERYTHING, is_exhaustive

ENOUGH = 0.99
"""The share of its seconds that a search must have used to count as complete."""


@frozen
class ExploreRequest:
    """What to explore: the scenario, variants from files, the strategy, and how much.

    An `exhaustive` search that does not finish proves nothing. `jobs` is the number of processes
    that may share the work, on this machine or as workers of the Dask `scheduler`. An exhaustive
    strategy keeps a list of what is left, which processes cannot share: it runs in one.
    """

    scenario: Scenario
    name: str
    seed: int
    strategy: str
    variant_files: tuple[str, ...] = ()
    schedules: int | None = None
    seconds: float | None = None
    exhaustive: bool = False
    jobs: int = 1
    keep_going: bool = False
    scheduler: str | None = None

    @property
    def processes(self) -> int:
        """The number of processes that explore."""
        return 1 if is_exhaustive(self.strategy) else self.jobs


@frozen
class ExplorationResult:
    """What the search did, the verdict, when it began (UTC), how many seconds it took, and whether
    it has finished (status)."""

    request: ExploreRequest
    tally: ExplorationTally
    judgement: Judgement
    started: str
    wall_s: float
    status: str = "finished"


def obligations_of(scenario: Scenario, tally: ExplorationTally) -> tuple[Obligation, ...]:
    """The scenario's obligations, with what all schedules together have reached."""
    return tuple(
        Obligation(name, needed, tally.counters.get(name, 0))
        for name, needed in scenario.obligations.items()
    )


def judgement_so_far(tally: ExplorationTally) -> Judgement:
    """The verdict on a search that goes on: a failure is one, however it ends."""
    found = len(tally.failures)
    if found:
        return Judgement(Verdict.FAIL, (f"{found} found so far",))
    return Judgement(Verdict.INCONCLUSIVE, ("the search has not finished",))


def judgement_of(request: ExploreRequest, tally: ExplorationTally) -> Judgement:
    """The verdict on a search. One that hit a limit never passes."""
    scenario = request.scenario
    obligations = obligations_of(scenario, tally)
    expected = scenario.expect.names
    finished = tally.schedules - tally.cut - tally.unfinished
    judgement = judge(
        Evidence(
            findings=len(tally.failures),
            harness_errors=tuple(tally.errors),
            obligations=obligations,
            expected_missing=() if tally.fired() & set(expected) else expected,
            completed=_completed(request, tally),
            clean_end=not tally.unfinished or bool(tally.failures),
            quiescent_checks=finished,
            judged=judged_rules(scenario.oracles.off, tally.judged),
            accesses=None if scenario.script else accesses_in(tally.counters),
            off=scenario.oracles.off,
        )
    )
    wants_all = request.exhaustive or request.strategy in EVERYTHING
    if wants_all and not tally.exhausted and judgement.verdict <= Verdict.INCONCLUSIVE:
        others = judgement.reasons if judgement.verdict is Verdict.INCONCLUSIVE else ()
        return Judgement(
            Verdict.INCONCLUSIVE,
            ("the search did not come to its end: what it has not seen may be broken", *others),
        )
    return judgement


def _completed(request: ExploreRequest, tally: ExplorationTally) -> bool:
    """Whether the budget was used, or the space exhausted, or a failure ended it."""
    if tally.interrupted:
        return bool(tally.failures)
    used = request.schedules is not None and tally.schedules >= request.schedules
    timed = request.seconds is not None and tally.seconds >= request.seconds * ENOUGH
    return used or timed or tally.exhausted or bool(tally.failures)
