"""The certificate of an exploration: what its schedules prove, or make improbable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from stress.results.bounds import missed_by_pct, percent, upper_bound
from stress.results.certificate import Bound, Certificate, Exercise, Gap, certify
from stress.results.known_kills import KnownKills
from stress.results.verdict import Obligation, Verdict
from stress.scenario.types import Scenario
from stress.search.exploration import ExplorationTally
from stress.search.strategies import EVERYTHING, is_exhaustive

_ORDERS: Final = {"sc": "sequential consistency", "tso": "x86's store buffers (x86-TSO)"}
_PROVED_UNDER: Final = {
    "sc": "under sequential consistency",
    "tso": "under x86-TSO, with store buffers of any depth",
}


def _gap(scenario: Scenario) -> Gap:
    order = _ORDERS[scenario.explore.memory]
    return Gap("this engine", (f"time, and what hardware does beyond {order}",))


def certificate_of_exploration(
    scenario: Scenario,
    strategy: str,
    budget: str,
    tally: ExplorationTally,
    verdict: Verdict,
    obligations: tuple[Obligation, ...],
    selftest: KnownKills | None,
    draws: int = 1,
) -> Certificate:
    """What `tally` says. `draws` is how many sets of operations were drawn, for a scenario without
    a script."""
    exercise = Exercise(
        scenario=scenario,
        threads=False,
        counters=tally.counters,
        obligations=obligations,
        judged=tally.judged,
        points=tally.points,
        selftest=selftest,
        failed=bool(tally.failures),
        exhausted=tally.exhausted,
    )
    proof = _proof(scenario, strategy) if tally.exhausted and verdict is Verdict.PASS else ""
    random = not is_exhaustive(strategy) and not exercise.failed
    bounds = tuple(_bounds(strategy, tally)) if random else ()
    return certify(
        exercise,
        verdict.name,
        budget,
        bounds=bounds,
        assumption=_assumption(scenario, draws) if bounds else "",
        proof=proof,
        guarantees=tuple(_guarantees(scenario, strategy, tally)) if random else (),
        gaps=(_gap(scenario),),
    )


def _proof(scenario: Scenario, strategy: str) -> str:
    name, _, bound = strategy.partition(":")
    within = "" if name in EVERYTHING else f"at most {bound or 2} {_BOUNDED[name]}"
    drawn = "" if scenario.script else ", with the operations that this seed has drawn,"
    what = f"no order of events of this scenario{drawn}"
    if within and scenario.explore.states:
        what += f" that takes {within}"
    elif within:
        what = f"no schedule with {within} of this scenario{drawn}"
    return (
        f"proved: {what} breaks a rule that is judged, {_PROVED_UNDER[scenario.explore.memory]}, "
        f"in schedules of at most {scenario.explore.max_steps:,} steps"
    )


_BOUNDED = {"delay": "delays", "preemption": "preemptions"}


def _shares(strategy: str, tally: ExplorationTally) -> Iterator[tuple[str, int]]:
    """Each random strategy with the number of its schedules that came to an end."""
    if tally.members:
        yield from ((name, counts.get("schedules", 0)) for name, counts in tally.members.items())
    else:
        yield strategy, tally.schedules - tally.cut - tally.unfinished


def _bounds(strategy: str, tally: ExplorationTally) -> Iterator[Bound]:
    for name, schedules in sorted(_shares(strategy, tally), key=lambda share: -share[1]):
        if schedules > 0:
            yield Bound(f"schedules of {name}", schedules, upper_bound(schedules))


def _assumption(scenario: Scenario, draws: int) -> str:
    drawn = (
        ""
        if scenario.script
        else f", and that the {draws:,} sets of operations that were drawn stand for all"
    )
    return (
        "each strategy draws its schedules independently (pct and surw adapt theirs to what they "
        f"have seen){drawn}"
    )


def _guarantees(scenario: Scenario, strategy: str, tally: ExplorationTally) -> Iterator[str]:
    """PCT's own: it holds for every bug of its depth, however rare other schedules make it."""
    tasks, steps = tally.tasks, tally.longest
    buffers = " and store buffers" if scenario.explore.memory == "tso" else ""
    depths = {
        name: int(depth or 3)
        for name, _ in _shares(strategy, tally)
        for kind, _, depth in [name.partition(":")]
        if kind == "pct"
    }
    missed = [
        # the first one only learns k
        f"{name} "
        f"{percent(missed_by_pct(schedules - (depths[name] > 1), tasks, steps, depths[name]))}"
        for name, schedules in _shares(strategy, tally)
        if name in depths and schedules > 0
    ]
    if missed:
        yield (
            "a schedule of pct:d finds a bug of depth d with a probability of 1/(n k^(d-1)) or "
            f"more, here n = {tasks} tasks{buffers} and "
            f"k = {steps:,} steps at most; so all of them miss one with a probability of "
            f"{', '.join(missed)} or less"
        )
