"""Hunting: every shipped scenario for the controlled engine is explored in turn, and the time goes
where new orders of events are still found, until something fails or the time is up."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator

from attrs import define, field, frozen

from stress.results.store import now
from stress.results.verdict import Verdict
from stress.runs.explore import APART, explore_share
from stress.runs.explore_request import ExplorationResult, ExploreRequest, judgement_of
from stress.runs.fanout.spread import INTERRUPTED, Workers, spread
from stress.runs.fanout.task import FanoutTask, Trouble
from stress.scenario.types import Scenario
from stress.search.exploration import ExplorationTally

FIRST: int = 64
"""Schedules of the first turn of a scenario; every later turn has twice those of the one before, up
to `MOST`."""
MOST: int = 1024
TURN_S = 20.0
"""Seconds after which a turn ends, whatever it has explored."""
EVENLY = 3
"""One turn in so many goes to whoever has had the fewest."""


@frozen
class HuntRequest:
    """What to hunt in: scenarios by name, variants from files; for how many seconds, from which
    seed, in how many processes."""

    scenarios: dict[str, Scenario]
    variant_files: tuple[str, ...]
    seconds: float
    seed: int
    jobs: int


@define
class Ground:
    """What is known of one scenario."""

    name: str
    scenario: Scenario
    turns: int = 0
    seconds: float = 0.0
    rate: float = field(default=float("inf"))
    """New classes a second in the last turn."""
    tally: ExplorationTally = field(factory=ExplorationTally)


@frozen
class HuntResult:
    """What came of a hunt: what was explored, the scenario that fails and its exploration, if there
    is one, and what went wrong with the harness."""

    request: HuntRequest
    grounds: tuple[Ground, ...]
    found: ExplorationResult | None
    errors: tuple[str, ...]
    interrupted: bool
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """PASS needs a turn of every scenario, and all their obligations met."""
        if self.found is not None:
            return Verdict.FAIL
        if self.errors:
            return Verdict.HARNESS_ERROR
        return Verdict.INCONCLUSIVE if self.interrupted or self.owing else Verdict.PASS

    @property
    def owing(self) -> list[str]:
        """The scenarios that prove nothing yet, by name."""
        return [
            ground.name
            for ground in self.grounds
            if judgement_of(_request(self.request, ground, 0, 0), ground.tally).verdict
            is not Verdict.PASS
        ]


class _Found(Exception):
    """Ends the hunt."""


def hunt(
    request: HuntRequest, on_progress: Callable[[list[Ground], float], None] = lambda *_: None
) -> HuntResult:
    """Hunt, and return what was found."""
    started, start = now(), time.perf_counter()
    grounds = [Ground(name, scenario) for name, scenario in request.scenarios.items()]
    sent: dict[int, tuple[Ground, ExploreRequest]] = {}
    errors: list[str] = []
    found: list[ExplorationResult] = []

    def done(number: int, part: ExplorationTally | Trouble) -> None:
        ground, piece = sent.pop(number)
        if isinstance(part, Trouble):
            errors.append(f"{ground.name}: {part.text}")
            raise _Found
        _learn(ground, part)
        on_progress(grounds, time.perf_counter() - start)
        if part.failures:
            judgement = judgement_of(piece, part)
            found.append(ExplorationResult(piece, part, judgement, started, part.seconds))
            raise _Found
        if part.errors:
            errors.extend(f"{ground.name}: {error}" for error in part.errors)
            raise _Found

    why = ""
    with contextlib.suppress(_Found):
        tasks = _turns(request, grounds, sent, start)
        why = spread(tasks, Workers(request.jobs, None, request.variant_files), done)
    if why and why != INTERRUPTED:
        errors.append(why)
    return HuntResult(
        request,
        tuple(grounds),
        found[0] if found else None,
        tuple(errors),
        why == INTERRUPTED,
        time.perf_counter() - start,
    )


def _turns(
    request: HuntRequest,
    grounds: list[Ground],
    sent: dict[int, tuple[Ground, ExploreRequest]],
    start: float,
) -> Iterator[FanoutTask]:
    """One turn after another, until the time is up; which comes next depends on what the others
    have found."""
    dice = random.Random(request.seed)
    first = list(grounds)
    dice.shuffle(first)
    number = 0
    while (left := request.seconds - (time.perf_counter() - start)) > 0:
        ground = first.pop() if first else _next(grounds, number)
        schedules = min(MOST, FIRST << ground.turns)
        piece = _request(request, ground, schedules, min(TURN_S, left))
        ground.turns += 1
        sent[number] = ground, piece
        yield FanoutTask(explore_share, (piece,), TURN_S)
        number += 1


def _next(grounds: list[Ground], number: int) -> Ground:
    if number % EVENLY == 0:
        return min(grounds, key=lambda ground: (ground.seconds, ground.name))
    return max(grounds, key=lambda ground: (ground.rate, ground.name))


def _request(
    request: HuntRequest, ground: Ground, schedules: int, seconds: float
) -> ExploreRequest:
    """One turn: with a seed of its own, so that it does not do what an earlier one did."""
    return ExploreRequest(
        scenario=ground.scenario,
        name=ground.name,
        seed=request.seed + ground.turns * APART,
        strategy="portfolio",
        variant_files=request.variant_files,
        schedules=schedules,
        seconds=seconds,
    )


def _learn(ground: Ground, part: ExplorationTally) -> None:
    before = ground.tally.classes
    ground.tally.merge(part, 0.0)
    ground.seconds += part.seconds
    ground.rate = (ground.tally.classes - before) / max(part.seconds, 1e-3)
