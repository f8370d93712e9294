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
from stress.runs.fanout.spread import INTERRUPTED, Workers, absolute, spread
from stress.runs.fanout.task import FanoutTask, Trouble, current_slot
from stress.scenario.variant_files import variants_from
from stress.search.exploration import Exploration, ExplorationTally, SearchBudget
from stress.search.strategies import is_exhaustive, strategy_for

PROGRAMS = 64
"""Schedules of each draw, one draw after another, of a scenario that draws its operations."""
SHARE = 1000
"""Most schedules in one piece of a shared search; smaller searches are cut into eight pieces."""
SMALLEST_SHARE = 50
"""Fewest schedules in one piece: each costs a process, and a strategy that begins afresh."""
SHARE_S = 2.5
"""Seconds of one piece, if seconds bound the search."""
SHARE_LIMIT_S = 3600.0
"""Seconds after which a piece that only schedules bound is taken to hang."""
APART = 1_000_003
"""The distance between the seeds of two pieces."""


def explore(
    request: ExploreRequest, on_progress: Callable[[ExplorationTally], None] = lambda _: None
) -> ExplorationResult:
    """Explore, and judge the result."""
    started, start = now(), time.perf_counter()
    if request.processes > 1 or request.scheduler is not None:
        tally = _shared(request, on_progress)
    else:
        tally = _alone(request, on_progress)
    wall_s = time.perf_counter() - start
    judgement = judgement_of(request, tally)
    status = "interrupted" if tally.interrupted else "finished"
    return ExplorationResult(request, tally, judgement, started, wall_s, status)


def _alone(
    request: ExploreRequest, on_progress: Callable[[ExplorationTally], None]
) -> ExplorationTally:
    """Search in this process. Ctrl-C ends the search, and no more: what was found so far is judged
    and kept."""
    exploration = exploration_for(request, request.seed)
    with pinned():
        try:
            exploration.run(_budget(request), on_progress)
        except KeyboardInterrupt:
            exploration.tally.interrupted = True
    return exploration.tally


def exploration_for(request: ExploreRequest, seed: int) -> Exploration:
    """The exploration of one process."""
    scenario = request.scenario
    drawn = not scenario.script
    exhaustive = is_exhaustive(request.strategy)
    base = seed if drawn else 0
    return Exploration(
        ScenarioProgram(request.name, scenario, variants_from(request.variant_files)),
        strategy_for(request.strategy, seed, scenario.explore.states, drawn=drawn),
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
    """Ends a shared search early: what was found is enough."""


def _shared(
    request: ExploreRequest, on_progress: Callable[[ExplorationTally], None]
) -> ExplorationTally:
    """Search in several processes, piece by piece, until the budget is used or a failure found."""
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
        why = spread(pieces, Workers(request.jobs, request.scheduler, files), done)
        total.interrupted = why == INTERRUPTED
        total.errors += [why] if why and why != INTERRUPTED else []
    total.curve.append((total.schedules, total.classes))
    return total


def shares(request: ExploreRequest, elapsed: Callable[[], float]) -> Iterator[FanoutTask]:
    """The pieces of a shared search, made as they are needed. `elapsed` returns the seconds since
    the search began. What N schedules explore does not depend on the number of processes, nor on
    which of them takes which piece."""
    amounts = _by_schedules if request.schedules is not None else _by_seconds
    for number, (schedules, seconds) in enumerate(amounts(request, elapsed)):
        piece = evolve(
            request, seed=request.seed + number * APART, schedules=schedules, seconds=seconds
        )
        yield FanoutTask(explore_share, (piece,), SHARE_LIMIT_S if seconds is None else seconds)


def _by_schedules(
    request: ExploreRequest, elapsed: Callable[[], float]
) -> Iterator[tuple[int | None, float | None]]:
    """Schedules and seconds of each piece; the seconds that are left bound every piece."""
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
    """Explore one piece, in its own process."""
    with pinned(current_slot()):
        return exploration_for(piece, piece.seed).run(_budget(piece))
