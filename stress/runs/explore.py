"""Explore a scenario under a controlled scheduler, in one process or shared by several."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from attrs import evolve

from stress.engines.carrier import pinned
from stress.engines.scenario_program import ScenarioProgram
from stress.results.store import now
from stress.runs.explore_request import ENOUGH, ExplorationResult, ExploreRequest, judgement_of
from stress.runs.fanout.spread import INTERRUPTED, FanoutPlace, absolute, spread
from stress.runs.fanout.task import RemoteTask, Trouble, current_slot
from stress.scenario.variant_files import variants_from
from stress.search.exploration import Exploration, ExplorationTally, SearchBudget
from stress.search.strategies import is_exhaustive, strategy_for

PROGRAMS = 64
"""A scenario that draws its operations is explored with so many schedules of each draw, one draw
after another."""
SHARE = 1000
"""A search that is shared is cut into pieces of so many schedules, or of an eighth of all, ..."""
SMALLEST_SHARE = 50
"""... but of no fewer than so many: every piece is a process and a strategy that begins afresh."""
SHARE_S = 2.5
"""The same in seconds, where seconds bound the search."""
SHARE_LIMIT_S = 3600.0
"""A piece that is bounded by schedules alone and takes longer hangs."""
APART = 1_000_003
"""How far the seeds of two pieces are apart."""


def explore(
    request: ExploreRequest, on_progress: Callable[[ExplorationTally], None] = lambda _: None
) -> ExplorationResult:
    """Explore, and judge what came of it."""
    started, start = now(), time.perf_counter()
    if request.processes > 1 or request.scheduler is not None:
        tally = _shared(request, on_progress)
    else:
        with pinned():
            tally = campaign_for(request, request.seed).run(_budget(request), on_progress)
    wall_s = time.perf_counter() - start
    return ExplorationResult(request, tally, judgement_of(request, tally), started, wall_s)


def campaign_for(request: ExploreRequest, seed: int) -> Exploration:
    """The campaign of one process."""
    scenario = request.scenario
    drawn = not scenario.script
    exhaustive = is_exhaustive(request.strategy)
    base = seed if drawn else 0
    return Exploration(
        ScenarioProgram(request.name, scenario, variants_from(request.variant_files)),
        strategy_for(request.strategy, seed, scenario.explore.states),
        seeds=(lambda number: base + number // PROGRAMS)
        if drawn and not exhaustive
        else (lambda _: base),
        exercised=True,
    )


def _budget(request: ExploreRequest) -> SearchBudget:
    return SearchBudget(
        request.schedules,
        request.seconds,
        not request.keep_going,
        frozenset(request.scenario.expect.names),
    )


class _Enough(Exception):
    """What was found ends the search: nobody needs what else is running."""


def _shared(
    request: ExploreRequest, on_progress: Callable[[ExplorationTally], None]
) -> ExplorationTally:
    """By several processes, piece by piece, until the budget is used or a failure ends it."""
    total, start, budget = ExplorationTally(), time.perf_counter(), _budget(request)

    def done(_: int, part: ExplorationTally | Trouble) -> None:
        total.seconds = time.perf_counter() - start
        if isinstance(part, Trouble):
            total.errors.append(part.text)
        else:
            total.merge(part, total.seconds - part.seconds)
        on_progress(total)
        if total.errors or budget.is_met(total.failures.values()):
            raise _Enough

    files = (
        absolute(request.variant_files) if request.scheduler is not None else request.variant_files
    )
    pieces = shares(evolve(request, variant_files=files), lambda: time.perf_counter() - start)
    with contextlib.suppress(_Enough):
        why = spread(pieces, FanoutPlace(request.jobs, request.scheduler, files), done)
        total.errors += [why] if why and why != INTERRUPTED else []
    total.curve.append((total.schedules, total.classes))
    return total


def shares(request: ExploreRequest, elapsed: Callable[[], float]) -> Iterator[RemoteTask]:
    """The pieces of a search that is shared, made as they are needed; `elapsed` is how many seconds
    it has gone on. What is explored in so many schedules does not depend on who has which piece,
    nor on how many they are."""
    amounts = _by_schedules if request.schedules is not None else _by_seconds
    for number, (schedules, seconds) in enumerate(amounts(request, elapsed)):
        piece = evolve(
            request, seed=request.seed + number * APART, schedules=schedules, seconds=seconds
        )
        yield RemoteTask(explore_share, (piece,), SHARE_LIMIT_S if seconds is None else seconds)


def _by_schedules(
    request: ExploreRequest, elapsed: Callable[[], float]
) -> Iterator[tuple[int | None, float | None]]:
    """Schedules, and at most as many seconds as are left."""
    count = request.schedules or 0
    size = max(SMALLEST_SHARE, min(SHARE, math.ceil(count / 8)))
    for begun in range(0, count, size):
        left = None if request.seconds is None else request.seconds - elapsed()
        if left is not None and left <= 0:
            return
        yield min(size, count - begun), left


def _by_seconds(
    request: ExploreRequest, elapsed: Callable[[], float]
) -> Iterator[tuple[int | None, float | None]]:
    wanted = request.seconds or math.inf
    while (left := wanted - elapsed()) > (1 - ENOUGH) * wanted:
        yield None, min(SHARE_S, left)


def explore_share(piece: ExploreRequest) -> ExplorationTally:
    """In a process of its own: explore one piece."""
    with pinned(current_slot()):
        return campaign_for(piece, piece.seed).run(_budget(piece))
